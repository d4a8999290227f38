"""Looking through validation images disturbs no training, and finds the same on every layout."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader

from lanes.analysis.covariance import block_ratio, layer_covariances
from lanes.models import SmallAlexNet
from lanes.training import LayerSquares, SamplePredictions, WeightAverage
from lanes.training.validation_look import drawn_images
from tests.distributed.test_health import Memory
from tests.integration.test_replicas import Recorder, classifier, make_trainer, photos
from tests.ranks import Ranks

SIDE, TRAINING, VALIDATION, IMAGES = 28, 32, 50, 40
RATIO = "corr/conv2-conv3/ratio"


def net() -> SmallAlexNet:
    return SmallAlexNet(lanes=2, image_size=SIDE, width=0.5)


class Passing(Callback):
    """Whether the whole network was in training mode in every step, and the generator's state at the end."""

    def __init__(self) -> None:
        self.training: set[bool] = set()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        self.training |= {module.training for module in pl_module.net.modules()}  # type: ignore[union-attr]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.state = torch.get_rng_state()


def fitted(folder: str, lane_devices: int, looks: list[Callback], **options: Any) -> dict[str, Any]:
    """Two epochs; validation in the middle and at the end of each."""
    torch.manual_seed(5)
    recorder, passing, memory = Recorder(), Passing(), Memory()
    batch = 8 * lane_devices // torch.distributed.get_world_size()  # the same steps, whatever the replicas
    callbacks = [*looks, recorder, passing, *options.pop("more", [])]
    own = {"max_epochs": 2, "logger": memory, "callbacks": callbacks, "default_root_dir": folder, **options}
    trainer = make_trainer(lane_devices, val_check_interval=2, **own)
    module = classifier(net, SIDE)
    module.compile_backend = None
    training = DataLoader(photos(TRAINING, SIDE), batch, shuffle=True)
    trainer.fit(module, training, DataLoader(photos(VALIDATION, SIDE), 8))
    assert passing.training == {True}
    return {"losses": recorder.losses, "state": passing.state, "rows": memory.rows}


def with_and_without(folder: str, lane_devices: int) -> dict[str, Any]:
    looks: list[Callback] = [LayerSquares(images=IMAGES), SamplePredictions(images=5)]
    plain, looked = fitted(f"{folder}/plain", lane_devices, []), fitted(f"{folder}/looked", lane_devices, looks)
    assert [x.hex() for x in plain["losses"]] == [x.hex() for x in looked["losses"]]
    assert torch.equal(plain["state"], looked["state"])
    return {step: row[RATIO] for step, row in looked["rows"].items() if RATIO in row}


@pytest.mark.parametrize(("world", "lane_devices"), [(1, 1), (2, 2), (4, 2)])
def test_looking_does_not_disturb_and_sees_the_same(
    ranks: Ranks, tmp_path: Path, world: int, lane_devices: int
) -> None:
    ratios, *others = ranks(with_and_without, world, str(tmp_path), lane_devices, timeout_s=240)
    assert not any(others), "the first process alone draws and logs"
    names = {f"squares/squares-{pair}" for pair in ("conv2-conv3", "conv3-conv4", "conv4-conv5")}
    # Before training, and at the first validation of both epochs; not at the second.
    wanted = {f"{name}-step{step:06d}.png" for name in (*names, "predictions/predictions") for step in (0, 2, 6)}
    assert {str(path.relative_to(tmp_path / "looked")) for path in tmp_path.rglob("*.png")} == wanted
    assert list(ratios) == [0, 2, 6]
    torch.manual_seed(0)  # as the module draws its weights
    plain, pair = net(), ("conv2", "conv3")
    images = photos(VALIDATION, SIDE).tensors[0][drawn_images(VALIDATION, IMAGES)]
    square = layer_covariances(plain, [pair], [images])[pair]["whitened"]
    # Whitening divides by small standard deviations of responses in float32.
    assert ratios[0] == pytest.approx(block_ratio(square, 2), rel=1e-3)
    assert len(set(ratios.values())) == 3, "training changes what is seen"


def seen_weights(folder: str) -> list[bool]:
    """Whether a look saw the weights that are validated."""
    seen: list[bool] = []
    average = WeightAverage(0.5)

    class Spy(LayerSquares):
        def look(self, trainer: Trainer, module: Any) -> None:
            seen.append(average._in_use)

    fitted(folder, 1, [Spy(images=IMAGES)], more=[average])
    return seen


def test_looks_see_what_validation_sees(ranks: Ranks, tmp_path: Path) -> None:
    assert ranks(seen_weights, 1, str(tmp_path)) == [[False, True, True]]  # before training there is no average yet


class Watched(LightningDataModule):
    """Says in which stage of training it is asked to prepare a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stages: list[str] = []

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(photos(TRAINING, SIDE), 8)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(photos(VALIDATION, SIDE), 8)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        assert self.trainer is not None
        self.stages.append(str(self.trainer.state.stage))
        return batch


def stages_of_reading() -> tuple[list[str], set[bool]]:
    data = Watched()
    asked: list[str] = []
    training_after: set[bool] = set()

    class Spy(SamplePredictions):
        def look(self, trainer: Trainer, module: Any) -> None:
            before, data.stages = trainer.training, []
            self.read(trainer, self.stored)
            asked.extend(data.stages)
            training_after.add(trainer.training == before)

    make_trainer(1, callbacks=[Spy()], max_epochs=1).fit(classifier(net, SIDE), data)
    return asked, training_after


def test_images_are_read_as_in_evaluation(ranks: Ranks) -> None:
    """Also before training, when the trainer is training already: data modules would augment them."""
    assert ranks(stages_of_reading, 1) == [(["RunningStage.VALIDATING"] * 2, {True})]


def without_validation(folder: str) -> dict[str, Any]:
    looks: list[Callback] = [LayerSquares(images=IMAGES), SamplePredictions()]
    none = fitted(f"{folder}/none", 1, looks, limit_val_batches=0)
    rare = fitted(f"{folder}/rare", 1, [LayerSquares(images=IMAGES, every_n_epochs=2)])
    return {"none": none["rows"], "rare": [step for step, row in rare["rows"].items() if RATIO in row]}


def test_without_validation_there_is_nothing_to_look_at(ranks: Ranks, tmp_path: Path) -> None:
    (found,) = ranks(without_validation, 1, str(tmp_path))
    assert not any(RATIO in row for row in found["none"].values())
    assert not (tmp_path / "none" / "squares").exists()
    assert found["rare"] == [0, 6]


def too_few() -> list[str]:
    answers = []
    trainer = partial(make_trainer, 1, enable_progress_bar=False)
    for validation, look in (
        (DataLoader(photos(3, SIDE), 8), LayerSquares()),
        (DataLoader(Stream(), 8), SamplePredictions()),
    ):
        try:
            trainer(callbacks=[look]).fit(classifier(net, SIDE), DataLoader(photos(TRAINING, SIDE), 8), validation)
        except ValueError as mistake:
            answers.append(str(mistake))
    return answers


class Stream(torch.utils.data.IterableDataset[Any]):
    """Images that come one after the other."""

    def __iter__(self) -> Any:
        yield from photos(8, SIDE)


def test_what_cannot_be_seen_ends_before_training(ranks: Ranks) -> None:
    ((few, stream),) = ranks(too_few, 1)
    assert few.startswith("LayerSquares: 3 images of 36 pixels"), few
    assert "no images can be chosen" in stream


def compiled(folder: str) -> list[list[str]]:
    losses = []
    for looks in ([], [LayerSquares(images=IMAGES), SamplePredictions(images=3)]):
        torch._dynamo.reset()
        module = classifier(net, SIDE)
        module.compile_backend = "eager"
        recorder = Recorder()
        trainer = make_trainer(1, callbacks=[*looks, recorder], default_root_dir=folder)
        torch.manual_seed(5)
        trainer.fit(module, DataLoader(photos(TRAINING, SIDE), 8), DataLoader(photos(VALIDATION, SIDE), 8))
        losses.append([x.hex() for x in recorder.losses])
    return losses


def test_compiled_networks_are_looked_at_as_they_are(ranks: Ranks, tmp_path: Path) -> None:
    ((plain, looked),) = ranks(compiled, 1, str(tmp_path))
    assert plain == looked
    assert len(list(tmp_path.glob("squares/*.png"))) == 6
