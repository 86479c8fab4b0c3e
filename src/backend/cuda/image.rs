//! What the driver loads as the kernels: the PTX of this library, which it compiles for its GPU and keeps in a cache of its own,
//! or CUBIN, which NVRTC has compiled from the same source with the same options, and which is kept here. Every operation of the
//! kernels names its rounding or is compiled with `--fmad=false`, so that both give the same bits.
//!
//! PTX is the default, as it needs nothing but the driver. CUBIN is taken where that is asked for, and where a driver cannot
//! compile PTX. Whatever is wrong with the cache or with NVRTC only costs time: it ends with PTX, and in the words of
//! [`Loaded`].

use super::{CUresult, CudaContext, CudaModule, DriverError, Ptx, compiler_version, cubin, driver_error};
use crate::error::{Result, bail};
use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Every kernel, as kernels/make_ptx.py compiled it.
const PTX: &str = include_str!("../../../kernels/diffusim.ptx");
/// `auto`, `ptx` or `cubin`.
const IMAGE: &str = "DIFFUSIM_CUDA_IMAGE";
/// Folder of the cache.
const CACHE: &str = "DIFFUSIM_CUDA_CACHE";
/// The first NVRTC to be asked.
const LEAST_COMPILER: (i32, i32) = (12, 0);

macro_rules! sources {
    ($($name:literal),+) => { [$(($name, include_str!(concat!("../../../kernels/", $name)))),+] };
}

/// The source of the kernels: the file that is compiled, and those that it includes.
pub(super) const SOURCES: [(&str, &str); 19] = sources![
    "diffusim.cu",
    "adapter.cuh",
    "advance.cuh",
    "analytic.cuh",
    "blend.cuh",
    "distance.cuh",
    "distance_high.cuh",
    "em.cuh",
    "evaluate.cuh",
    "heun.cuh",
    "lane.cuh",
    "langevin.cuh",
    "launches.cuh",
    "leimkuhler_matthews.cuh",
    "mala.cuh",
    "message_passing.cuh",
    "neighbor_list.cuh",
    "noise.cuh",
    "tensor.cuh"
];
/// As in kernels/make_ptx.py, besides the architecture.
const OPTIONS: [&str; 2] = ["--std=c++17", "--fmad=false"];
/// Bytes of the digest behind a CUBIN in the cache.
const DIGEST: usize = 32;

/// The kernels in a context, and in words what was loaded.
pub(super) struct Loaded {
    pub(super) module: Arc<CudaModule>,
    pub(super) words: String,
}

/// A compiled image, and in words where it came from.
struct Cubin {
    image: Vec<u8>,
    words: String,
}

/// Load the kernels for a GPU of this compute capability.
pub(super) fn load(context: &Arc<CudaContext>, capability: (i32, i32)) -> Result<Loaded> {
    let asked = std::env::var(IMAGE).unwrap_or_default();
    if !["", "auto", "ptx", "cubin"].contains(&&*asked) {
        bail!(InvalidArgument, "{IMAGE} is '{asked}'; expected 'auto', 'ptx' or 'cubin'");
    }
    let architecture = format!("sm_{}{}", capability.0, capability.1);
    let from_cubin = || -> std::result::Result<Loaded, String> {
        let Cubin { image, words } = cubin_for(&architecture)?;
        let loaded = context.load_module(Ptx::from_binary(image));
        let module = loaded.map_err(|e| format!("the driver does not take the {words}: {:?}", e.0))?;
        Ok(Loaded { module, words })
    };
    let mut without_cubin = None;
    if asked == "cubin" {
        match from_cubin() {
            Ok(loaded) => return Ok(loaded),
            Err(reason) => without_cubin = Some(reason),
        }
    }
    let failed = match (context.load_module(Ptx::from_src(PTX)), &without_cubin) {
        (Ok(module), None) => return Ok(Loaded { module, words: "PTX".into() }),
        (Ok(module), Some(why)) => {
            return Ok(Loaded { module, words: format!("PTX, for want of CUBIN: {why}") });
        }
        (Err(error), _) => error,
    };
    let told =
        |why: String| driver_error(&format!("compiling the kernels, and there is no CUBIN ({why})"), failed);
    match without_cubin {
        Some(why) => Err(told(why)),
        None if asked != "ptx" && does_not_compile(failed) => from_cubin().map_err(told),
        None => Err(driver_error("compiling the kernels", failed)),
    }
}

/// Whether it was not for the GPU that PTX was refused, but for the driver's compiler: one that is missing, as in containers that
/// were given half of a driver, or switched off.
fn does_not_compile(error: DriverError) -> bool {
    [
        CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND,
        CUresult::CUDA_ERROR_JIT_COMPILATION_DISABLED,
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
        CUresult::CUDA_ERROR_INVALID_PTX,
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU,
    ]
    .contains(&error.0)
}

/// The kernels as CUBIN, out of the cache or compiled now.
fn cubin_for(architecture: &str) -> std::result::Result<Cubin, String> {
    let version = compiler_version()?;
    let (major, minor) = version;
    if version < LEAST_COMPILER {
        return Err(format!("libnvrtc is of CUDA {major}.{minor}; expected 12.0 or later"));
    }
    let place = folder().map(|folder| folder.join(name_of(architecture, version)));
    let kept = place.as_ref().ok().and_then(|place| read(place));
    if let (Some(image), Ok(place)) = (kept, &place) {
        return Ok(Cubin { image, words: format!("CUBIN for {architecture} in {}", place.display()) });
    }
    let options = OPTIONS.map(String::from).into_iter();
    let options: Vec<String> = options.chain([format!("--gpu-architecture={architecture}")]).collect();
    let image = cubin(&options)?;
    let fate = match place.and_then(|place| write(&place, &image).map(|()| place)) {
        Ok(place) => format!("kept in {}", place.display()),
        Err(reason) => format!("not kept: {reason}"),
    };
    let words = format!("CUBIN for {architecture}, compiled by NVRTC {major}.{minor} and {fate}");
    Ok(Cubin { image, words })
}

/// Where images are kept.
fn folder() -> std::result::Result<PathBuf, String> {
    let set = |name: &str| std::env::var_os(name).filter(|value: &OsString| !value.is_empty());
    if let Some(folder) = set(CACHE) {
        return Ok(folder.into());
    }
    // The XDG Base Directory Specification has relative paths ignored.
    let absolute = |name: &str| set(name).map(PathBuf::from).filter(|folder| folder.is_absolute());
    let caches = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    caches
        .map(|caches| caches.join("diffusim"))
        .ok_or_else(|| format!("none of {CACHE}, XDG_CACHE_HOME and HOME names a folder for it"))
}

/// Name of what this source becomes by this compiler.
fn name_of(architecture: &str, (major, minor): (i32, i32)) -> String {
    let mut key = Sha256::new();
    let parts = SOURCES.iter().flat_map(|(name, text)| [*name, *text]).chain(OPTIONS);
    for part in parts {
        key.update((part.len() as u64).to_le_bytes());
        key.update(part);
    }
    let key: String = key.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("{architecture}-nvrtc{major}.{minor}-{key}.cubin")
}

/// An image that is whole; `None` if there is none, or it is not.
fn read(place: &Path) -> Option<Vec<u8>> {
    let mut image = std::fs::read(place).ok()?;
    let digest = image.split_off(image.len().checked_sub(DIGEST)?);
    (Sha256::digest(&image).as_slice() == digest).then_some(image)
}

/// Put an image, and its digest behind it, where it is to be found: at once, so that nobody reads half of it and of several who
/// write one stays.
fn write(place: &Path, image: &[u8]) -> std::result::Result<(), String> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    // Hosts that share a folder have the same numbers of processes; time tells them apart.
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos());
    let unfinished = place.with_extension(format!("{}-{number}-{now}.unfinished", std::process::id()));
    let bytes = [image, &Sha256::digest(image)].concat();
    let folder = place.parent().expect("it is in a folder");
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&unfinished, bytes))
        .and_then(|()| std::fs::rename(&unfinished, place))
        .map_err(|error| {
            let _ = std::fs::remove_file(&unfinished);
            format!("{}: {error}", folder.display())
        })
}
