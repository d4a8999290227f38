"""Nodes connect to one another as Gloo will, each with each, before it would wait for that in vain.

Kept out: how processes come together (meeting.py).
"""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import torch.distributed as dist

from lanes.network.addresses import GLOO, interface_towards, interfaces, is_loopback

ANSWER_S = 5.0  # to a connection between two nodes


@dataclass(frozen=True)
class Member:
    """A process that has come.

    Attributes:
        id: by which it knows itself.
        host: its name.
        address: at which Gloo would listen there.
    """

    id: str
    host: str
    address: str


def wrong_link(members: Sequence[Member], rank: int, store: dist.Store, meeting_point: str) -> str | None:
    """What hinders nodes in connecting to one another, the same words on all ranks; all of them must call it.

    Args:
        members: by rank.
        rank: of this process.
        store: that they share.
        meeting_point: an address that all of them have reached.
    """
    firsts = {member.host: number for number, member in reversed([*enumerate(members)])}
    if len(firsts) == 1:
        return None
    if unreachable := next((member for member in members if is_loopback(member.address)), None):
        return _of_loopback(unreachable, meeting_point)
    nodes = sorted(firsts.values())
    try:
        if rank in nodes:
            _connect(members, rank, nodes, store)
        found = [store.get(f"{first} reached").decode() for first in nodes]
    except dist.DistStoreError:  # the store has answered, but somebody has not told it anything in time
        return _silent(members, nodes, store)
    return next((words for words in found if words), None)


def _connect(members: Sequence[Member], rank: int, firsts: Sequence[int], store: dist.Store) -> None:
    """Listen for the first processes of the other nodes, and connect to them."""
    own, problem = members[rank], ""
    family = socket.AF_INET6 if ":" in own.address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listens:
        listens.bind((own.address, 0))
        listens.listen(len(firsts))
        store.set(f"{rank} listens", str(listens.getsockname()[1]))
        for first in firsts:
            other, port = members[first], int(store.get(f"{first} listens"))
            try:
                socket.create_connection((other.address, port), timeout=ANSWER_S).close()
            except OSError as mistake:
                problem = (
                    f"{own.host} cannot connect to {other.host} at {other.address}, port {port} "
                    f"({mistake.strerror or mistake}): let the network pass it, or choose another interface by {GLOO}"
                )
                break
        store.set(f"{rank} reached", problem)
        for first in firsts:  # until nobody wants to connect any more
            store.get(f"{first} reached")


def _silent(members: Sequence[Member], firsts: Sequence[int], store: dist.Store) -> str:
    """Who has met the others, and has not come to connecting or not got on with it."""
    for step in ("listens", "reached"):
        if missing := [first for first in firsts if not store.check([f"{first} {step}"])]:
            rank, more = missing[0], f", and {len(missing) - 1} more" if len(missing) > 1 else ""
            return (
                f"rank {rank} on {members[rank].host}{more} has come, but then hung or ended, before all nodes had "
                "connected to one another; see what it says there"
            )
    return "the nodes took too long to connect to one another, so that some have given up; try again"


def _of_loopback(member: Member, meeting_point: str) -> str:
    if asked := os.environ.get(GLOO):
        return f"{GLOO}={asked} is {member.address} on {member.host}, which other nodes cannot reach; name another one"
    ours = interface_towards(meeting_point)
    hint = ours or next((name for name, address in interfaces().items() if not is_loopback(address)), "NAME")
    return (
        f"the name {member.host} leads to {member.address} on that node itself, so that Gloo would listen where other "
        f"nodes cannot reach it; set {GLOO}, perhaps to {hint}"
    )
