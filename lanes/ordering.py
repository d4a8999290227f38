"""The order of the channels of a laned tensor, where it is not the plain model's.

Lane devices concatenate each their own channels of several tensors: device 0 then holds the first channels of each, in
the plain model these lie far apart. So does a channel shuffle that has not been performed yet. Such a tensor *owes* a
permutation, which the next layer that needs the plain order pays, once for all that has gathered up; a dense layer that
gathers all channels pays nothing.

Shapes: C all channels, D lane devices, c = C/D own channels.

Kept out: sending channels (crossing.py), which layer pays (rules/).
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Order:
    """What has been done to the channels by name only.

    Attributes:
        parts: channels of the tensors that each lane device has concatenated by itself; () in the plain order.
        shuffles: groups of the channel shuffles that are still to be performed after that, first to last.
    """

    parts: tuple[int, ...] = ()
    shuffles: tuple[int, ...] = ()

    def held(self, lane_devices: int) -> list[int]:
        """The plain channel at each position of the devices' channels, device 0's first. [C]."""
        channels = sum(self.parts)
        held: list[int] = []
        for device in range(lane_devices):
            start = 0
            for part in self.parts:
                own = part // lane_devices
                held += range(start + device * own, start + (device + 1) * own)
                start += part
        for groups in self.shuffles:
            each = channels // groups
            held = [channel % each * groups + channel // each for channel in held]
        return held

    def source(self, lane_devices: int) -> tuple[int, ...]:
        """What puts the channels in plain order, as `crossing.shuffle` reads it: each plain channel's position. [C]."""
        held = self.held(lane_devices)
        return tuple(sorted(range(len(held)), key=held.__getitem__))

    def sent(self, lane_devices: int) -> int:
        """How many of its channels the busiest lane device sends to put all in plain order."""
        own = sum(self.parts) // lane_devices
        leaving = [0] * lane_devices
        for position, channel in enumerate(self.held(lane_devices)):
            leaving[position // own] += channel // own != position // own
        return max(leaving)

    def divides(self, lane_devices: int) -> bool:
        """Whether so many devices can hold channels so, and its shuffles be performed."""
        parts = all(part and part % lane_devices == 0 for part in self.parts)
        return parts and all(groups and sum(self.parts) % groups == 0 for groups in self.shuffles)

    def shuffled(self, groups: int, channels: int) -> Order:
        """The same and then a shuffle of all the channels in so many groups."""
        return Order(self.parts or (channels,), (*self.shuffles, groups)) if groups > 1 else self

    def __str__(self) -> str:
        return ", ".join(["+".join(map(str, self.parts)), *(f"shuffle {groups}" for groups in self.shuffles)])

    @classmethod
    def parse(cls, text: str) -> Order:
        """What `str` wrote: "24+216, shuffle 3" is 24 and 216 channels joined, and a shuffle in 3 groups owed.

        Raises:
            ValueError: names the text.
        """
        if not re.fullmatch(r"|\d+(\+\d+)*(, shuffle \d+)*", text):
            raise ValueError(f"{text!r} is no order of channels, such as '24+216, shuffle 3'")
        parts, *shuffles = text.split(", ")
        return cls(
            tuple(int(part) for part in parts.split("+") if part),
            tuple(int(shuffle.removeprefix("shuffle ")) for shuffle in shuffles),
        )


PLAIN = Order()
"""The plain model's order."""


def concatenated(orders: list[Order], channels: list[int]) -> Order | None:
    """The order of tensors that each lane device has concatenated; None if one of them owes a shuffle."""
    if any(order.shuffles for order in orders):
        return None
    parts = tuple(p for order, count in zip(orders, channels, strict=True) for p in order.parts or (count,))
    return Order(parts) if len(parts) > 1 else PLAIN


def flattened(order: Order, places: int) -> Order | None:
    """The order of [N, C, ...] after so many places of each channel became channels; None if there is none."""
    if places == 1:
        return order
    return None if order.shuffles else Order(tuple(part * places for part in order.parts))
