"""The log file of a wandb run whose process died: mended, so that ``wandb sync`` takes it.

``wandb sync`` gives up at a record that was cut off, and then passes over every later folder of the same run; a log
without any record makes it pass over all runs that it was asked to sync (seen with wandb 0.31).

Kept out: what the records say; ``wandb leet inspect`` reads them.
"""

import struct
from pathlib import Path

# LevelDB's log format: https://github.com/google/leveldb/blob/main/doc/log_format.md, after a header of the file.
HEADER_BYTES = 7
BLOCK_BYTES = 32768
CHUNK = struct.Struct("<IHB")  # checksum, length, kind
FULL, LAST = 1, 4  # kinds of chunk with which a record is complete


def mend_log(path: Path) -> bool:
    """Cut off what follows the last complete record; remove a log that has none.

    Args:
        path: the ``.wandb`` file; nobody may be writing to it any more.

    Returns:
        Whether there is a log left.
    """
    complete = at = HEADER_BYTES
    with path.open("r+b") as log:
        size = log.seek(0, 2)
        while at + CHUNK.size <= size:
            left = BLOCK_BYTES - at % BLOCK_BYTES
            if left < CHUNK.size:  # padding: no chunk begins there
                at += left
                continue
            log.seek(at)
            _, length, kind = CHUNK.unpack(log.read(CHUNK.size))
            at += CHUNK.size + length
            if kind in (FULL, LAST) and at <= size:
                complete = at
        log.truncate(min(complete, size))
    if complete == HEADER_BYTES:
        path.unlink()
    return complete > HEADER_BYTES
