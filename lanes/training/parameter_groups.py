"""Parameter groups: layers, or kinds of parameters, with a learning rate, weight decay or schedule of their own.

Groups are chosen by the plain model's names, so that they are the same on every layout, and a checkpoint's groups too.
"""

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lanes.training.schedules import Schedule
from lanes.words import near


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained differently from the rest; of several groups that match one, the first takes it.

    The biases of 2012: ``ParameterGroup("*.bias", lr_factor=2, weight_decay=0)``.

    Attributes:
        match: one pattern of parameter names, or several: ``*.bias``, ``conv1.*``, ``fc?.weight`` (see ``fnmatch``).
        lr_factor: multiplies the optimizer's learning rate.
        weight_decay: in place of the optimizer's.
        schedule: in place of the classifier's.
        settings: further settings of the optimizer, by its own names, e.g. ``{"momentum": 0.5}``.
    """

    match: str | list[str]
    lr_factor: float = 1.0
    weight_decay: float | None = None
    schedule: Schedule | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.patterns or not all(self.patterns):
            raise ValueError(f"parameter group: match={self.match!r} must name at least one pattern, e.g. '*.bias'")
        if not self.lr_factor >= 0:
            raise ValueError(f"parameter group {self.match!r}: lr_factor={self.lr_factor} must not be negative")
        if self.weight_decay is not None and not self.weight_decay >= 0:
            raise ValueError(f"parameter group {self.match!r}: weight_decay={self.weight_decay} must not be negative")

    @property
    def patterns(self) -> list[str]:
        """The patterns, one or several."""
        return [self.match] if isinstance(self.match, str) else list(self.match)

    @property
    def overrides(self) -> dict[str, Any]:
        """What the group sets in the optimizer."""
        decay = {} if self.weight_decay is None else {"weight_decay": self.weight_decay}
        return {**self.settings, **decay}


def divide(names: Iterable[str], groups: Sequence[ParameterGroup]) -> list[tuple[ParameterGroup | None, list[str]]]:
    """Divide parameters among groups; those that none matches come first, as the group None, if there are any.

    Raises:
        ValueError: a pattern matches nothing, with the nearest names; or a group is left with nothing.
    """
    names = list(names)
    free = dict.fromkeys(names)
    divided: list[tuple[ParameterGroup | None, list[str]]] = []
    for group in groups:
        for pattern in group.patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                nearest = ", ".join(difflib.get_close_matches(pattern, names, n=3, cutoff=0.0))
                raise ValueError(f"parameter group: no parameter matches {pattern!r}; the nearest are {nearest}")
        taken = [name for name in free if any(fnmatchcase(name, pattern) for pattern in group.patterns)]
        if not taken:
            raise ValueError(
                f"parameter group {group.match!r}: earlier groups took all that it matches; put it before them"
            )
        divided.append((group, taken))
        for name in taken:
            del free[name]
    return [(None, list(free)), *divided] if free else divided


def make_optimizer(
    make: Callable[[Any], Optimizer], net: nn.Module, groups: Sequence[ParameterGroup]
) -> tuple[Optimizer, list[Schedule | None]]:
    """Make an optimizer of a network's parameters in groups.

    Args:
        make: makes the optimizer of parameters or of groups of them, as torch's do.
        net: placed or plain.
        groups: none: the optimizer gets the parameters as they are.

    Returns:
        The optimizer, and for each of its groups the schedule of its own, if it has one. The group of what none
        matches, the weights as a rule, is the first.

    Raises:
        ValueError: as :func:`divide`; or the optimizer knows no setting of that name.
    """
    if not groups:
        optimizer = make(net.parameters())
        return optimizer, [None] * len(optimizer.param_groups)
    parameters = dict(net.named_parameters())
    divided = divide(parameters, groups)
    optimizer = make(
        [{**(group.overrides if group else {}), "params": [parameters[n] for n in names]} for group, names in divided]
    )
    for group, made in zip((group for group, _ in divided), optimizer.param_groups, strict=True):
        if group is not None:
            _check_settings(optimizer, group)  # torch's optimizers keep unknown settings and never look at them
            made["lr"] = made["lr"] * group.lr_factor
    return optimizer, [group.schedule if group else None for group, _ in divided]


def _check_settings(optimizer: Optimizer, group: ParameterGroup) -> None:
    for key in group.overrides:
        if key not in optimizer.defaults:
            kind = type(optimizer).__name__
            raise ValueError(
                f"parameter group {group.match!r}: {kind} has no setting {key!r}{near(key, optimizer.defaults)} "
                f"(it has {', '.join(optimizer.defaults)})"
            )
