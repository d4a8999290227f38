"""Imports point one way: down the list of rooms; nothing imports upwards, and no cycle hides in a function."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "lanes"
# Lower rooms first. A room may import from rooms before it, and from itself if it is a folder.
ROOMS = """words tables jobs status models mesh channels crossing traffic ways tracing ordering glue rules following
    megatron plans planning layers placement statecodec checkpoint grouping listing report checking data analysis
    pictures looking faults network training studies workspace sweeps cli __main__""".split()


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """The rooms that a file imports from, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "lanes" else [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("lanes.")}
    return found - {"__version__"}


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    assert room in ROOMS, f"{room} is a new room: give it its place in the list, and in the README"
    allowed = {*ROOMS[: ROOMS.index(room)], *([room] if (PACKAGE / room).is_dir() else [])}
    assert imported_rooms(path) <= allowed


def test_models_import_nothing_of_ours() -> None:
    for path in (PACKAGE / "models").glob("*.py"):
        assert imported_rooms(path) <= {"models"}, path
