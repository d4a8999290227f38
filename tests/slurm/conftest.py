"""SLURM for the tests in this folder: installed where CI may do so, else they are skipped, which says why."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, cluster, missing
from tests.slurm.desk import Desk

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
INSTALL = (
    "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -qq -y "
    f"--no-install-recommends {' '.join(PACKAGES)}"
)


@pytest.fixture(scope="session")
def slurm() -> None:
    """The programs are there."""
    if missing() and os.environ.get("CI") == "true":
        installed = subprocess.run(["bash", "-c", INSTALL], capture_output=True, text=True, check=False)
        if missing():
            pytest.skip(f"SLURM could not be installed: {installed.stderr[-300:]}")
    if missing():
        pytest.skip(f"no {', '.join(missing())}; Debian's packages {', '.join(PACKAGES)} have them (as root)")
    if os.geteuid() != 0:
        pytest.skip("a cluster of one's own needs root here: slurmd starts jobs as other users")


@pytest.fixture(scope="module")
def lab(slurm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of two nodes."""
    with cluster(tmp_path_factory.mktemp("lab")) as found:
        yield found


@pytest.fixture
def desk(lab: Cluster, tmp_path: Path) -> Desk:
    """A folder from which jobs are submitted."""
    return Desk(lab, tmp_path)
