"""Copies a wheel as it is carried to a GPU machine: with one of its shared libraries, or ours without the package.

python bench/gpu/carry.py WHEEL FOLDER [--library NAME.so] [--extensions FOLDER]
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path


def carry(wheel: Path, folder: Path, *, library: str = "", extensions: Path | None = None) -> Path:
    """Write the smaller wheel.

    Args:
        wheel: the whole one.
        folder: where the other goes, under the same name.
        library: the only shared library that is kept.
        extensions: where the shared libraries of our own wheel go. Its other files are those of the working tree, so
            only the metadata is kept, by which programs know its version.
    """
    target = folder / wheel.name
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as smaller:
        for name in whole.namelist():
            is_library = name.endswith((".so", ".dll", ".dylib"))
            if extensions is not None and is_library:
                (extensions / Path(name).name).write_bytes(whole.read(name))
            elif ".dist-info/" in name if extensions is not None else not is_library or Path(name).name == library:
                smaller.writestr(name, whole.read(name))
    return target


def main() -> None:
    """Copy the wheel that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--library", default="")
    parser.add_argument("--extensions", type=Path)
    options = parser.parse_args()
    carry(options.wheel, options.folder, library=options.library, extensions=options.extensions)


if __name__ == "__main__":
    main()
