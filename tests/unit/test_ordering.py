"""Orders of channels: what each device holds, what restores the plain order, and how many channels that sends."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from lanes.ordering import PLAIN, Order, concatenated, flattened

ORDERS = [
    Order((8, 16)),
    Order((4, 4, 4)),
    Order((24,), (3,)),
    Order((8, 16), (2,)),
    Order((16, 8), (3, 4)),
    Order((12,), (2, 3, 2)),
]


def on_devices(order: Order, lane_devices: int) -> Tensor:
    """What the devices hold one after the other, by running the operations on their parts: an independent account."""
    plain = torch.arange(sum(order.parts))
    parts = [part.chunk(lane_devices) for part in plain.split(order.parts)]
    held = torch.cat([part[device] for device in range(lane_devices) for part in parts])
    shuffled = plain.view(1, -1, 1, 1)
    for groups in order.shuffles:
        shuffled = nn.ChannelShuffle(groups)(shuffled)
    places = shuffled.flatten().argsort()  # where each channel of the concatenation stands in the plain model's result
    return places[held]


@pytest.mark.parametrize(("order", "lane_devices"), list(itertools.product(ORDERS, [1, 2, 4])), ids=str)
def test_what_devices_hold(order: Order, lane_devices: int) -> None:
    held = order.held(lane_devices)
    assert held == on_devices(order, lane_devices).tolist()
    assert [held[position] for position in order.source(lane_devices)] == list(range(sum(order.parts)))


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_one_device_sends_nothing(order: Order) -> None:
    assert order.sent(1) == 0
    assert order.shuffles != () or order.held(1) == sorted(order.held(1))


def test_sent_by_hand() -> None:
    # Two devices hold 0 1 and 2 3 of the first four, 4 5 and 6 7 of the others; 4 5 belong to the second device.
    assert Order((4, 4)).held(2) == [0, 1, 4, 5, 2, 3, 6, 7]
    assert Order((4, 4)).sent(2) == 2
    assert Order((8,), (2,)).held(2) == [0, 2, 4, 6, 1, 3, 5, 7]
    assert Order((8,), (2,)).sent(2) == 2
    assert Order((4, 4), (2,)).held(2) == [0, 2, 1, 3, 4, 6, 5, 7]  # the one undoes the other: nothing is sent
    assert Order((4, 4), (2,)).sent(2) == 0
    assert Order((2, 14)).sent(2) == 1


def test_concatenation_and_flattening() -> None:
    assert concatenated([PLAIN, Order((4, 8))], [16, 12]) == Order((16, 4, 8))
    assert concatenated([PLAIN], [16]) == PLAIN
    assert concatenated([PLAIN, Order((8,), (2,))], [16, 8]) is None
    assert flattened(Order((4, 8)), 3) == Order((12, 24))
    assert flattened(PLAIN, 3) == PLAIN
    assert flattened(Order((8,), (2,)), 1) == Order((8,), (2,))
    assert flattened(Order((8,), (2,)), 4) is None
    assert PLAIN.shuffled(1, 8) == PLAIN
    assert PLAIN.shuffled(2, 8).shuffled(4, 8) == Order((8,), (2, 4))


@pytest.mark.parametrize("order", [PLAIN, *ORDERS], ids=str)
def test_written_and_read(order: Order) -> None:
    assert Order.parse(str(order)) == order


@pytest.mark.parametrize("text", ["24+", "shuffle 3", "24+216, shuffle", "24 + 216", "a", "24+216,shuffle 3", "8, 8"])
def test_what_is_no_order(text: str) -> None:
    with pytest.raises(ValueError, match="is no order of channels"):
        Order.parse(text)
