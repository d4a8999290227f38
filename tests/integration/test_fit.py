"""The command line from end to end: train, evaluate, predict, plan, resume on another layout."""

import csv
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import lanes as package
from lanes.models import SmallAlexNet
from lanes.training import Classifier, Photographs
from tests.integration.command import CONFIG, ROOT, lanes
from tests.integration.test_replicas import Recorder, make_trainer
from tests.ranks import Ranks

NUM_TRAIN, NUM_VAL, BATCH, EPOCHS, LANES = 128, 41, 16, 2, 4
SET = (
    *("--model.net.init_args.lanes", LANES, "--data.init_args.batch_size", BATCH, "--trainer.log_every_n_steps", 1),
    *("--data.init_args.num_train", NUM_TRAIN, "--data.init_args.num_val", NUM_VAL),
)
STEPS = EPOCHS * NUM_TRAIN // BATCH
RUN = Path("runs") / "photographs" / "1"


class Fit(NamedTuple):
    """A finished run."""

    folder: Path
    answer: subprocess.CompletedProcess[str]

    @property
    def said(self) -> list[str]:
        return [line for line in self.answer.stdout.splitlines() if line.strip()]

    @property
    def result(self) -> str:
        """The line with the accuracy."""
        return next(line for line in self.said if line.startswith("validation top-1"))

    @property
    def places(self) -> dict[str, str]:
        """What the lines behind it say, by label."""
        return dict(line.split(":", 1) for line in self.said[self.said.index(self.result) + 1 :])

    @property
    def last(self) -> Path:
        return self.folder / RUN / "checkpoints" / "last.ckpt"


def number(label: str, text: str) -> float:
    found = re.search(rf"{re.escape(label)}\D*?([0-9.]+(?:e-?\d+)?)", text)
    assert found, f"no {label!r} in {text!r}"
    return float(found.group(1))


@pytest.fixture(scope="module")
def fit(tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """Two epochs of four lanes on two lane devices."""
    folder = tmp_path_factory.mktemp("fit")
    options = ("--trainer.max_epochs", EPOCHS, "--checkpoint.mode", "min")
    return Fit(folder, lanes("fit", "-c", CONFIG, *SET, *options, folder=folder))


def test_ends_well(fit: Fit) -> None:
    assert fit.answer.returncode == 0, fit.answer.stderr
    assert "Traceback" not in fit.answer.stderr
    assert "Warning" not in fit.answer.stderr, fit.answer.stderr


def test_last_lines_say_how_it_went_and_where_everything_is(fit: Fit) -> None:
    assert f"after {STEPS} steps" in fit.result
    wanted = ["best checkpoint", "last checkpoint", "log", "filter pictures", "filter film", "more pictures", "report"]
    assert list(fit.places) == wanted
    assert fit.places["more pictures"].strip() == f"{RUN}/predictions, specialisation, squares"
    places = [place.split(",")[0].split()[0] for place in fit.places.values()]
    checkpoint, last, log, pictures, film, predictions, report = (fit.folder / place for place in places)
    assert list(predictions.glob("*.png"))
    assert last == fit.last
    assert {file.name for file in checkpoint.iterdir()} == {
        "model.safetensors",
        "manifest.json",
        "optimizer.safetensors",
        "state.json",
    }
    assert list(log.glob("*.wandb"))
    assert pictures.is_dir()
    with Image.open(film) as opened:
        assert getattr(opened, "n_frames", 1) == 1 + EPOCHS
    assert "filters/lane1/conv1" in report.read_text()


@pytest.mark.parametrize("which", ["best", "last"])
def test_the_accuracy_shown_is_the_checkpoints(fit: Fit, which: str) -> None:
    """Of the plain model with its weights; the fixture keeps the worse epoch as the best."""
    shown = {"best": fit.places["best checkpoint"], "last": fit.result}[which]
    net = SmallAlexNet(10, LANES)
    net.load_state_dict(load_file(fit.folder / fit.places[f"{which} checkpoint"].split()[0] / "model.safetensors"))
    data = Photographs(BATCH, num_train=NUM_TRAIN, num_val=NUM_VAL)
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (data.mean, data.std))
    with torch.no_grad():
        logits = net.eval()((data.val_set.images / 255 - mean) / std)
    top1 = (logits.argmax(1) == data.val_set.labels).float().mean().item()
    assert number("top-1", shown) == pytest.approx(100 * top1, abs=0.006)


def test_one_folder_with_the_config_and_the_filters(fit: Fit) -> None:
    assert [path.name for path in (fit.folder / RUN.parent).iterdir()] == ["1"], "all processes share one run folder"
    config = yaml.safe_load((fit.folder / RUN / "config.yaml").read_text())
    assert config["model"]["net"]["init_args"]["lanes"] == LANES
    assert config["trainer"]["max_epochs"] == EPOCHS
    pictures = sorted(path.name for path in (fit.folder / RUN / "filters").iterdir())
    steps = [0, STEPS // 2, STEPS]  # before training, and after each epoch
    assert pictures == sorted(f"filters-conv1-lane{i}-step{step:06d}.png" for i in range(LANES) for step in steps)
    for name in pictures:
        with Image.open(fit.folder / RUN / "filters" / name) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 10, f"{name} shows nothing"


def test_plan_and_mesh_before_the_first_step(fit: Fit) -> None:
    shown = fit.answer.stderr + fit.answer.stdout
    assert "mesh: 1 replica x 2 lane devices on cpu" in fit.answer.stderr
    assert re.search(r"conv3 +Conv2d +crosses: gather", fit.answer.stderr)
    assert "MiB on each device" in shown
    assert shown.index("conv3") < shown.index("`Trainer.fit` stopped")
    assert shown.count("crosses: leave_sum") == 1, "said once, not by every process"


def test_validate_on_one_device(fit: Fit) -> None:
    """The same figures as the last validation on two lane devices; the loss to float32's rounding."""
    arguments = ("--trainer.devices", 1, "--ckpt_path", fit.last)
    answer = lanes("validate", "-c", CONFIG, *SET, *arguments, folder=fit.folder)
    assert answer.returncode == 0, answer.stderr
    assert number("top-1", fit.result) == pytest.approx(100 * number("val/top1", answer.stdout), abs=0.006)
    assert number("loss", fit.result) == pytest.approx(number("val/loss", answer.stdout), abs=6e-5)  # 4 digits shown


def predictions(folder: Path) -> list[list[dict[str, str]]]:
    """Rows of each file, by name."""
    files = sorted(folder.rglob("predictions-*.csv"))
    return [list(csv.DictReader(file.open())) for file in files]


@pytest.mark.parametrize("replicas", [1, 2])
def test_predict_writes_every_image_once(fit: Fit, replicas: int, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(fit.last, tmp_path / "run" / "checkpoints" / "last.ckpt")
    (tmp_path / "run" / "predictions-7.csv").write_text("of an earlier layout")
    arguments = ("--trainer.devices", replicas, "--trainer.strategy.lane_devices", 1, "--ckpt_path", checkpoint)
    answer = lanes("predict", "-c", CONFIG, *SET, *arguments, folder=tmp_path)
    assert answer.returncode == 0, answer.stderr
    files = predictions(tmp_path)
    assert len(files) == replicas
    assert "predictions" in answer.stdout.splitlines()[-1]
    rows = [row for rows in files for row in rows]
    assert sorted(int(row["index"]) for row in rows) == list(range(NUM_VAL))
    data = Photographs(BATCH, num_train=NUM_TRAIN, num_val=NUM_VAL)
    assert all(int(row["label"]) == int(data.val_set.labels[int(row["index"])]) for row in rows)
    hits = sum(int(row["classes"].split()[0]) == int(row["label"]) for row in rows)
    assert 100 * hits / NUM_VAL == pytest.approx(number("top-1", fit.result), abs=0.006)


def test_plan(tmp_path: Path) -> None:
    answer = lanes("plan", "-c", CONFIG, "--save", "plan.yaml", folder=tmp_path)
    assert answer.returncode == 0, answer.stderr
    mesh, table = answer.stdout.split("\n", 1)
    assert mesh == "mesh: 1 x 2 (replicas x lane devices)"
    assert str(package.Plan.load(tmp_path / "plan.yaml")).strip() == table.strip()
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"], "a plan costs nothing: no run folder"


def test_help_answers_at_once() -> None:
    code = "import sys; from lanes.cli import main; main(['--help']); print('torch' in sys.modules, file=sys.stderr)"
    start = time.perf_counter()
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    assert "usage: lanes VERB" in answer.stdout
    assert answer.stderr.strip() == "False", "torch was imported"
    assert seconds < 1


def test_resume_by_the_command(fit: Fit, tmp_path: Path) -> None:
    """From one replica on two lane devices to two replicas of two, with an epoch of half as many steps."""
    epochs = 1
    layout = ("--trainer.devices", 4, "--trainer.strategy.lane_devices", 2, "--trainer.max_epochs", EPOCHS + epochs)
    answer = lanes("fit", "-c", CONFIG, *SET, *layout, "--ckpt_path", fit.last, folder=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "mesh: 2 replicas x 2 lane devices" in answer.stderr
    steps = STEPS + epochs * NUM_TRAIN // BATCH // 2
    line = next(line for line in answer.stdout.splitlines() if line.startswith("validation top-1"))
    assert f"after {steps} steps" in line
    assert 0 < number("loss", line) < 10
    before, after = (load_file(run / "model.safetensors") for run in (fit.last, last_of(tmp_path)))
    assert {n: t.shape for n, t in after.items()} == {n: t.shape for n, t in before.items()}
    assert not torch.equal(before["conv1.weight"], after["conv1.weight"])
    SmallAlexNet(10, LANES).load_state_dict(after)


def last_of(folder: Path) -> Path:
    (found,) = folder.rglob("last.ckpt")
    return found


def go_on(checkpoint: str, lane_devices: int) -> dict[str, Any]:
    """Resume on this process's mesh for one epoch, the seed and the optimizer as in the config's run."""
    recorder = Recorder()
    trainer = make_trainer(lane_devices, max_epochs=EPOCHS + 1, limit_val_batches=0, callbacks=[recorder])
    optimizer = partial(torch.optim.SGD, lr=0.002, momentum=0.9, weight_decay=5e-4)
    module = Classifier(partial(SmallAlexNet, 10, LANES), image_shape=(3, 64, 64), optimizer=optimizer)
    data = Photographs(BATCH, num_train=NUM_TRAIN, num_val=10)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    momenta = [state["momentum_buffer"] for state in trainer.optimizers[0].state.values()]
    return {
        "steps": trainer.global_step,
        "losses": recorder.losses,
        "momenta": sum(float(m.full_tensor().abs().sum()) for m in momenta),
    }


@pytest.mark.parametrize("mesh", ["1x1", "1x4", "2x2"])
def test_resume_on_other_layouts(fit: Fit, ranks: Ranks, mesh: str) -> None:
    replicas, lane_devices = map(int, mesh.split("x"))
    answers = ranks(go_on, replicas * lane_devices, str(fit.last), lane_devices)
    own_steps = NUM_TRAIN // BATCH // replicas
    for answer in answers:
        assert answer["steps"] == STEPS + own_steps
        assert len(answer["losses"]) == own_steps
        assert all(0 < loss < 10 for loss in answer["losses"])
        assert answer["momenta"] > 0
    if replicas == 1:  # the same first batch, masks and weights: the same loss as on any other layout
        first = ranks(go_on, 2, str(fit.last), 2)[0]["losses"][0]
        assert answers[0]["losses"][0] == pytest.approx(first, abs=1e-5)


def test_an_evaluation_keeps_the_logger_that_was_asked_for(fit: Fit, tmp_path: Path) -> None:
    logger = ("--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", tmp_path / "log")
    answer = lanes(
        "validate", "-c", CONFIG, *SET, "--trainer.devices", 1, *logger, "--ckpt_path", fit.last, folder=tmp_path
    )
    assert answer.returncode == 0, answer.stderr
    assert "val/top1" in next((tmp_path / "log").rglob("metrics.csv")).read_text()
