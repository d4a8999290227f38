"""The tutorial runs, and prints what it shows; so does its picture."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("matplotlib", reason="the tutorial draws a picture: install the extra 'figures'")

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "grouped-and-dense.md").read_text()
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```\n(?P<shown>.*?)^```\n)?", re.DOTALL | re.MULTILINE)


def run(page: str) -> None:
    """Run a page's Python blocks one after the other; each must print exactly the block that follows it."""
    names: dict = {}
    for block in BLOCK.finditer(page):
        line = page[: block.start()].count("\n") + 2
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec("\n" * (line - 1) + block["code"], names)  # so that tracebacks tell the line of the page
        assert printed.getvalue() == (block["shown"] or ""), f"the block at line {line} prints something else"


@pytest.fixture(autouse=True)
def nothing_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    with torch.random.fork_rng():
        yield


def test_the_tutorial_prints_what_it_shows(tmp_path: Path) -> None:
    run(PAGE)
    drawn, committed = (
        np.asarray(Image.open(folder / "block-diagonal.png").convert("RGB"), dtype=float)
        for folder in (tmp_path, DOCS / "images")
    )
    assert drawn.shape == committed.shape
    assert abs(drawn - committed).mean() < 2  # of 255: other versions of fonts may move a letter, not a square


def test_every_block_of_the_tutorial_is_run() -> None:
    """Nothing is shown beside what runs: no fence is left when the blocks are taken out."""
    assert len(BLOCK.findall(PAGE)) == 6
    assert sum(block["shown"] is not None for block in BLOCK.finditer(PAGE)) == 5
    assert "```" not in BLOCK.sub("", PAGE)


@pytest.mark.parametrize(
    ("page", "wrong"),
    [
        ("```python\nprint(1 + 1)\n```\n\n```\n3\n```\n", "line 2 prints"),
        ("text\n```python\nprint(1)\nprint(2)\n```\n\n```\n1\n```\n", "line 3 prints"),
        ("```python\nx = 1\n```\n\n```\n1\n```\n", "line 2 prints"),
        ("```python\nx = 1\n```\n\n```python\nprint(x)\n```\n", "line 6 prints"),
    ],
)
def test_a_shown_line_that_is_not_printed_is_found(page: str, wrong: str) -> None:
    with pytest.raises(AssertionError, match=wrong):
        run(page)


def test_a_changed_line_of_the_tutorial_is_found() -> None:
    head = PAGE[: PAGE.index("## What grouping saves")]
    run(head)
    with pytest.raises(AssertionError, match="prints something else"):
        run(head.replace("3-D: [64, 16, 3, 3, 3]", "3-D: [64, 32, 3, 3, 3]"))
