"""Runs the verbs that read a configuration, and tells mistakes in one line.

Kept out: the verbs (command_line.py).
"""

import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from typing import Any, NoReturn

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lanes.checkpoint import DamagedError
from lanes.data.decoding import BadImageError
from lanes.faults.agreement import StoppedError, UnlikeError
from lanes.faults.orphans import SUPERVISOR
from lanes.faults.supervisor import end_agreed
from lanes.faults.watch import Watch, connection_lost
from lanes.jobs.attempts import SILENT, Attempt
from lanes.jobs.job import this_job
from lanes.jobs.verdict import AGAIN, judge, refuse
from lanes.network.addresses import MeetingError
from lanes.training.command_line import LanesCLI, LostError, Mistake
from lanes.training.health import NonFiniteError
from lanes.training.mistakes import one_line
from lanes.training.quiet import hush
from lanes.training.which_run import RUN_FOLDER

MISTAKES = (ValueError, OSError, ModuleNotFoundError, MisconfigurationException)

SILENT_S = 3
TOGETHER = (StoppedError, UnlikeError, LostError, NonFiniteError, DamagedError)


def run(verb: str, args: list[str]) -> None:
    """Run one verb.

    Raises:
        SystemExit: code 2 for a mistake in the input, 1 if training had to stop or a check failed; after one line.
    """
    hush()
    cli: Any = None
    first = RUN_FOLDER not in os.environ
    try:
        cli = LanesCLI.__new__(LanesCLI)
        _work(cli, verb, args)
    except MeetingError as missed:
        if not missed.speaks:
            raise SystemExit(2) from None
        _fail(verb, missed, alone=True)
    except TOGETHER as end:
        _end_together(verb, cli, end)
    except Mistake as mistake:
        parsers = [cli.parser, *getattr(cli, "_subcommand_parsers", {}).values()]
        keys = [action.dest for parser in parsers for action in parser._actions]
        _fail(verb, Mistake(one_line(str(mistake), keys, args)))
    except BadImageError as bad:  # in one process; a loader's process has wrapped it into its stack trace
        _fail(verb, Mistake("bad image:" + str(bad).rpartition("bad image:")[2]), code=1 if cli.checked else 2)
    except Exception as error:
        _end_by_another(verb, cli, error)
        if isinstance(error, MISTAKES) and not getattr(cli, "checked", False):
            # jsonargparse wraps what a constructor said into a page on every type that it tried.
            told = one_line(str(error), (), args) if "Union subtypes" in str(error) else str(error)
            _fail(verb, Mistake(told))
        if getattr(cli, "watch", None) is None:
            raise
        _end_by_error(verb, cli.watch)
    finally:
        if first:
            os.environ.pop(RUN_FOLDER, None)  # a later run of this process gets a folder of its own
        if held := getattr(cli, "held", None):
            held.release()


def _work(cli: Any, verb: str, args: list[str]) -> None:
    try:
        cli.__init__(verb, args)  # Lightning's own verbs run in it
        ours = {
            "plan": cli.show_plan,
            "check": cli.check_placed,
            "features": cli.write_features,
            "responses": cli.measure_responses,
        }
        if verb in ours:
            ours[verb]()
    except Exception as error:
        _note_in_job(cli, error)
        raise


def _note_in_job(cli: Any, error: Exception) -> None:
    """In a job, on its first process: how it ends, and whether it shall start again."""
    attempt: Attempt | None = getattr(cli, "attempt", None)
    again = isinstance(error, StoppedError) and error.signal != signal.SIGINT  # which somebody sends who wants the end
    if attempt is None:
        if again:  # a script's, in a job that makes several
            judge(AGAIN)
        elif _is_mistake(cli, error) and (job := this_job()) and not job.restarts:
            refuse("it would make the same mistake, which is told above")
        return  # what has trained before has no mistake: a node may; it is given up if that comes twice
    step = cli.trainer.global_step
    if isinstance(error, StoppedError) and not error.failure:
        attempt.stopped(signal.Signals(error.signal).name, step, again=again)
    else:
        attempt.failed(SILENT if connection_lost(error) else type(error).__name__, step)


def _is_mistake(cli: Any, error: Exception) -> bool:
    kinds = (Mistake, BadImageError, *MISTAKES, *TOGETHER)
    return isinstance(error, kinds) and not getattr(cli, "checked", False)


def _end_together(verb: str, cli: Any, end: Exception) -> None:
    """End what all processes end: the first says why, and fails; it would be ended if another failed before it."""
    if not getattr(cli, "checked", False):
        _fail(verb, end)
    if not cli.trainer.is_global_zero:
        return
    if isinstance(end, UnlikeError):  # started again, a supervisor may find them alike
        _fail(verb, end, code=1)
    if isinstance(end, StoppedError):
        print(f"lanes {verb}: {end}", file=sys.stderr)
        end_agreed(128 + end.signal)
    with suppress(SystemExit):
        _fail(verb, end, code=1)
    end_agreed(1)


def _end_by_another(verb: str, cli: Any, error: Exception) -> None:
    """End if the error is that another process has; who, a supervisor says, or else this one, if it can be told."""
    if not connection_lost(error):
        return
    watch: Watch | None = getattr(cli, "watch", None)
    if watch and SUPERVISOR in os.environ:
        raise SystemExit(1)
    who = watch and watch.who_ended
    said = f"another process has ended; why, it says above, unless it was killed ({error})"
    _fail(verb, RuntimeError(who or said), code=1)


def _end_by_error(verb: str, watch: Watch) -> NoReturn:
    """Show an error that nobody has thought of, and which process it is that ends of it."""
    traceback.print_exc()
    print(f"lanes {verb}: error: {watch.here} has failed by the error above", file=sys.stderr, flush=True)
    raise SystemExit(1)


def _fail(verb: str, mistake: Exception, *, code: int = 2, alone: bool = False) -> NoReturn:
    """Tell a mistake; unless this process alone has found it, the first one tells it for all."""
    if os.environ.get("LANES_DEBUG"):
        raise sys.exception() or mistake  # the first cause, which is being handled
    if code == 2 and not alone and int(os.environ.get("SLURM_PROCID", "0")):
        time.sleep(SILENT_S)  # the first process says it, and the others are ended
    print(f"lanes {verb}: error: {' '.join(str(mistake).split())}", file=sys.stderr)
    raise SystemExit(code)
