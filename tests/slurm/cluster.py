"""A real SLURM cluster of two nodes on this machine, for as long as a test needs it.

Its own munged, slurmctld and two slurmd, on free ports, below one folder; nothing of a cluster that the machine may
belong to is read or touched. Kept out: what jobs do (test_jobs.py), how the packages get here (conftest.py).
"""

import os
import random
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.slurm.networks import Networks

NODES = ("node1", "node2")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue", "munged")
CPUS = 4  # that each node claims to have

CONF = """
ClusterName=lab
SlurmctldHost={host}({controller})
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={ports[0]}
FirstJobId={first_job}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait={kill_wait_s}
MinJobAge=3600
SlurmdTimeout={node_timeout_s}
InactiveLimit=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{more}
NodeName=node1 NodeHostname={names[0]} NodeAddr={addresses[0]} Port={ports[1]} CPUs={cpus} RealMemory=8000
NodeName=node2 NodeHostname={names[1]} NodeAddr={addresses[1]} Port={ports[2]} CPUs={cpus} RealMemory=8000
PartitionName=main Nodes=node1,node2 Default=YES PriorityTier=1 GraceTime={grace_s} MaxTime=INFINITE State=UP
PartitionName=high Nodes=node1,node2 PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """The programs of SLURM that this machine lacks."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


def wait_for(what: Callable[[], object], within_s: float, *, said: Callable[[], object] = lambda: "") -> None:
    """Wait until something holds.

    Raises:
        AssertionError: it does not in time; with what is said then.
    """
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline, f"not within {within_s} s\n{said()}"
        time.sleep(0.1)


class Cluster:
    """A cluster that runs.

    Attributes:
        folder: of all that it keeps.
        environment: by which SLURM's commands find it, and it alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        mine = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SITE_"))}
        self.environment = mine | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{mine['PATH']}:/usr/sbin:/sbin"}

    def run(self, *words: object, cwd: Path | None = None, **environment: str) -> str:
        """Run one of SLURM's commands; what it printed.

        Raises:
            AssertionError: it failed.
        """
        done = subprocess.run(
            [str(word) for word in words],
            cwd=cwd,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What ``scontrol show job`` says of a job, or of a task of an array."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.run("scontrol", "-o", "show", "job", number)))

    def signals_users(self, wanted: bool) -> None:
        """Whether preemption sends a job the signal of its own --signal, instead of SIGTERM."""
        conf, line = self.folder / "slurm.conf", "SlurmctldParameters=preempt_send_user_signal\n"
        conf.write_text(conf.read_text().replace(line, "") + (line if wanted else ""))
        self.run("scontrol", "reconfigure")

    def processes(self) -> list[psutil.Process]:
        """All that jobs of this cluster have started and that runs, and what watches over them."""
        conf, found = self.environment["SLURM_CONF"], []
        for process in psutil.process_iter(["name"]):
            environ = _environ(process)
            of_a_job = (
                "SLURM_JOB_ID" in environ or process.info["name"] == "slurmstepd"
            )  # not who only asks the cluster
            if of_a_job and environ.get("SLURM_CONF") == conf:
                found.append(process)
        return found

    def rank(self, number: str, rank: int) -> int:
        """The process of a rank of a job.

        Raises:
            AssertionError: there is none.
        """
        for process in self.processes():
            environ = _environ(process)
            if (environ.get("SLURM_JOB_ID"), environ.get("SLURM_PROCID")) == (number, str(rank)) and _is_lanes(process):
                return process.pid
        raise AssertionError(f"job {number} has no rank {rank} now")


@contextmanager
def cluster(
    folder: Path, *, kill_wait_s: int = 10, grace_s: int = 30, node_timeout_s: int = 30, nets: Networks | None = None
) -> Iterator[Cluster]:
    """Start a cluster, and end it and whatever its jobs have left.

    Args:
        folder: for all that it keeps, for its own.
        kill_wait_s: between SIGTERM and SIGKILL.
        grace_s: that a job of the partition "main" has when one of "high" wants its nodes.
        node_timeout_s: after which a node that does not answer is down.
        nets: of its nodes, named as NODES; by default they share the machine's.
    """
    found = Cluster(folder)
    host = socket.gethostname()
    for name in ("munge", "state", "log", "spool/node1", "spool/node2"):
        (folder / name).mkdir(parents=True, mode=0o755)
    user = psutil.Process().username()
    (folder / "slurm.conf").write_text(
        CONF.format(
            folder=folder,
            host=host,
            user=user,
            names=NODES if nets else (host, host),
            addresses=[nets.addresses[node] if nets else "127.0.0.1" for node in NODES],
            controller=nets.controller if nets else "127.0.0.1",
            more="",
            ports=_free_ports(3),
            first_job=random.randint(1000, 9000),  # the ports of jobs follow from it
            cpus=CPUS,
            kill_wait_s=kill_wait_s,
            grace_s=grace_s,
            node_timeout_s=node_timeout_s,
        )
    )
    daemons = [_munged(folder, found.environment)]
    try:
        daemons.append(_daemon(folder, found.environment, "slurmctld", "-D", "-i"))
        for node in NODES:
            words = ["slurmd", "-D", "-N", node]
            daemons.append(_daemon(folder, found.environment, *(nets.inside(node, words) if nets else words)))
        up = lambda: found.run("sinfo", "-h", "-o", "%T %D").split() == ["idle", "2"]  # noqa: E731
        wait_for(lambda: _holds(up), 30, said=lambda: _logs(folder))
        yield found
    finally:
        _end(found, daemons)


def _end(found: Cluster, daemons: list[subprocess.Popen[bytes]]) -> None:
    with suppress(AssertionError, subprocess.TimeoutExpired):
        found.run("scancel", "--full", "--signal=KILL", "--user", psutil.Process().username())
        found.run("scancel", "--user", psutil.Process().username())
        wait_for(lambda: not found.run("squeue", "-h"), 10)
    for daemon in reversed(daemons):
        daemon.terminate()
        try:
            daemon.wait(5)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
    for process in found.processes():  # slurmstepd and what it has started
        with suppress(psutil.Error):
            process.kill()


def _munged(folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    key, sock = folder / "munge" / "key", folder / "munge" / "socket"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    options = {"key-file": key, "socket": sock, "pid-file": folder / "munge" / "pid"}
    options |= {"log-file": folder / "munge" / "log", "seed-file": folder / "munge" / "seed"}
    words = ["munged", "--foreground", "--force", *(f"--{name}={value}" for name, value in options.items())]
    started = _daemon(folder, environment, *words)
    wait_for(sock.exists, 10, said=lambda: _logs(folder))
    return started


def _daemon(folder: Path, environment: dict[str, str], *words: str) -> subprocess.Popen[bytes]:
    said = folder / "log" / f"{len(list((folder / 'log').iterdir()))}-{words[0]}.said"
    program = shutil.which(words[0], path=environment["PATH"])
    assert program is not None
    with said.open("wb") as out:
        null = subprocess.DEVNULL
        return subprocess.Popen([program, *words[1:]], env=environment, stdout=out, stderr=out, stdin=null)


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for opened in sockets:
        opened.bind(("", 0))
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def _environ(process: psutil.Process) -> dict[str, str]:
    with suppress(psutil.Error, OSError):
        return dict(process.environ())
    return {}


def _is_lanes(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return any(word.endswith("bin/lanes") for word in process.cmdline()[:2]) and process.parent() is not None
    return False


def _holds(what: Callable[[], bool]) -> bool:
    try:
        return what()
    except AssertionError:
        return False


def _logs(folder: Path) -> str:
    return "\n".join(f"== {path.name}\n{path.read_text()[-2000:]}" for path in sorted((folder / "log").iterdir()))
