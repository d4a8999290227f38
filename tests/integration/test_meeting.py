"""Processes that do not find one another: real ones, with torchrun's environment, and a mistake in it.

All end with code 2 within the time-out, and one line says why.
"""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.integration.command import CONFIG, ROOT, SMALL

TIMEOUT_S = 4
STARTS_S = 120  # a process, on busy cores
NETWORK = ("network", "--accelerator", "cpu", "--timeout_s", TIMEOUT_S)
FIT = (
    *("fit", "-c", CONFIG, *SMALL, "--trainer.devices", 3, "--trainer.strategy.lane_devices", 1),
    *("--trainer.strategy.rendezvous_timeout_s", TIMEOUT_S, "--trainer.callbacks", "[]", "--trainer.logger", "false"),
)
Answer = tuple[int, str, float]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def meet(
    folder: Path,
    *environments: Mapping[str, object],
    command: Sequence[object] = NETWORK,
    around: Mapping[int, Sequence[str]] | None = None,
) -> list[Answer]:
    """Run a command several times at once; exit code, what it said, and seconds of each.

    Args:
        folder: to run in.
        environments: of each process, beside what torchrun would say of the first of two on this machine.
        command: of lanes.
        around: what to put before a process's command.
    """
    usual = {k: v for k, v in os.environ.items() if not k.startswith(("LANES_", "SLURM_", "GLOO_", "NCCL_", "MASTER_"))}
    usual |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TORCHELASTIC_RUN_ID": "by hand", "LOCAL_RANK": "0"}
    usual |= {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    began, processes = time.monotonic(), []
    for number, environment in enumerate(environments):
        own = usual | {name: str(value) for name, value in environment.items()}
        whole = [*(around or {}).get(number, ()), sys.executable, "-m", "lanes", *map(str, command)]
        processes.append(
            subprocess.Popen(whole, cwd=folder, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    answers = []
    for process in processes:
        said, _ = process.communicate(timeout=STARTS_S + 5 * TIMEOUT_S)
        answers.append((process.returncode, said, time.monotonic() - began))
    return answers


def words(answers: list[Answer]) -> str:
    """The line of the one process that speaks; all must have ended for it."""
    assert {code for code, _, _ in answers} == {2}, answers
    lines = [line for _, said, _ in answers for line in said.splitlines() if "error:" in line]
    assert len(lines) == 1, answers
    assert not any("Traceback" in said for _, said, _ in answers)
    return lines[0]


def test_a_name_that_nobody_knows(tmp_path: Path) -> None:
    """Of a training: before data are looked at; an hour may pass over them."""
    answers = meet(tmp_path, {"MASTER_ADDR": "[::1]", "WORLD_SIZE": 3}, command=FIT)
    assert "MASTER_ADDR=[::1] does not resolve on" in words(answers)
    assert "dataset" not in answers[0][1]


def test_nobody_answers(tmp_path: Path) -> None:
    said = words(meet(tmp_path, {"RANK": 1}))
    assert "nobody answers at MASTER_ADDR=127.0.0.1" in said
    assert f"after {TIMEOUT_S} s (Connection refused); it is rank 1 on {socket.gethostname()} that asks" in said


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"MASTER_PORT={port}" in words(meet(tmp_path, {"MASTER_PORT": port}))


@pytest.mark.parametrize("command", [NETWORK, FIT], ids=["network", "fit"])
def test_one_of_three_never_comes(tmp_path: Path, command: Sequence[object]) -> None:
    port = {"MASTER_PORT": free_port(), "WORLD_SIZE": 3}
    answers = meet(tmp_path, port, {"RANK": 2, **port}, command=command)
    assert f"2 of 3 processes have come, from {socket.gethostname()}; rank 1 has not, after {TIMEOUT_S} s" in words(
        answers
    )


def test_two_with_the_same_rank(tmp_path: Path) -> None:
    """The one whose place was taken may hear of it, or that all is over."""
    port = {"MASTER_PORT": free_port(), "WORLD_SIZE": 3}
    long = (*NETWORK[:-1], 5 * TIMEOUT_S)  # nothing is waited for
    answers = meet(tmp_path, port, {"RANK": 1, **port}, {"RANK": 1, **port}, command=long)
    assert {code for code, _, _ in answers} == {2}, answers
    assert "several processes are rank 1 of 3" in answers[0][1], answers


def test_over_ipv6(tmp_path: Path) -> None:
    point = {"MASTER_ADDR": "::1", "MASTER_PORT": free_port()}
    answers = meet(tmp_path, point, {"RANK": 1, **point})
    assert all("MiB/s" in said or not said for _, said, _ in answers), answers
    assert "every link between 2 ranks" in answers[0][1]


ON_NODE = "import socket, subprocess, sys; socket.sethostname(sys.argv[1]); sys.exit(subprocess.call(sys.argv[2:]))"
NODES = {number: ("unshare", "--uts", sys.executable, "-c", ON_NODE, f"lanes-node{number}") for number in range(2)}
own_names = pytest.mark.skipif(
    subprocess.run(["unshare", "--uts", "true"], capture_output=True, check=False).returncode != 0,
    reason="giving processes host names of their own needs root and unshare",
)


@own_names
def test_a_node_whose_name_leads_nowhere(tmp_path: Path) -> None:
    """Gloo would listen at 127.0.0.1, and the other node wait."""
    port = {"MASTER_PORT": free_port()}
    said = words(meet(tmp_path, port, {"RANK": 1, **port}, around=NODES))
    assert re.search(r"the name lanes-node[01] leads to 127\.0\.0\.1 .*set GLOO_SOCKET_IFNAME", said)


@own_names
def test_an_interface_that_others_cannot_reach(tmp_path: Path) -> None:
    port = {"MASTER_PORT": free_port(), "GLOO_SOCKET_IFNAME": "lo"}
    said = words(meet(tmp_path, port, {"RANK": 1, **port}, around=NODES))
    assert "GLOO_SOCKET_IFNAME=lo is 127.0.0.1 on lanes-node" in said
