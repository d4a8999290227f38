"""Which run's folder a verb works in, and from which of its checkpoints it goes on.

Kept out: how folders are numbered and checkpoints found in them (run_folders.py).
"""

import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lanes.checkpoint import read_manifest
from lanes.faults.supervisor import RESTARTED
from lanes.jobs.attempts import wandb_run
from lanes.jobs.job import this_job
from lanes.training.run_folders import check_name, last_checkpoint, last_run, next_folder, run_of

RUN_FOLDER = "LANES_RUN_FOLDER"  # tells the processes that Lightning starts which folder the first one chose


def place_run(config: Any, verb: str) -> None:
    """Put the run's folder, its log and its checkpoints into the configuration of a verb.

    Raises:
        ValueError: as :func:`choose_run`.
    """
    fits = verb == "fit"
    run, goes_on = choose_run(config, fits=fits)
    folder, logger = run or Path(config.trainer.default_root_dir), config.trainer.logger
    ours = hasattr(logger, "class_path") and logger.class_path.endswith("LanesLogger")
    if not fits:
        if verb not in ("plan", "check"):  # what an evaluation writes lies with the run that it evaluates
            folder = run_of(config.ckpt_path)
        if ours:  # a run of its own for a few figures that are printed; another logger was asked for
            config.trainer.logger, ours = False, False
    config.trainer.default_root_dir = str(folder)
    if ours:
        settings = logger.init_args
        settings.save_dir = folder
        if goes_on and config.ckpt_path:
            settings.run_id = settings.run_id or read_manifest(config.ckpt_path).get("wandb_run_id")
        if fits and this_job():  # one run there, also if it ends before its first checkpoint
            settings.run_id = settings.run_id or wandb_run(folder) or uuid.uuid4().hex[:8]
        settings.name = settings.name or "-".join(folder.parts[-2:])
    if config.checkpoint.dirpath is None:
        config.checkpoint.dirpath = str(folder / "checkpoints")


def steps_of(checkpoint: str | None) -> int | None:
    """The steps that a checkpoint has; None if there is none of ours there."""
    with suppress(OSError, ValueError):
        return read_manifest(checkpoint).get("step") if checkpoint else None
    return None


def choose_run(config: Any, *, fits: bool) -> tuple[Path | None, bool]:
    """The folder of the run, and whether it is one that goes on; puts the checkpoint to go on from into ``ckpt_path``.

    A job of SLURM has a run of its own, named after it, and each of its processes finds it alone; started again it
    goes on in it, whatever checkpoint its command names. So does every ``fit`` that is given ``--run NAME``. Otherwise
    "last" is the newest run, and a new run takes the next number.

    Args:
        config: of the verb; changed in place.
        fits: whether the verb trains.

    Returns:
        None for the folder of a verb that does not train: it has none of its own.

    Raises:
        ValueError: there is no such run or checkpoint, or "last" is not said of which run.
    """
    root = Path(config.trainer.default_root_dir)
    job, chosen = this_job() if fits else None, os.environ.get(RUN_FOLDER)
    last = config.get("ckpt_path") == "last"
    if last and job and not (config.run or chosen):
        raise ValueError(
            "--ckpt_path last, in a job: which run is the newest may change while processes look; say which goes on, "
            f"e.g. --run {job.run}"
        )
    name = check_name(config.run) if config.run else job.run if job else None
    named = root / name if name else None
    run = Path(chosen) if chosen else named
    again = os.environ.get(RESTARTED, "0") != "0"
    going_on = last or again or bool(fits and named and last_checkpoint(named)[0])
    if going_on:
        run = run or last_run(root)
        _go_on(config, run, root, fits=fits)
    if fits:
        run = Path(os.environ.setdefault(RUN_FOLDER, str(run or next_folder(root))))
    return run, going_on


def _go_on(config: Any, run: Path | None, root: Path, *, fits: bool) -> None:
    """Put the newest whole checkpoint of a run in the place of the one that is asked for.

    If the run has come to no checkpoint yet it begins anew there, so that what is started again and again needs no
    other command the first time.
    """
    found, wrong = last_checkpoint(run) if run else (None, [])
    for problem in wrong:
        rank_zero_info(f"not taken: {problem}")
    if found is None and not fits:
        raise ValueError(f"there is no checkpoint in {run or root} to go by; give --ckpt_path the folder of one")
    begins_anew = f"no checkpoint in {run or root} yet: training begins anew"
    step = read_manifest(found)["step"] if found else None
    rank_zero_info(f"going on from {found}, after {step} steps" if found else begins_anew)
    config.ckpt_path = str(found) if found else None
