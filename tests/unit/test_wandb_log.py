"""Logs of wandb runs, cut off anywhere as by a crash, are mended: every complete record stays, nothing else."""

import struct
from pathlib import Path

import pytest

from lanes.training.wandb_log import BLOCK_BYTES, HEADER_BYTES, mend_log

FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def _log(sizes: list[int]) -> tuple[bytes, list[int]]:
    """A log of records of these sizes, and where each ends; checksums are left 0, since mending does not read them."""
    log, ends = bytearray(b":W&B....")[:HEADER_BYTES], []
    for size in sizes:
        rest, begun = size, False
        while rest or not begun:
            left = BLOCK_BYTES - len(log) % BLOCK_BYTES
            if left < 7:
                log += bytes(left)
                continue
            part = min(rest, left - 7)
            done = part == rest
            kind = (LAST if begun else FULL) if done else (MIDDLE if begun else FIRST)
            log += struct.pack("<IHB", 0, part, kind) + bytes([size % 251]) * part
            rest, begun = rest - part, True
        ends.append(len(log))
    return bytes(log), ends


# Records within a block, one that ends 3 bytes before a block does, one over three blocks, one that fills a block.
SIZES = [10, 0, 300, BLOCK_BYTES - 7 - 17 - 7 - 307 - 7 - 3, 5, 2 * BLOCK_BYTES, BLOCK_BYTES // 2, 40]


@pytest.mark.parametrize("around", range(len(SIZES) + 1))
def test_complete_records_stay(tmp_path: Path, around: int) -> None:
    log, ends = _log(SIZES)
    path = tmp_path / "run.wandb"
    middle = [HEADER_BYTES, *ends][around]
    for cut in {middle + step for step in (-200, -8, -1, 0, 1, 6, 7, 8, 11, 250)} | {BLOCK_BYTES, 2 * BLOCK_BYTES}:
        if not 0 <= cut <= len(log):
            continue
        path.write_bytes(log[:cut])
        complete = max([end for end in ends if end <= cut], default=0)
        assert mend_log(path) == (complete > 0)
        assert path.exists() == (complete > 0)
        if complete:
            assert path.read_bytes() == log[:complete]


def test_the_made_log_has_padding() -> None:
    log, ends = _log(SIZES)
    assert ends[3] == BLOCK_BYTES - 3
    assert log[ends[3] : BLOCK_BYTES] == bytes(3)
