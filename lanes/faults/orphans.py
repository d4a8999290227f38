"""No process outlives the one that has started it, however that ended.

Imports next to nothing: a process must see to it before it loads what takes seconds.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
SUPERVISOR = "LANES_SUPERVISOR"  # tells a process who started it


def end_with_supervisor() -> None:
    """Have the kernel end this process when its supervisor ends, however that may be (on Linux).

    Raises:
        SystemExit: it has ended already.
    """
    torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if not (torchrun or SUPERVISOR in os.environ) or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    started_by = os.environ.get(SUPERVISOR)
    if started_by and os.getppid() != int(started_by):  # it was quicker
        raise SystemExit(f"lanes: the process {started_by}, which has started this one, has ended")
