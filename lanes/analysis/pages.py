"""Pages of measured numbers: what they were taken on, and tables that a script writes between markers.

Kept out: the numbers.
"""

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import torch


def provenance() -> str:
    """What numbers are taken on: commit of the current folder, versions, processor, cores, date."""
    parts = [f"commit {commit()}", versions(), processor(), f"{os.cpu_count()} cores"]
    return ", ".join([*filter(None, parts), str(date.today())])


def commit(folder: Path | None = None) -> str:
    """The commit of a folder, by default the current one; "-dirty" behind it if something was changed since."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    git = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    return git.stdout.strip() or "unknown"


def versions() -> str:
    """Of Python and torch."""
    return f"Python {platform.python_version()}, torch {torch.__version__}"


def processor() -> str:
    """The processor's name, "" if the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def rewritten(page: str, parts: Mapping[str, str]) -> str:
    """The page with other content between its markers ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``.

    Args:
        page: Markdown.
        parts: NAME -> content.

    Raises:
        ValueError: a marker is missing, or stands there twice.
    """
    for name, content in parts.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"the page needs the markers {begin} and {end}, once each")
        before, rest = page.split(begin)
        page = f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"
    return page
