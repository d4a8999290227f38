"""The same config and seed, 4 lanes on 1, 2 and 4 lane devices: the same loss curve, dropout and augmentation on.

What may differ is the order of floating-point sums, 6e-8 relative. Training amplifies that, not smoothly but by jumps:
a difference of one ulp turns a ReLU on, or the winner of a pooling window, and a gradient moves. Measured on 1 device,
with every pixel one ulp larger (a disturbance of the size of another order of sums): at a rate of 0.005 two curves part
to 2e-2 within 50 steps, at 0.001 to 4e-3, at 0.0002 to 1.5e-4. The last is used, with a bound of 8e-4, five times
as much; the curve that no learning at all would give must lie well beyond the bound, or it would prove nothing.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from lanes.models import SmallAlexNet
from lanes.training import Classifier, Photographs
from tests.integration.test_replicas import Recorder, make_trainer
from tests.parity import whole
from tests.ranks import Ranks

STEPS, BATCH, RATE = 50, 16, 0.0002
BOUND = 8e-4
EARLY = 1e-5  # in the first ten steps, before anything has jumped: a few ulps of a loss of 2.3
Curve = list[float]


class Nudged(Photographs):
    """Every pixel one ulp larger, as the network reads it."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        images, labels = super().on_after_batch_transfer(batch, dataloader_idx)
        return images * (1 + torch.finfo(images.dtype).eps), labels


def train(
    lane_devices: int, data: type[Photographs] = Photographs, rate: float = RATE
) -> tuple[Curve, dict[str, Tensor]]:
    """Two epochs: the random streams of the second must agree, too."""
    recorder = Recorder()
    trainer = make_trainer(lane_devices, max_epochs=2, limit_val_batches=0, callbacks=[recorder], gradient_clip_val=1.0)
    net = partial(SmallAlexNet, 10, 4)
    optimizer = partial(torch.optim.SGD, lr=rate, momentum=0.9, weight_decay=5e-4)
    module = Classifier(net, image_shape=(3, 64, 64), optimizer=optimizer)
    trainer.fit(module, datamodule=data(BATCH, num_train=STEPS * BATCH // 2, num_val=10))
    return recorder.losses, {name: whole(p) for name, p in module.net.named_parameters()}


@pytest.fixture(scope="module")
def one_device(ranks: Ranks) -> tuple[Curve, dict[str, Tensor]]:
    curve, weights = ranks(train, 1, 1)[0]
    assert len(curve) == STEPS
    return curve, weights


def deviation(curve: Curve, other: Curve) -> float:
    return max(abs(a - b) for a, b in zip(curve, other, strict=True))


def test_the_bound_lies_between_rounding_and_learning(
    ranks: Ranks, measured: Callable[[str], None], one_device: tuple[Curve, dict[str, Tensor]]
) -> None:
    rounding = deviation(ranks(train, 1, 1, Nudged)[0][0], one_device[0])
    learning = deviation(ranks(train, 1, 1, Photographs, 0.0)[0][0], one_device[0])
    measured(
        f"{STEPS}-step loss curve on one device   one ulp of the pixels deviates by {rounding:.1e}, "
        f"no learning by {learning:.1e}"
    )
    assert 0 < rounding <= BOUND
    assert learning >= 10 * BOUND


@pytest.mark.parametrize("lane_devices", [2, 4])
def test_the_loss_curve_does_not_depend_on_the_layout(
    ranks: Ranks,
    measured: Callable[[str], None],
    one_device: tuple[Curve, dict[str, Tensor]],
    lane_devices: int,
) -> None:
    answers = ranks(train, lane_devices, lane_devices)
    for curve, _ in answers:
        assert curve == answers[0][0], "lane devices of a replica compute the same loss"
    found = deviation(answers[0][0], one_device[0])
    measured(
        f"{STEPS}-step loss curve, 4 lanes on {lane_devices} devices against 1   deviation {found:.1e}   "
        f"(bound {BOUND:.0e})"
    )
    assert deviation(answers[0][0][:10], one_device[0][:10]) <= EARLY
    assert found <= BOUND


@pytest.mark.parametrize("lane_devices", [1, 2])
def test_the_same_layout_repeats_bit_by_bit(ranks: Ranks, lane_devices: int) -> None:
    curve, weights = ranks(train, lane_devices, lane_devices)[0]
    again, weights_again = ranks(train, lane_devices, lane_devices)[0]
    assert curve == again
    for name, tensor in weights.items():
        assert torch.equal(tensor, weights_again[name]), name
