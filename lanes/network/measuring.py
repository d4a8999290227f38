"""Measures all links between ranks, by messages from one rank to another.

Kept out: which pairs when, and what is made of the figures (links.py).
"""

import socket
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lanes.network.links import Link, Pair, rounds, slow_links

MIB = 2**20
SECONDS = 5.0  # about so long for all rounds, while links are not very slow
PINGS, WARM = 20, 3
FIRST_MIB, MOST_MIB = 1, 64  # a message
MESSAGES = 3
LOOK_AGAIN = 2  # rounds with a slow link are measured so often again, and the best counts: a busy core is no slow link
PATIENT_S = 0.25  # a link on which the first message took longer is slow enough to be measured by it


class LinkError(RuntimeError):
    """A rank does not answer, or the connection to it is lost."""


def measure(device: torch.device) -> tuple[list[Link], list[str]]:
    """Measure every pair of ranks of the default group, in both directions; all must call it.

    Args:
        device: of this process.

    Returns:
        All links, and every rank's host, on all ranks.

    Raises:
        LinkError: names the two ranks; on those that wait for one another.
    """
    hosts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(hosts, socket.gethostname())
    buffer = torch.zeros(MOST_MIB * MIB, dtype=torch.uint8, device=device)
    order = rounds(hosts)
    message_s = min(0.02, SECONDS / max(1, len(order)) / (2 * (MESSAGES + 2)))
    best: dict[Pair, Link] = {}
    for _ in range(1 + LOOK_AGAIN):
        for found in _everyones([link for pairs in order for link in _own(pairs, hosts, buffer, message_s)]):
            ends = found.sender, found.receiver
            best[ends] = max(found, best.get(ends, found), key=lambda link: link.MiB_per_s)
        slow = {link.pair for link in slow_links([*best.values()], hosts)}
        order = [pairs for pairs in order if slow & set(pairs)]  # whole: what shares the network is as many again
    return [*best.values()], hosts


def _own(pairs: Sequence[Pair], hosts: Sequence[str], buffer: Tensor, message_s: float) -> list[Link]:
    """A round: the links from this rank among it."""
    dist.barrier()  # else those who are through would change what the others share the network with
    rank = dist.get_rank()
    mine = next((pair for pair in pairs if rank in pair), None)
    own = []
    for sender, receiver in (mine, mine[::-1]) if mine else ():
        try:
            if rank == sender:
                own.append(_send(_Wire(receiver, buffer.device), buffer, sender, receiver, message_s))
            else:
                _answer(_Wire(sender, buffer.device), buffer)
        except RuntimeError as error:
            ends = f"rank {sender} ({hosts[sender]}) and rank {receiver} ({hosts[receiver]})"
            raise LinkError(f"no link between {ends}: {error}") from error
    return own


def _everyones(own: list[Link]) -> list[Link]:
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    return [link for links in everyone for link in links]


class _Wire:
    """To one other rank. Messages are batched: NCCL would else make a communicator for every pair."""

    def __init__(self, peer: int, device: torch.device) -> None:
        self.peer, self.device = peer, device

    def send(self, message: Tensor) -> None:
        self._exchange(dist.isend, message)

    def receive(self, message: Tensor) -> None:
        self._exchange(dist.irecv, message)

    def _exchange(self, how: Any, message: Tensor) -> None:
        for work in dist.batch_isend_irecv([dist.P2POp(how, message, self.peer)]):
            work.wait()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _send(wire: _Wire, buffer: Tensor, sender: int, receiver: int, message_s: float) -> Link:
    """Measure a link from its sender's side.

    Args:
        wire: to the receiver.
        buffer: what is sent, as much of it as is right.
        sender: this rank.
        receiver: the other.
        message_s: about so long a message shall take.
    """
    ping = torch.zeros(8, dtype=torch.uint8, device=buffer.device)
    trips = []
    for _ in range(WARM + PINGS):
        began = time.perf_counter()
        wire.send(ping)
        wire.receive(ping)
        trips.append(time.perf_counter() - began)
    size = FIRST_MIB * MIB
    took = _timed(wire, buffer[:size], ping)
    if took < PATIENT_S:
        size = max(size // 16, min(len(buffer), int(size / took * message_s)))
        took = statistics.mean(_timed(wire, buffer[:size], ping) for _ in range(MESSAGES))
    wire.send(_number(0, buffer))
    return Link(sender, receiver, size / took / MIB, statistics.median(trips[WARM:]) / 2 * 1e6)


def _timed(wire: _Wire, message: Tensor, answer: Tensor) -> float:
    """Seconds from sending until it is acknowledged."""
    wire.send(_number(len(message), message))
    began = time.perf_counter()
    wire.send(message)
    wire.receive(answer)
    return time.perf_counter() - began


def _answer(wire: _Wire, buffer: Tensor) -> None:
    """The receiver's side: answer pings, then acknowledge messages until one of no bytes is announced."""
    ping = torch.zeros(8, dtype=torch.uint8, device=buffer.device)
    for _ in range(WARM + PINGS):
        wire.receive(ping)
        wire.send(ping)
    announced = _number(0, buffer)
    while True:
        wire.receive(announced)
        if not (size := int(announced)):
            return
        wire.receive(buffer[:size])
        wire.send(ping)


def _number(number: int, like: Tensor) -> Tensor:
    return torch.tensor([number], device=like.device)
