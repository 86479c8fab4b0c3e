"""Writing trajectories as DCD (CHARMM's format, no cell), many frames at a time, to files that can be continued.

The writers of OpenMM and mdtraj append one frame at a time or not at all.
"""

import struct
from pathlib import Path

import numpy as np

AKMA_PER_PS = 1 / 0.04888821  # DCD counts time in these
COUNT_AT, STEPS_AT = 8, 20  # bytes of the header that grow with the file
LARGEST = 2**31 - 1  # that fits in the header; readers count the frames by the size of the file
HEADER = struct.Struct("<i4s9if10ii ii80s80si iii")  # three records: control, titles, number of particles


class DcdWriter:
    """A DCD file of `n_particles` whose frames are `steps_per_frame` steps of `time_step` ps apart (0: unknown).

    Starts anew, or behind the first `keep` frames of the file that is there; ValueError if it has not so many.
    """

    def __init__(self, path: Path, n_particles: int, steps_per_frame: int, time_step: float, keep: int = 0):
        self.n_frames = keep
        self._steps_per_frame = steps_per_frame
        # Each coordinate is a Fortran record: its size in bytes, its numbers, its size.
        self._axis = np.dtype([("before", "<i4"), ("values", "<f4", n_particles), ("after", "<i4")])
        size = HEADER.size + keep * 3 * self._axis.itemsize
        if keep:
            self._file = open(path, "r+b")
            self._file.seek(0, 2)
            if self._file.tell() < size:
                self._file.close()
                raise ValueError(f"{path} has fewer than {keep:,} frames of {n_particles} particles")
            self._file.truncate(size)
        else:
            self._file = open(path, "w+b")
            if steps_per_frame > LARGEST:  # then one long step, so that the times of the frames are right
                steps_per_frame, time_step = 1, time_step * steps_per_frame
            delta = time_step * AKMA_PER_PS
            control = [0, steps_per_frame, steps_per_frame, 0, 0, 0, 0, 0, 0, delta, *[0] * 9, 24]
            titles = ("written by diffusim".ljust(80).encode(), "lengths in Angstrom".ljust(80).encode())
            self._file.write(HEADER.pack(84, b"CORD", *control, 84, 164, 2, *titles, 164, 4, n_particles, 4))

    def write(self, positions: np.ndarray) -> None:
        """Append frames [n_frames, n_particles, 3], nm. They are in the file when this returns."""
        records = np.empty((len(positions), 3), dtype=self._axis)
        records["before"] = records["after"] = self._axis["values"].itemsize
        records["values"] = 10 * positions.swapaxes(1, 2)
        self._file.seek(0, 2)
        self._file.write(records.tobytes())
        self.n_frames += len(positions)
        for place, number in ((COUNT_AT, self.n_frames), (STEPS_AT, self.n_frames * self._steps_per_frame)):
            self._file.seek(place)
            self._file.write(struct.pack("<i", min(number, LARGEST)))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
