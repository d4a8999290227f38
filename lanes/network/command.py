"""The verb ``network``: how fast the links between all ranks are, and which one is slow.

Kept out: measuring, tables, the rule (measuring.py, links.py).
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment

from lanes.faults.supervisor import end_agreed, supervise
from lanes.network.addresses import MeetingError
from lanes.network.group import start_group
from lanes.network.links import slow_links, tables, verdict, write_csv
from lanes.network.measuring import LinkError, measure

PATIENCE_S = 60  # for one message
DESCRIPTION = "Measure bandwidth and latency between all pairs of ranks, and name the slow links."
EPILOG = """Under srun or torchrun it takes the ranks that those have started; by itself it starts some on this node.
Over Gloo between processors, over NCCL between GPUs; a few seconds in all. A link is slow below half of the median of
its kind: inside a node, across nodes. Exit code: 0, 1 if a link is slow, 2 if ranks cannot find one another."""


def run(args: Sequence[str]) -> None:
    """``lanes network [--processes N] [--accelerator cpu|gpu] [--csv FILE]``.

    Raises:
        SystemExit: always; code 0, 1 if a link is slow, 2 for a mistake, after one line.
    """
    gpus = torch.cuda.device_count()
    parser = argparse.ArgumentParser(prog="lanes network", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--processes", type=int, help="by itself: how many; default: one for each GPU, else 2")
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="gpu" if gpus else "cpu")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write every link into this file, too")
    parser.add_argument("--timeout_s", type=float, default=120, help="how long ranks wait for one another")
    asked = parser.parse_args(args)
    if asked.csv and not asked.csv.absolute().parent.is_dir():
        _fail(f"--csv {asked.csv}: there is no folder {asked.csv.parent}")
    environment = _environment()
    if environment is None:
        processes = (gpus or 2) if asked.processes is None else asked.processes
        if processes < 2:
            _fail(f"--processes {processes}: a link has two ends; give at least 2")
        raise SystemExit(supervise([sys.executable, "-m", "lanes", "network", *args], processes))
    if asked.accelerator == "gpu" and environment.local_rank() >= gpus:
        _fail(f"local rank {environment.local_rank()} has no GPU ({gpus} are here); --accelerator cpu does without")
    end_agreed(_measured(environment, asked.accelerator, asked.csv, asked.timeout_s))


def _environment() -> ClusterEnvironment | None:
    """Who has started this process among others; None if nobody has. What a training would find, too."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*`srun` command is available.*")
        for kind in (TorchElasticEnvironment, SLURMEnvironment):  # torchrun may run inside a job of SLURM
            if kind.detect():
                return kind()
    return None


def _measured(environment: ClusterEnvironment, accelerator: str, out: Path | None, timeout_s: float) -> int:
    """Measure and show; the exit code, on all ranks."""
    device = torch.device("cuda", environment.local_rank()) if accelerator == "gpu" else torch.device("cpu")
    torch.set_num_threads(1)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # on which objects travel, too
    backend, patience = "nccl" if device.type == "cuda" else "gloo", timedelta(seconds=PATIENCE_S)
    try:
        start_group(environment, backend, device, rendezvous_timeout_s=timeout_s, timeout=patience)
    except MeetingError as missed:
        if missed.speaks:
            _fail(str(missed))
        raise SystemExit(2) from None
    rank, world = dist.get_rank(), dist.get_world_size()
    if world == 1:
        print("one rank has no link to measure; give the job more devices or nodes")
        return 0
    if rank == 0:
        print(f"measuring every link between {world} ranks over {backend} ...", flush=True)
    try:
        links, hosts = measure(device)
    except LinkError as broken:
        print(f"lanes network: error: {broken}", file=sys.stderr)
        return 1
    if rank == 0:
        print(f"{tables(links, hosts)}\n\n{verdict(links, hosts)}")
        if out:
            write_csv(out, links, hosts)
    dist.destroy_process_group()
    return 1 if slow_links(links, hosts) else 0


def _fail(mistake: str) -> NoReturn:
    print(f"lanes network: error: {mistake}", file=sys.stderr)
    raise SystemExit(2)
