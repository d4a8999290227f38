"""Learning-rate schedules: the factor by which the optimizer's rate is multiplied at a step.

Plain functions of the step, so that resuming and layouts do not matter.
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
