"""Compile kernels/diffusim.cu into kernels/diffusim.ptx, which is committed and built into the library.

The PTX is of ISA 8.0 for compute_70, so that every driver from CUDA 12.0 on compiles it for its GPU when it is loaded.
NVRTC 12.0.140 (`pip install nvidia-cuda-nvrtc-cu12==12.0.140`) gives the same text on every machine.
"""

import argparse
import ctypes
import sys
from pathlib import Path

KERNELS = Path(__file__).parent
PTX = KERNELS / "diffusim.ptx"
VERSION = (12, 0)
# Contracting a multiplication and an addition would change bits; where fma is meant it is written.
OPTIONS = ("--gpu-architecture=compute_70", "--std=c++17", "--fmad=false", f"--include-path={KERNELS}")


def nvrtc() -> ctypes.CDLL:
    """The compiler of the pinned wheel."""
    try:
        import nvidia.cuda_nvrtc as wheel
    except ImportError:
        sys.exit("NVRTC is not installed; pip install nvidia-cuda-nvrtc-cu12==12.0.140")
    library = ctypes.CDLL(str(Path(next(iter(wheel.__path__))) / "lib" / "libnvrtc.so.12"))
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    if (major.value, minor.value) != VERSION:
        sys.exit(f"NVRTC is {major.value}.{minor.value}; expected {VERSION[0]}.{VERSION[1]}")
    return library


def compiled() -> str:
    """The PTX of the kernels as they are."""
    library = nvrtc()
    source = (KERNELS / "diffusim.cu").read_bytes()
    program = ctypes.c_void_p()
    library.nvrtcCreateProgram(ctypes.byref(program), source, b"diffusim.cu", 0, None, None)
    options = (ctypes.c_char_p * len(OPTIONS))(*(option.encode() for option in OPTIONS))
    failed = library.nvrtcCompileProgram(program, len(OPTIONS), options)

    def text(size: str, get: str) -> str:
        length = ctypes.c_size_t()
        getattr(library, size)(program, ctypes.byref(length))
        buffer = ctypes.create_string_buffer(length.value)
        getattr(library, get)(program, buffer)
        return buffer.value.decode()

    if failed:
        sys.exit(text("nvrtcGetProgramLogSize", "nvrtcGetProgramLog"))
    return text("nvrtcGetPTXSize", "nvrtcGetPTX")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare; exit status 1 if they differ")
    ptx = compiled()
    if not parser.parse_args().check:
        PTX.write_text(ptx)
    elif not PTX.exists() or PTX.read_text() != ptx:
        sys.exit(f"{PTX.name} is not what the kernels compile to; run kernels/make_ptx.py and commit it")


if __name__ == "__main__":
    main()
