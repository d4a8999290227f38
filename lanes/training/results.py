"""What a run says at its end: how it went, and where everything is."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

from lanes.faults.last import LastCheckpoint
from lanes.report import write_report

COUNTERS = ("epoch", "step")  # what a ModelCheckpoint may go by to keep the newest
PICTURES = ("predictions", "specialisation", "squares")  # folders
NAMES = {"val/top1": "validation top-1", "val/top5": "top-5", "val/loss": "loss"}


def fit_results(trainer: Trainer, *, report: bool = False) -> str:
    """A few lines: accuracy, checkpoints, log, pictures.

    Args:
        trainer: after training.
        report: also write the run's page from its log, report.html.
    """
    folder = Path(trainer.default_root_dir)
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
    said = [f"{label} {_shown(k, metrics[k])}" for k, label in NAMES.items() if k in metrics]
    if not said and "train/loss" in metrics:
        said = [f"training loss {_shown('train/loss', metrics['train/loss'])} (there was no validation)"]
    if not said:
        return f"\nnothing was left to train: {trainer.global_step} steps are done; raise trainer.max_epochs"
    validated: Any = getattr(trainer.lightning_module, "validated_at_step", None)
    after = f"after {trainer.global_step} steps"
    if validated not in (None, trainer.global_step):  # a run may end in the middle of an epoch
        after = f"after {validated} of {trainer.global_step} steps"
    lines = [f"\n{', '.join(said)} {after}"]
    for stopper in trainer.early_stopping_callbacks:
        if getattr(stopper, "stopped_epoch", 0):
            monitor: Any = getattr(stopper, "monitor", "")
            lines.append(f"stopped early, after epoch {trainer.current_epoch}: {monitor} did not improve")
    places = _checkpoints(trainer)
    log = getattr(trainer.logger, "run_folder", None)
    places += [("log", log, ""), ("filter pictures", folder / "filters", "")]
    places += [("filter film", film, "") for film in sorted(folder.glob("filters-*.gif"))]
    if more := [name for name in PICTURES if (folder / name).is_dir()]:
        places.append(("more pictures", folder / more[0], "".join(f", {name}" for name in more[1:])))
    if report and log:
        places.append(("report", _written_report(log, folder / "report.html"), ""))
    for label, place, remark in places:
        if place and Path(place).exists():
            lines.append(f"{label + ':':17}{near_path(place)}{remark}")
    return "\n".join(lines)


def _checkpoints(trainer: Trainer) -> list[tuple[str, Any, str]]:
    """What the callbacks keep: what to call it, where it is, a remark."""
    places: list[tuple[str, Any, str]] = []
    for checkpoint in trainer.checkpoint_callbacks:
        if isinstance(checkpoint, LastCheckpoint):
            places.append(("last checkpoint", checkpoint.path, ""))
        if not isinstance(checkpoint, ModelCheckpoint):
            continue
        monitor, score, newest = checkpoint.monitor, checkpoint.best_model_score, checkpoint.best_model_path
        if monitor is None or monitor in COUNTERS:
            kept = len(checkpoint.best_k_models)
            places.append(("also kept", newest, f"  (the newest of {kept} that are kept)" if kept > 1 else ""))
        elif score is not None:
            remark = f"  ({NAMES.get(monitor, monitor)} {_shown(monitor, float(score))})"
            places.append(("best checkpoint", newest, remark))
    return places


def _written_report(log: Path, page: Path) -> Path:
    """The page, or the one that an earlier run of this folder left: training does not fail by it."""
    try:
        write_report([log], page)
    except ValueError as error:
        rank_zero_warn(f"no report: {error}")
    return page


def _shown(metric: str, value: float) -> str:
    return f"{value:.2%}" if "top" in metric else f"{value:.4f}"


def near_path(path: str | Path) -> str:
    """A path as a person would write it from here."""
    path = Path(path)
    return str(path.relative_to(Path.cwd())) if path.is_absolute() and path.is_relative_to(Path.cwd()) else str(path)
