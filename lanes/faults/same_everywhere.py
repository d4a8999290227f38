"""Before training starts all processes compare what they are about to run: code, versions, configuration, environment.

Each sends one number; only if these differ, everything is told, so that the difference can be named. Kept out: weights
(equal_weights.py) and batches (agreement.py), which are compared while training runs.
"""

import hashlib
import json
import os
import platform
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import numpy
import torch
import torch.distributed as dist

import lanes
from lanes.faults.agreement import UnlikeError

# What changes numbers, or the order in which they are added. The number of threads may differ.
VARIABLES = (
    *("PL_GLOBAL_SEED", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
    *("NCCL_ALGO", "NCCL_PROTO", "MKL_CBWR", "ONEDNN_DEFAULT_FPMATH_MODE", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"),
)
# Where things are written is the first process's affair, and where they are read may depend on the node's disks.
MAY_DIFFER = (
    *("trainer.default_root_dir", "trainer.logger", "checkpoint.dirpath", "ckpt_path", "data.init_args.cache_dir"),
)
SHOWN = 60  # characters of a value
NOTHING = "nothing"


class UnlikeStartError(UnlikeError, ValueError):
    """Processes are about to run different things."""


def check_same(config: Mapping[str, Any], *, device: torch.device) -> None:
    """Compare what processes are about to run; all of them must call it, once their group is made.

    Args:
        config: as it was read; may be empty.
        device: of this process.

    Raises:
        UnlikeStartError: on all processes; a ValueError that names what differs, two ranks, and both values.
    """
    mine = facts(config)
    number = hashlib.sha256(json.dumps(mine, sort_keys=True).encode()).digest()
    told = torch.tensor(list(number), dtype=torch.uint8, device=device)
    answers = [torch.empty_like(told) for _ in range(dist.get_world_size())]
    dist.all_gather(answers, told)
    if all(torch.equal(answer, answers[0]) for answer in answers):
        return
    everyone: list[Any] = [None] * len(answers)
    dist.all_gather_object(everyone, (socket.gethostname(), mine))
    raise UnlikeStartError(in_words(everyone))


def facts(config: Mapping[str, Any]) -> dict[str, str]:
    """What must be the same everywhere, by name."""
    found = {
        "Python": platform.python_version(),
        "lanes": lanes.__version__,
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "numpy": numpy.__version__,
    }
    found |= {name: os.environ.get(name, NOTHING) for name in VARIABLES}
    package = Path(lanes.__file__).parent
    for file in sorted(package.rglob("*.py")):
        found[f"lanes/{file.relative_to(package)}"] = f"SHA-256 {hashlib.sha256(file.read_bytes()).hexdigest()}"
    return found | {name: value for name, value in _flat(config) if not _may_differ(name)}


def in_words(everyone: list[tuple[str, dict[str, str]]]) -> str:
    """What differs first between the first process and another, and how much else.

    Args:
        everyone: host and facts of each process, by rank.
    """
    host, ours = everyone[0]
    for rank, (other_host, theirs) in enumerate(everyone):
        unlike = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        if unlike:
            name = unlike[0]
            values = _short(ours.get(name, NOTHING), theirs.get(name, NOTHING))
            others = f" (and {len(unlike) - 1} more: {_cut(', '.join(unlike[1:]))})" if unlike[1:] else ""
            return (
                f"processes differ in {name}: {values[0]} on rank 0 (on {host}), {values[1]} on rank {rank} (on "
                f"{other_host}){others}; start the same code, configuration and environment on every node"
            )
    raise AssertionError("nothing differs")


def _short(one: str, other: str) -> tuple[str, str]:
    """Two values from a little before where they differ."""
    alike = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    start = max(0, alike - SHOWN // 2)
    return _cut(one, start), _cut(other, start)


def _cut(text: str, start: int = 0) -> str:
    shown = text[start : start + SHOWN]
    return f"{'...' if start else ''}{shown}{'...' if start + SHOWN < len(text) else ''}"


def _may_differ(name: str) -> bool:
    return any(name == key or name.startswith(f"{key}.") for key in MAY_DIFFER)


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """The values of nested mappings, by their names joined with dots; lists stay whole."""
    if isinstance(value, Mapping) and (value or not name):
        return [pair for key in value for pair in _flat(value[key], f"{name}.{key}" if name else str(key))]
    return [(name, json.dumps(value, sort_keys=True, default=repr))]
