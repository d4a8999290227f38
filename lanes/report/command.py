"""The verb ``report``: runs on disk as one HTML file, or live.

Kept out: reading, the page and the server.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lanes.report.page import write_report
from lanes.report.serving import LiveRuns, Server

DESCRIPTION = "Show runs on one page: the lanes' pictures, curves and numbers, step by step; two or more runs compared."
EPILOG = """RUN is a run's folder (.../wandb/offline-run-...), the folder that a training wrote (runs/photographs/1), or
a folder of such. Nothing is fetched from outside, and no account is needed; a run that was killed is shown up to what
wandb had written (within a second or, with other settings, 15)."""


def run(args: Sequence[str]) -> None:
    """``lanes report RUN [RUN ...] [-o FILE | --serve [--port PORT]]``.

    Raises:
        SystemExit: code 2 for a mistake in the arguments, after one line.
    """
    parser = argparse.ArgumentParser(prog="lanes report", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or a folder with runs in it")
    parser.add_argument("-o", "--output", default="report.html", metavar="FILE", help="default: report.html")
    parser.add_argument("--serve", action="store_true", help="show it live on 127.0.0.1 instead, until Ctrl-C")
    parser.add_argument("--port", type=int, default=0, help="of --serve; by default a free one")
    asked = parser.parse_args(args)
    try:
        if asked.serve:
            _serve(asked.runs, asked.port)
        else:
            _check_output(Path(asked.output))
            print(write_report(asked.runs, asked.output))
    except (ValueError, OSError) as mistake:
        if os.environ.get("LANES_DEBUG"):
            raise
        print(f"lanes report: error: {mistake}", file=sys.stderr)
        raise SystemExit(2) from None


def _check_output(output: Path) -> None:
    """Before the runs are read, which may take a while."""
    if output.is_dir():
        raise ValueError(f"-o {output} is a folder; name a file, e.g. {output / 'report.html'}")
    if not output.parent.is_dir():
        raise ValueError(f"-o {output}: there is no folder {output.parent}")


def _serve(places: Sequence[str], port: int) -> None:
    if not 0 <= port <= 65535:
        raise ValueError(f"--port {port} must be between 0 (a free one) and 65535")
    runs = LiveRuns(places)
    try:
        server = Server(runs, port=port)
    except OSError as mistake:
        raise ValueError(f"--port {port} cannot be used ({mistake.strerror}); leave it out for a free one") from mistake
    with server:
        print(f"{server.url}  (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
