"""Files that appear only when they are whole, in place of those of an earlier call; nothing else is touched.

Kept out: what is in them.
"""

import csv
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from lanes.looking.numbers import Table


def check_folder(folder: Path) -> None:
    """Find out before anything is computed that a folder cannot be written to.

    Raises:
        ValueError: it is, or lies in, a file.
    """
    for path in (folder, *folder.parents):
        if path.exists():
            if not path.is_dir():
                inside = "" if path == folder else f" lies in {path}, which"
                raise ValueError(f"-o {folder}{inside} is a file; name a folder, which is made when needed")
            return


def write_files(folder: Path, files: Mapping[str, Image.Image | Table], *, replaces: re.Pattern[str]) -> list[Path]:
    """Write pictures (PNG) and tables (CSV) by their names.

    Args:
        folder: where to; made if need be.
        files: name -> contents.
        replaces: what an earlier call's files are called: those that are not written again are removed.

    Returns:
        The files.

    Raises:
        OSError: the folder cannot be written to; the earlier files are as they were, unless that happens between
            putting one file in its place and the next.
    """
    partial = folder / ".filters.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for name, contents in files.items():
            _write(partial / name, contents)
        for name in files:
            (partial / name).replace(folder / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for path in folder.iterdir():
        if path.name not in files and replaces.fullmatch(path.name) and path.is_file():
            path.unlink()
    return [folder / name for name in files]


def _write(path: Path, contents: Image.Image | Table) -> None:
    if isinstance(contents, Image.Image):
        contents.save(path)
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")  # floats with all their digits
        writer.writerows([contents.heading, *contents.rows])
