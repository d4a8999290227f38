"""Learning-rate schedules at points that were worked out by hand."""

import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from lanes.training import Classifier, DiscreteExponential, Exponential, Linear, Schedule, StepDecay, WarmupCosine

TOTAL = 1000


def rates(schedule: Schedule, base: float, *steps: int) -> list[float]:
    return [base * schedule(step, TOTAL) for step in steps]


def test_dexp_of_the_two_gpu_configuration() -> None:
    """Weights: dexp[base=.02;tgtFactor=250;numSteps=4]; 250^(1/3) = 6.2996, 250^(2/3) = 39.685."""
    expected = [0.02, 0.0031748, 0.00050397, 0.00008]
    schedule = DiscreteExponential(factor=250, steps=4)
    assert rates(schedule, 0.02, 0, 251, 501, 751) == pytest.approx(expected, rel=1e-4)
    assert rates(schedule, 0.02, 0, 251, 501, 751) == pytest.approx([0.02 / 250 ** (i / 3) for i in range(4)])
    assert rates(schedule, 0.02, 250, 500, 750, 1000) == pytest.approx(expected, rel=1e-4), "a step ends inclusively"


def test_dexp_of_its_biases() -> None:
    """dexp[base=.04;tgtFactor=25;numSteps=2]."""
    assert rates(DiscreteExponential(25, 2), 0.04, 0, 500, 501, 1000) == pytest.approx([0.04, 0.04, 0.0016, 0.0016])


def test_dexp_ends_exactly_at_its_factor() -> None:
    for steps in range(2, 9):
        schedule = DiscreteExponential(250, steps)
        assert schedule(0, TOTAL) == 1
        assert schedule(TOTAL, TOTAL) == schedule(TOTAL + 1, TOTAL) == 1 / 250
        assert len({schedule(step, TOTAL) for step in range(TOTAL + 1)}) == steps


def test_exp() -> None:
    """16 ** -0, ** -(1/4), ** -(1/2), ** -1."""
    assert rates(Exponential(16), 1.0, 0, 250, 500, 1000) == pytest.approx([1, 0.5, 0.25, 0.0625])


def test_linear() -> None:
    """base (1 - p) + base / 5 p."""
    assert rates(Linear(5), 0.1, 0, 250, 500, 1000, 1200) == pytest.approx([0.1, 0.08, 0.06, 0.02, 0.02])


def test_const_and_the_others() -> None:
    assert rates(Schedule(), 0.1, 0, 999) == [0.1, 0.1]
    assert rates(StepDecay([0.5, 0.75]), 1.0, 499, 500, 750) == pytest.approx([1, 0.1, 0.01])
    cosine = WarmupCosine(warmup=0.1, final=0.01)
    assert cosine(0, TOTAL) == pytest.approx(1 / 101)
    assert cosine(100, TOTAL) == 1
    assert cosine(550, TOTAL) == pytest.approx(0.505)
    assert cosine(TOTAL, TOTAL) == pytest.approx(0.01)


@pytest.mark.parametrize("factor", [0, -2, math.inf, math.nan])
@pytest.mark.parametrize("kind", ["Linear", "Exponential", "DiscreteExponential"])
def test_bad_factors(kind: str, factor: float) -> None:
    make = {"Linear": Linear, "Exponential": Exponential, "DiscreteExponential": lambda f: DiscreteExponential(f, 4)}
    with pytest.raises(ValueError, match=rf"{kind}: factor={factor} must be a positive number"):
        make[kind](factor)


@pytest.mark.parametrize("steps", [1, 0, -4, 2.5])
def test_bad_steps(steps: float) -> None:
    with pytest.raises(ValueError, match=rf"steps={steps} must be a whole number of at least 2"):
        DiscreteExponential(250, steps)  # type: ignore[arg-type]


def scheduled(
    steps_per_epoch: int, checkpoint: dict[str, Any] | None = None
) -> tuple[Classifier, Callable[..., float]]:
    """A classifier that trains 4 epochs on some layout, and its schedule's factor by the optimizer's steps."""
    module: Any = Classifier(partial(nn.Linear, 2, 2), schedule=Linear(5))
    module.net, module._trainer = (
        module.make_net(),
        SimpleNamespace(estimated_stepping_batches=4 * steps_per_epoch, max_epochs=4),
    )
    factor = module.configure_optimizers()["lr_scheduler"]["scheduler"].lr_lambdas[0]
    if checkpoint:
        module.on_load_checkpoint(checkpoint)
    return module, factor


def test_resumed_twice_the_schedule_is_where_the_epochs_are() -> None:
    """One epoch of 100 steps, then on twice the replicas one of 50, then of 50 again, or of 100."""
    checkpoint: dict[str, Any] = {"global_step": 100}
    scheduled(100)[0].on_save_checkpoint(checkpoint)
    module, factor = scheduled(50, checkpoint)
    assert factor(100) == pytest.approx(Linear(5)(1, 4))
    again: dict[str, Any] = {"global_step": 150}
    module.on_save_checkpoint(again)
    assert factor(150) == pytest.approx(Linear(5)(2, 4))
    for steps_per_epoch in (50, 100):
        assert scheduled(steps_per_epoch, again)[1](150) == pytest.approx(Linear(5)(2, 4))
