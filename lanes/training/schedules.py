"""Learning-rate schedules: the factor by which the optimizer's rate is multiplied at a step.

Plain functions of the step, so that resuming and layouts do not matter. ``Linear``, ``Exponential`` and
``DiscreteExponential`` are cuda-convnet2's ``linear``, ``exp`` and ``dexp``; its ``const`` is ``Schedule`` itself.
"""

import math
from collections.abc import Sequence


class Schedule:
    """Factor 1 throughout."""

    def __call__(self, step: int, total_steps: int) -> float:
        """The factor at ``step`` of ``total_steps`` optimizer steps."""
        return 1.0


class StepDecay(Schedule):
    """Divide the rate at given points of the training, as in 2012.

    Args:
        at: where, as fractions of the training, e.g. [0.5, 0.75].
        factor: what the rate is multiplied by there.
    """

    def __init__(self, at: Sequence[float] = (0.5, 0.75), factor: float = 0.1) -> None:
        if not all(0 < point < 1 for point in at):
            raise ValueError(f"StepDecay: at={list(at)} must lie between 0 and 1, as fractions of the training")
        self.at, self.factor = tuple(at), factor

    def __call__(self, step: int, total_steps: int) -> float:
        """The factor at ``step`` of ``total_steps``."""
        return float(self.factor ** sum(step >= point * total_steps for point in self.at))


class WarmupCosine(Schedule):
    """Rise linearly from near zero, then fall along half a cosine to ``final``.

    Args:
        warmup: fraction of the training in which the rate rises.
        final: the factor at the end.

    Source: Loshchilov and Hutter, https://arxiv.org/abs/1608.03983 (without restarts); warm-up as in
    https://arxiv.org/abs/1706.02677 section 2.2.
    """

    def __init__(self, warmup: float = 0.05, final: float = 0.0) -> None:
        if not 0 <= warmup < 1:
            raise ValueError(f"WarmupCosine: warmup={warmup} must be a fraction of the training, from 0 to below 1")
        self.warmup, self.final = warmup, final

    def __call__(self, step: int, total_steps: int) -> float:
        """The factor at ``step`` of ``total_steps``."""
        rising = self.warmup * total_steps
        if step < rising:
            return (step + 1) / (rising + 1)
        progress = min(1.0, (step - rising) / max(1.0, total_steps - rising))
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2


class Linear(Schedule):
    """Fall along a straight line to 1 / ``factor`` at the end of the training.

    Args:
        factor: what the rate is divided by at the end; cuda-convnet2's ``tgtFactor``.

    Source: https://github.com/akrizhevsky/cuda-convnet2, cudaconvnet/src/lr.cu, ``LinearParameterSchedule``.
    """

    def __init__(self, factor: float) -> None:
        self.factor = _checked_factor("Linear", factor)

    def __call__(self, step: int, total_steps: int) -> float:
        """The factor at ``step`` of ``total_steps``."""
        progress = _progress(step, total_steps)
        return 1 - progress + progress / self.factor


class Exponential(Schedule):
    """Fall by equal ratios to 1 / ``factor`` at the end of the training.

    Args:
        factor: what the rate is divided by at the end; cuda-convnet2's ``tgtFactor``.

    Source: the same file, ``ExpParameterSchedule``.
    """

    def __init__(self, factor: float) -> None:
        self.factor = _checked_factor("Exponential", factor)

    def __call__(self, step: int, total_steps: int) -> float:
        """The factor at ``step`` of ``total_steps``."""
        return float(self.factor ** -_progress(step, total_steps))


class DiscreteExponential(Schedule):
    """Fall by equal ratios in steps of equal length; the last of them has 1 / ``factor``.

    At the very end of a step its own rate still holds, as in the source.

    Args:
        factor: what the rate is divided by in the last step; cuda-convnet2's ``tgtFactor``.
        steps: how many, at least 2; its ``numSteps``.

    Source: the same file, ``DiscreteExpParameterSchedule``.
    """

    def __init__(self, factor: float, steps: int) -> None:
        if type(steps) is not int or steps < 2:
            raise ValueError(f"DiscreteExponential: steps={steps!r} must be a whole number of at least 2")
        factor = _checked_factor("DiscreteExponential", factor)
        self.factors = [factor ** (-i / (steps - 1)) for i in range(steps - 1)] + [1 / factor]

    def __call__(self, step: int, total_steps: int) -> float:
        """The factor at ``step`` of ``total_steps``."""
        progress, steps = _progress(step, total_steps), len(self.factors)
        return next(factor for i, factor in enumerate(self.factors) if progress <= (i + 1) / steps)


def _progress(step: int, total_steps: int) -> float:
    """How much of the training is done, 0 to 1."""
    return min(1.0, step / max(1, total_steps))


def _checked_factor(schedule: str, factor: float) -> float:
    if not 0 < factor < math.inf:
        raise ValueError(f"{schedule}: factor={factor!r} must be a positive number; the rate is divided by it")
    return float(factor)
