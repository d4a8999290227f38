"""The health of weights does not depend on the layout; what is not finite stops all processes together."""

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lanes
from lanes.analysis.health import LaneWeights
from lanes.mesh import LANE_AXIS, axis
from lanes.training import Classifier
from lanes.training.health import Health, NonFiniteError
from lanes.training.rates import Rates
from tests import networks
from tests.integration.test_replicas import classifier, make_trainer, photos
from tests.ranks import Ranks

LANES, RATE = 4, 0.1


class Laned(networks.Mixed):
    """A network that says how many lanes it has."""

    lanes = LANES


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(8, 3, 16, 16, generator=generator), torch.randint(0, 10, (8,), generator=generator)


def one_step(net: nn.Module) -> torch.optim.Optimizer:
    images, labels = batch()
    torch.manual_seed(1)
    F.cross_entropy(net(images.double()), labels).backward()
    return torch.optim.SGD(net.parameters(), lr=RATE)


def measured(build: Any, lane_devices: int) -> dict[str, float]:
    mesh = lanes.init_mesh(lane_devices)
    torch.manual_seed(0)
    net = build().double()
    plan = lanes.plan(net, batch()[0][:2].double(), lane_devices=lane_devices)
    lanes.place(net, plan, mesh)
    health = LaneWeights(net, plan, axis(mesh, LANE_AXIS))
    optimizer = one_step(net)
    before = health.snapshot()
    gradients = dict(zip(health.blocks, health.gradient_mean_abs().tolist(), strict=True))
    norm = float(health.gradient_norm())
    optimizer.step()
    values = health.measure(before)
    return values | {f"{block}/gradient": value for block, value in gradients.items()} | {"gradient_norm": norm}


def expected(build: Any, lanes_of: int) -> dict[str, float]:
    """Of the plain network, with blocks cut by hand."""
    torch.manual_seed(0)
    net = build().double()
    optimizer = one_step(net)
    gradients = [p.grad for p in net.parameters()]
    values = {"gradient_norm": float(torch.cat([g.flatten() for g in gradients if g is not None]).norm())}
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer.step()
    for name, parameter in net.named_parameters():
        layer, kind = name.rsplit(".", 1)
        if kind != "weight":
            continue
        number = 1 if layer == "head" else lanes_of
        for lane in range(number):
            block = f"{layer}/lane{lane}" if number > 1 else layer
            mine, moved, slope = (
                t.detach().chunk(number)[lane].abs().mean().item()
                for t in (parameter, parameter - before[name], parameter.grad)
            )
            values |= {f"{block}/weight_mean_abs": mine, f"{block}/update_mean_abs": moved}
            values |= {f"{block}/update_ratio": moved / mine, f"{block}/gradient": slope}
    return values


@pytest.mark.parametrize("lane_devices", [1, 2, 4])
def test_the_numbers_of_lanes_do_not_depend_on_devices(ranks: Ranks, lane_devices: int) -> None:
    """Layers split by outputs, by inputs (wide, fc5, head), and of two replicas."""
    wanted = expected(partial(Laned, 2, LANES), LANES)
    assert "head/update_ratio" in wanted
    assert "wide/lane3/update_ratio" in wanted
    for values in ranks(measured, lane_devices, partial(Laned, 2, LANES), lane_devices):
        assert values.keys() == wanted.keys()
        for name, value in values.items():
            assert value == pytest.approx(wanted[name], rel=1e-9), name


def test_without_a_number_of_lanes_devices_are_lanes(ranks: Ranks) -> None:
    values = ranks(measured, 2, networks.mixed_2d, 2)[0]
    wanted = expected(networks.mixed_2d, 2)
    assert values == pytest.approx(wanted, rel=1e-9)


class Memory(Logger):
    """Keeps what it is told."""

    name, version = "memory", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.setdefault(step or 0, {}).update(metrics)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass


class Before(Rates):
    """Keeps the weights of conv2 as they were before the last step."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.weight = whole(pl_module)


def whole(module: Any) -> Tensor:
    return module.net.conv2.weight.full_tensor().detach().clone()


SLOW_S = 0.05


class Slow(torch.utils.data.Dataset[Any]):
    """Images that take a while to come."""

    def __init__(self, count: int) -> None:
        self.photos = photos(count)

    def __len__(self) -> int:
        return len(self.photos)

    def __getitems__(self, indices: list[int]) -> list[Any]:
        time.sleep(SLOW_S)
        return [self.photos[i] for i in indices]


def logged() -> tuple[dict[int, dict[str, float]], float, int]:
    memory, before = Memory(), Before()
    trainer = make_trainer(2, logger=memory, log_every_n_steps=2, callbacks=[before, Health()], gradient_clip_val=0.5)
    module = classifier(partial(Laned, 2, LANES))
    trainer.fit(module, DataLoader(Slow(48), batch_size=4))
    lane = whole(module).chunk(LANES)[1], before.weight.chunk(LANES)[1]
    return memory.rows, (lane[0] - lane[1]).abs().mean().item(), trainer.global_step


def test_logged_at_the_logging_steps(ranks: Ranks) -> None:
    """Also over two replicas: 2 x 2 devices."""
    answers = ranks(logged, 4)
    rows, moved, steps = answers[0]
    assert steps == 6
    assert sorted(rows) == [1, 3, 5], "every second step"
    last = rows[5]
    assert last["health/conv2/lane1/update_mean_abs"] == pytest.approx(moved, rel=1e-4)
    assert last["health/conv2/lane1/update_ratio"] == pytest.approx(
        moved / last["health/conv2/lane1/weight_mean_abs"], rel=1e-4
    )
    assert last["health/gradient_norm"] > 0
    for other, _, _ in answers[1:]:
        health = {k: v for k, v in other[5].items() if k.startswith("health/")}
        assert health == pytest.approx({k: last[k] for k in health}, rel=1e-6)
    assert SLOW_S <= last["data_wait_s"] <= last["step_time_s"]
    assert last["data_wait_share"] == pytest.approx(last["data_wait_s"] / last["step_time_s"], rel=1e-4)
    assert last["images_per_s"] == pytest.approx(2 * 4 / last["step_time_s"], rel=1e-4)
    assert 50 < last["memory_MiB"] < 10_000
    assert last["crossing/sent_MiB"] > 0


class Sudden(Classifier):
    """Its loss, or the gradient of one lane, is no number from some step on."""

    bad: tuple[str, int, int] = ("loss", 3, 0)  # what, step, and on which replica or lane device

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        what, step, _ = self.bad
        replica = self.device_mesh.get_coordinate()[0]  # type: ignore[index, union-attr]
        late = batch_idx + 1 >= step
        return loss * math.nan if what == "loss" and late and replica == self.bad[2] else loss

    def on_after_backward(self) -> None:
        what, step, where = self.bad
        net: Any = self.net
        if what != "loss" and self.global_step + 1 >= step and axis(self.device_mesh, LANE_AXIS).index == where:  # type: ignore[arg-type]
            net.get_submodule(what).weight.grad.to_local()[-1] = math.inf


def stopped(bad: tuple[str, int, int], lane_devices: int) -> tuple[str, int, bool]:
    module = Sudden(partial(Laned, 2, LANES), image_shape=(3, 16, 16))
    module.bad = bad
    trainer = make_trainer(lane_devices, log_every_n_steps=50, callbacks=[Health()])
    try:
        trainer.fit(module, DataLoader(photos(64), batch_size=4))
    except NonFiniteError as error:
        finite = all(bool(p.to_local().isfinite().all()) for p in module.net.parameters())  # type: ignore[attr-defined]
        return str(error), trainer.global_step, finite
    return "not stopped", trainer.global_step, False


@pytest.mark.parametrize(
    ("bad", "world", "lane_devices", "said"),
    [
        (
            ("conv2", 2, 1),
            2,
            2,
            "step 2: a gradient is not finite, in backward order first the gradient of conv2, lane 3;",
        ),
        (("loss", 3, 1), 2, 1, "step 3: the loss of replica 1 is not finite"),
    ],
)
def test_all_processes_stop_together(
    ranks: Ranks, bad: tuple[str, int, int], world: int, lane_devices: int, said: str
) -> None:
    answers = ranks(stopped, world, bad, lane_devices)
    for message, steps, finite in answers:
        assert said in message
        assert "lower the learning rate (now 0.01)" in message
        assert "gradient_clip_val" in message
        assert steps == bad[1] - 1, "the bad step is not made"
        assert finite, "the weights are as they were"


class AsOnGPU(Health):
    """Looks at the logging steps only."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        self._looks_at_once = False


def stopped_late(logged: int) -> tuple[str, int]:
    module = Sudden(partial(Laned, 2, LANES), image_shape=(3, 16, 16))
    module.bad = ("conv2", 3, 1)
    trainer = make_trainer(2, log_every_n_steps=logged, callbacks=[AsOnGPU()])
    with pytest.raises(NonFiniteError) as end:
        trainer.fit(module, DataLoader(photos(40), batch_size=4))
    return str(end.value), trainer.global_step


@pytest.mark.parametrize(("logged", "made"), [(5, 4), (50, 10)])
def test_without_looking_at_every_step(ranks: Ranks, logged: int, made: int) -> None:
    """At the next logging step, or at the end of the epoch: the first bad step is known."""
    for message, steps in ranks(stopped_late, 2, logged):
        assert "stopped at step 3: a gradient is not finite;" in message
        assert steps == made


def stopped_before_saving(folder: str) -> str:
    module = Sudden(partial(Laned, 2, LANES), image_shape=(3, 16, 16))
    module.bad = ("conv2", 3, 1)
    keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    trainer = make_trainer(2, log_every_n_steps=50, callbacks=[AsOnGPU(), keep], enable_checkpointing=True)
    with pytest.raises(NonFiniteError) as end:
        trainer.fit(module, DataLoader(photos(40), batch_size=4))
    return str(end.value)


def test_what_is_no_number_is_not_kept(ranks: Ranks, tmp_path: Path) -> None:
    """Where nobody looks at every step, one looks before a checkpoint is written."""
    for message in ranks(stopped_before_saving, 2, str(tmp_path)):
        assert "stopped at step 3: a gradient is not finite;" in message
    assert [path.name for path in tmp_path.iterdir()] == ["step=2.ckpt"]


def no_multiple() -> None:
    trainer = make_trainer(1, log_every_n_steps=2, callbacks=[Health(every_n_steps=3)])
    trainer.fit(classifier(partial(Laned, 2, LANES)), DataLoader(photos(16), batch_size=4))


def test_no_multiple_of_the_logging_step(ranks: Ranks) -> None:
    with pytest.raises(AssertionError, match=r"every_n_steps=3 is no multiple of trainer.log_every_n_steps=2"):
        ranks(no_multiple, 1)
