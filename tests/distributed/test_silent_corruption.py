"""What nobody would notice: another batch on one device, a flipped bit, a gradient that is no number. Each is caught.

Real trainings; the fault is put into one process. The same trainings without it are not disturbed.
"""

import json
import logging
import math
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from lanes.checkpoint import newest_whole
from lanes.faults.agreement import SIGNALS, Agreement, UnlikeError
from lanes.faults.last import LastCheckpoint
from lanes.layers import local
from lanes.mesh import DATA_AXIS, axis
from lanes.training import Classifier, WarmupCosine, WeightAverage
from lanes.training.health import Health, NonFiniteError
from tests.integration.test_replicas import make_trainer, mixed, photos
from tests.parity import whole
from tests.ranks import Ranks

MESHES = {"1x2": (2, 2), "2x2": (4, 2), "4x1": (4, 1)}  # data x lane: ranks, lane devices
STEPS, BATCH, EVERY = 6, 4, 2
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=5e-4)
ADAMW = partial(torch.optim.AdamW, lr=1e-3)
Tensors = dict[str, Tensor]


def laned() -> nn.Module:
    """Four lanes, on any number of devices."""
    net = mixed(dropout=False)  # which no random numbers make depend on the number of the batch
    net.lanes = 4
    return net


class Spoilt(Classifier):
    """Is given, at some of its batches (counted from 1), something bad on one process."""

    what = ""  # "batch": other images; "images": that are no numbers; "gradient": one of conv2's is none
    at: tuple[int, ...] = ()
    rank = -1

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, labels = batch
        if self._now("batch"):
            return images.flip(0), labels
        if self._now("images") and axis(self.device_mesh, DATA_AXIS).index == self._replica:
            return images / 0, labels
        return batch

    def on_after_backward(self) -> None:
        net: Any = self.net
        if self._now("gradient") and dist.get_rank() == self.rank:
            local(net.conv2.weight.grad)[-1, 0, 0, 0] = math.nan

    @property
    def _replica(self) -> int:
        return self.rank // (dist.get_world_size() // axis(self.device_mesh, DATA_AXIS).size)

    def _now(self, what: str) -> bool:
        read = self.trainer.fit_loop.epoch_loop.batch_progress.current
        number = read.ready + (what in ("batch", "images"))  # which come before it is counted
        mine = what != "batch" or dist.get_rank() == self.rank
        return self.what == what and number in self.at and mine


class Flip(Callback):
    """Flips the lowest bit of one number of one process, after a step."""

    def __init__(self, what: str, step: int, rank: int) -> None:
        self.what, self.step, self.rank = what, step, rank

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step and dist.get_rank() == self.rank:
            name, _, key = self.what.partition(":")
            parameter = pl_module.net.get_parameter(name)
            tensor = trainer.optimizers[0].state[parameter][key] if key else parameter
            local(tensor.detach()).view(torch.int32).flatten()[0] ^= 1


class Record(Callback):
    """What this process read, its rates, and the tensors when a step is about to be made."""

    def __init__(self) -> None:
        self.read, self.rates, self.tensors = [], [], []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.read.append(batch[1].clone())
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        average = next(iter(c for c in trainer.callbacks if isinstance(c, WeightAverage)), None)
        kept = average.checkpoint_tensors(pl_module) if average else {}
        self.tensors.append({"average": {name: whole(t) for name, t in kept.items()}, **held(trainer, pl_module)})


def held(trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensors]:
    """Weights, statistics, momenta."""
    state = trainer.optimizers[0].state
    momenta = {
        f"{name}.{key}": whole(value)
        for name, parameter in pl_module.net.named_parameters()
        for key, value in state[parameter].items()
        if isinstance(value, Tensor)
    }
    return {"model": {n: whole(t) for n, t in pl_module.net.state_dict().items()}, "optimizer": momenta}


def train(
    lane_devices: int,
    folder: str,
    fault: dict[str, Any] | None = None,
    *,
    callbacks: tuple[Callback, ...] = (),
    optimizer: Any = SGD,
    schedule: Any = None,
    left_out: tuple[int, ...] = (),
    **options: Any,
) -> dict[str, Any]:
    """One epoch; returns how it ended and what was seen."""
    module = Spoilt(laned, image_shape=(3, 16, 16), optimizer=optimizer, schedule=schedule)
    for name, value in (fault or {}).items():
        setattr(module, name, value)
    record = Record()
    keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=EVERY, save_top_k=-1)
    callbacks = (*callbacks, record, *([keep] if folder else []))
    options = {
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "log_every_n_steps": 1,
        "use_distributed_sampler": False,
        **options,
    }
    trainer = make_trainer(lane_devices, callbacks=list(callbacks), **options)
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda line: told.append(line.getMessage())  # type: ignore[method-assign]
    logging.getLogger("lanes").addHandler(handler)
    replica, replicas = dist.get_rank() // lane_devices, dist.get_world_size() // lane_devices
    # In order, and divided by hand: the trainer's sampler shuffles, other numbers of batches in other ways.
    batches = [i for i in range(STEPS * replicas) if i % replicas == replica and i // replicas + 1 not in left_out]
    chosen = [image for i in batches for image in range(i * BATCH, (i + 1) * BATCH)]
    end, handlers = None, {number: signal.getsignal(number) for number in SIGNALS}
    try:
        trainer.fit(module, DataLoader(Subset(photos(STEPS * replicas * BATCH), chosen), BATCH))
    except (UnlikeError, NonFiniteError) as error:
        end = error
    finally:
        for number, before in handlers.items():  # the process serves other tests
            signal.signal(number, before)
        logging.getLogger("lanes").removeHandler(handler)
    logged = {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("health/") and "lane" not in k}
    answer = {"end": type(end).__name__, "said": str(end), "told": told, "steps": trainer.global_step, "logged": logged}
    return answer | {"seen": record.tensors, "read": record.read, "rates": record.rates, **held(trainer, module)}


def same(ours: Tensors, theirs: Tensors) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


# ---- Another batch


@pytest.mark.parametrize(("mesh", "rank"), [("1x2", 1), ("2x2", 3)])
def test_another_batch_on_one_lane_device(ranks: Ranks, mesh: str, rank: int) -> None:
    """The same images in another order, and labels as they should be."""
    world, lane_devices = MESHES[mesh]
    fault = {"what": "batch", "at": (3,), "rank": rank}
    agreement = Agreement(LastCheckpoint("nowhere", 0))
    for answer in ranks(partial(train, callbacks=(agreement,)), world, lane_devices, "", fault):
        assert answer["end"] == "UnlikeError"
        culprit = f"lane device 1 of replica {rank // 2} (rank {rank})"
        assert f"step 3: {culprit} read another batch than lane device 0" in answer["said"]
        assert answer["steps"] == 2, "the third is not made"


# ---- A flipped bit


@pytest.mark.parametrize(
    ("mesh", "flip", "said"),
    [
        ("2x2", ("conv2.weight", 3, 3), ("conv2.weight on lane device 1 ", "rank 1 ", "rank 3 ", "no majority")),
        (
            "2x2",
            ("head.weight:momentum_buffer", 4, 2),
            ("head.weight.momentum_buffer on lane device 0 ", "rank 0 ", "rank 2 ", "no majority"),
        ),
        # What all lane devices hold: three others tell who is wrong.
        ("2x2", ("head.bias", 4, 1), ("head.bias is", "rank 1 (lane device 1 of replica 0, on ", "3 others")),
        ("1x2", ("head.bias", 3, 1), ("rank 0 ", "rank 1 ", "no majority")),
        ("4x1", ("fc6.weight", 3, 2), ("fc6.weight", "rank 2 (lane device 0 of replica 2, on ", "3 others")),
    ],
)
def test_a_flipped_bit(
    ranks: Ranks, tmp_path: Path, mesh: str, flip: tuple[str, int, int], said: tuple[str, ...]
) -> None:
    """The lowest bit of one number: caught at the next checkpoint, which is not written; the one before is whole."""
    world, lane_devices = MESHES[mesh]
    for answer in ranks(partial(train, callbacks=(Flip(*flip),)), world, lane_devices, str(tmp_path)):
        assert answer["end"] == "UnlikeError"
        assert answer["said"].startswith("step 4: no checkpoint is written: ")
        for words in said:
            assert words in answer["said"]
        assert answer["said"].endswith(f"; go on from {tmp_path}/step=2.ckpt")
        assert answer["steps"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["step=2.ckpt"]
    assert newest_whole(tmp_path) == (tmp_path / "step=2.ckpt", [])


@pytest.mark.parametrize(
    ("mesh", "options"),
    [
        ("2x2", {"optimizer": ADAMW, "gradient_clip_val": 0.1}),
        ("4x1", {"accumulate_grad_batches": 2}),
        ("1x2", {"optimizer": ADAMW}),
    ],
)
def test_nothing_is_said_of_what_is_right(ranks: Ranks, tmp_path: Path, mesh: str, options: dict[str, Any]) -> None:
    """Replicas have statistics of their own, which are averaged before anything is compared."""
    world, lane_devices = MESHES[mesh]
    callbacks = (Agreement(LastCheckpoint(tmp_path, 0)), Health(on_non_finite="skip"), WeightAverage(0.5))
    for answer in ranks(partial(train, callbacks=callbacks, **options), world, lane_devices, str(tmp_path)):
        assert (answer["end"], answer["told"]) == ("NoneType", [])
    manifest = json.loads((tmp_path / f"step={EVERY}.ckpt" / "manifest.json").read_text())
    assert "average.safetensors" in manifest["files"]


# ---- What is no number

IN_CONV2 = "a gradient is not finite, in backward order first the gradient of conv2, lane 3"


@pytest.mark.parametrize("mesh", ["1x2", "2x2"])
def test_stop(ranks: Ranks, mesh: str) -> None:
    world, lane_devices = MESHES[mesh]
    fault = {"what": "gradient", "at": (3,), "rank": world - 1}
    for answer in ranks(partial(train, callbacks=(Health(),)), world, lane_devices, "", fault):
        assert answer["end"] == "NonFiniteError"
        where = IN_CONV2 + " of replica 1" * (world == 4)
        assert answer["said"].startswith(f"training stopped at step 3: {where}; lower the learning rate")
        assert answer["steps"] == 2


@pytest.mark.parametrize(
    ("mesh", "what", "accumulate", "optimizer"),
    [
        ("1x2", "gradient", 1, SGD),
        ("1x2", "images", 2, ADAMW),
        ("2x2", "gradient", 1, ADAMW),
        ("2x2", "images", 1, SGD),
    ],
)
def test_skip(ranks: Ranks, mesh: str, what: str, accumulate: int, optimizer: Any) -> None:
    """As if the step's batches had never been; also what the bad images did to batch norm's statistics."""
    world, lane_devices = MESHES[mesh]
    fault = {"what": what, "at": (3,), "rank": world - 1}
    options = {"optimizer": optimizer, "accumulate_grad_batches": accumulate}
    skipping = partial(train, callbacks=(Health(on_non_finite="skip"),), **options)
    answers = ranks(skipping, world, lane_devices, "", fault)
    without = ranks(partial(train, left_out=(3,) if accumulate == 1 else (3, 4), **options), world, lane_devices, "")
    step = math.ceil(3 / accumulate)
    for ours, theirs in zip(answers, without, strict=True):
        assert (ours["end"], ours["steps"]) == ("NoneType", STEPS // accumulate)
        same(ours["model"], theirs["model"])
        same(ours["optimizer"], theirs["optimizer"])
        assert ours["logged"]["health/skipped_steps"] == 1
    loss = "the loss of replica 1 is" if world == 4 else "the loss is"
    assert len(answers[0]["told"]) == 1
    assert answers[0]["told"][0].startswith(
        f"step {step}: {'a gradient is' if what == 'gradient' else loss} not finite"
    )
    assert answers[0]["told"][0].endswith("; the step is skipped (1 so far)")
    assert all(not answer["told"] for answer in answers[1:]), "said once"


def test_not_skipped_for_ever(ranks: Ranks) -> None:
    """Bad steps apart from each other do not add up, those in a row do."""
    fault = {"what": "gradient", "at": (1, 3, 4, 5), "rank": 0}
    skipping = partial(train, callbacks=(Health(on_non_finite="skip", max_in_a_row=2),))
    for answer in ranks(skipping, 2, 2, "", fault):
        assert answer["end"] == "NonFiniteError"
        assert "training stopped at step 5: a gradient is not finite" in answer["said"]
        assert "after 2 skipped steps one after another (max_in_a_row); lower the learning rate" in answer["said"]
        assert answer["steps"] == 4


@pytest.mark.parametrize(("mesh", "what"), [("1x2", "gradient"), ("2x2", "images")])
def test_roll_back(ranks: Ranks, tmp_path: Path, mesh: str, what: str) -> None:
    """To the checkpoint, tensor by tensor; the batches that follow are read, and rates go on."""
    world, lane_devices = MESHES[mesh]
    options = {"optimizer": ADAMW, "schedule": WarmupCosine(0.1)}
    fault = {"what": what, "at": (4,), "rank": world - 1}
    callbacks = (Health(on_non_finite="roll_back"), WeightAverage(0.5))
    back = partial(train, callbacks=callbacks, **options)
    answers = ranks(back, world, lane_devices, str(tmp_path), fault)
    undisturbed = ranks(partial(train, **options), world, lane_devices, str(tmp_path / "undisturbed"))
    path = tmp_path / "step=2.ckpt"
    for ours, theirs in zip(answers, undisturbed, strict=True):
        assert (ours["end"], ours["steps"]) == ("NoneType", STEPS)
        for kind in ("model", "optimizer", "average"):
            same(ours["seen"][3][kind], load_file(path / f"{kind}.safetensors"))
        assert not torch.equal(ours["seen"][3]["model"]["conv2.weight"], theirs["seen"][3]["model"]["conv2.weight"])
        assert not torch.equal(ours["seen"][4]["model"]["conv2.weight"], ours["model"]["conv2.weight"]), "it goes on"
        assert all(torch.equal(a, b) for a, b in zip(ours["read"], theirs["read"], strict=True))
        assert ours["rates"] == theirs["rates"]
        assert len(set(ours["rates"])) == STEPS
        assert ours["logged"]["health/roll_backs"] == 1
        assert all(tensor.isfinite().all() for tensor in ours["model"].values())
    assert len(answers[0]["told"]) == 1
    assert (
        f"; training goes back to the weights of step 2 ({path}) and on with the batches that follow"
        in (answers[0]["told"][0])
    )


def test_nothing_to_go_back_to_and_too_often(ranks: Ranks, tmp_path: Path) -> None:
    """The second training finds the first one's checkpoints, of later steps than its own."""
    back = partial(train, callbacks=(Health(on_non_finite="roll_back", max_roll_backs=2),))
    for answer in ranks(back, 2, 2, str(tmp_path), {"what": "gradient", "at": (3, 4, 5, 6), "rank": 0}):
        assert "training stopped at step 5: a gradient" in answer["said"]
        assert "after going back 2 times (max_roll_backs)" in answer["said"]
    for answer in ranks(back, 2, 2, str(tmp_path), {"what": "gradient", "at": (2,), "rank": 0}):
        assert "training stopped at step 2: a gradient" in answer["said"]
        assert "there is no checkpoint of this training to go back to; lower" in answer["said"]
