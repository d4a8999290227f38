"""Runs the verbs that read a configuration, and tells mistakes in one line.

Kept out: the verbs (command_line.py).
"""

import os
import re
import sys
from typing import Any, NoReturn

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lanes.checkpoint import DamagedError
from lanes.data.decoding import BadImageError
from lanes.faults.agreement import StoppedError, UnlikeError
from lanes.faults.supervisor import end_with_supervisor
from lanes.training.command_line import RUN_FOLDER, LanesCLI, LostError, Mistake
from lanes.training.health import NonFiniteError
from lanes.training.mistakes import one_line
from lanes.training.quiet import hush

MISTAKES = (ValueError, OSError, ModuleNotFoundError, MisconfigurationException)


def run(verb: str, args: list[str]) -> None:
    """Run one verb.

    Raises:
        SystemExit: code 2 for a mistake in the input, 1 if training had to stop or a check failed; after one line.
    """
    hush()
    end_with_supervisor()
    cli: Any = None
    first = RUN_FOLDER not in os.environ
    try:
        cli = LanesCLI.__new__(LanesCLI)
        cli.__init__(verb, args)  # Lightning's own verbs run in it
        ours = {
            "plan": cli.show_plan,
            "check": cli.check_placed,
            "features": cli.write_features,
            "responses": cli.measure_responses,
        }
        if verb in ours:
            ours[verb]()
    except (StoppedError, UnlikeError, LostError, NonFiniteError, DamagedError) as end:
        # All of them stop; only the first process fails and says why: it would be ended if another failed before it.
        started = getattr(cli, "checked", False)
        if not started or cli.trainer.is_global_zero:
            code = 128 + end.signal if isinstance(end, StoppedError) else 1
            _fail(verb, end, code=code if started else 2)
    except Mistake as mistake:
        parsers = [cli.parser, *getattr(cli, "_subcommand_parsers", {}).values()]
        keys = [action.dest for parser in parsers for action in parser._actions]
        _fail(verb, Mistake(one_line(str(mistake), keys, args)))
    except BadImageError as bad:  # in one process; a loader's process has wrapped it into its stack trace
        _fail(verb, Mistake("bad image:" + str(bad).rpartition("bad image:")[2]), code=1 if cli.checked else 2)
    except RuntimeError as error:
        if not re.search("Connection (closed|reset) by peer", str(error)):
            raise
        _fail(verb, Mistake("another process has ended; why, it says above, unless it was killed"), code=1)
    except MISTAKES as mistake:
        if getattr(cli, "checked", False):
            raise
        # jsonargparse wraps what a constructor said into a page on every type that it tried.
        told = one_line(str(mistake), (), args) if "Union subtypes" in str(mistake) else str(mistake)
        _fail(verb, Mistake(told))
    finally:
        if first:
            os.environ.pop(RUN_FOLDER, None)  # a later run of this process gets a folder of its own


def _fail(verb: str, mistake: Exception, *, code: int = 2) -> NoReturn:
    if os.environ.get("LANES_DEBUG"):
        raise sys.exception() or mistake  # the first cause, which is being handled
    print(f"lanes {verb}: error: {' '.join(str(mistake).split())}", file=sys.stderr)
    raise SystemExit(code)
