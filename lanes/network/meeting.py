"""All processes meet before they make their group: within a time, or everybody leaves, and one says why.

They meet in a store at MASTER_ADDR:MASTER_PORT, which rank 0 keeps (or torchrun's agent). torchrun may hand processes
that it starts again the store of those that have died: what these left there is told apart by a name of this meeting.

Kept out: what can be judged without talking to others (addresses.py).
"""

import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch.distributed as dist

from lanes.network.addresses import MeetingError, check_interfaces, check_own, gloo_address, resolved
from lanes.network.reaching import ANSWER_S, Member, wrong_link

TIMEOUT_S = 300.0
LOOK_S = 0.2
TELL_S = 15.0  # after so long it is said for whom everybody waits, and then every so often
LINGER_S = 2.0  # those who leave give the others time to read why, and the one who speaks time to say it
NAMED = 12  # ranks


@dataclass(frozen=True)
class Place:
    """A process among others, and where they meet.

    Attributes:
        address, port: of the store.
        rank, world: which of how many.
        keeps: whether this process keeps the store.
    """

    address: str
    port: int
    rank: int
    world: int
    keeps: bool


def place_of(environment: Any) -> Place:
    """What an environment (of Lightning) says of this process.

    Raises:
        MeetingError: it makes no sense.
    """
    try:
        port, rank, world = environment.main_port, environment.global_rank(), environment.world_size()
    except ValueError as mistake:
        raise MeetingError(f"RANK, WORLD_SIZE and MASTER_PORT must be whole numbers: {mistake}") from mistake
    if not 0 < port < 2**16:
        raise MeetingError(f"MASTER_PORT={port} must be from 1 to 65535")
    if not 0 <= rank < world:
        raise MeetingError(f"rank {rank} of {world} processes: RANK must be from 0 to WORLD_SIZE - 1")
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Place(environment.main_address, port, rank, world, keeps=rank == 0 and not agents)


def check_place(place: Place, backend: str) -> list[str]:
    """What this process can find out by itself; the addresses of the meeting point.

    Raises:
        MeetingError: names the value and the way out.
    """
    check_interfaces(backend)
    addresses = resolved(place.address)
    if place.keeps:
        check_own(place.address, addresses)
    return addresses


def meet(place: Place, backend: str, timeout_s: float = TIMEOUT_S) -> dist.Store:
    """Meet all other processes.

    Args:
        place: of this process.
        backend: by which they will talk.
        timeout_s: how long to wait for the others.

    Returns:
        A store that all of them share and nobody else does, for their group.

    Raises:
        MeetingError: on every process; names the value, or who is missing, and the way out.
    """
    addresses = check_place(place, backend)
    deadline = time.monotonic() + timeout_s
    store = _store(place, deadline, timeout_s)
    meeting = _Meeting(place, store, deadline, timeout_s)
    try:
        members = meeting.gathered()
        own = dist.PrefixStore(meeting.name, store)
        if wrong := wrong_link(members, place.rank, own, addresses[0]):
            meeting.all_end(wrong)
    except dist.DistError as lost:
        raise MeetingError(f"rank 0 at {_at(place)} has ended while all were meeting; why, it says ({lost})") from lost
    return own


def _at(place: Place) -> str:
    return f"MASTER_ADDR={place.address} MASTER_PORT={place.port}"


def _store(place: Place, deadline: float, timeout_s: float) -> dist.Store:
    """Keep the store, or connect to it once somebody answers there: torch's own tries say a page each."""
    if not place.keeps:
        _wait_for_answer(place, deadline, timeout_s)
    try:
        return dist.TCPStore(
            place.address,
            place.port,
            is_master=place.keeps,
            timeout=timedelta(seconds=max(10.0, min(timeout_s, 60.0))),
            wait_for_workers=False,
            multi_tenant=place.keeps,
        )
    except dist.DistError as mistake:
        if place.keeps:
            host = socket.gethostname()
            words = f"rank 0 cannot wait for the others at {_at(place)} on {host}: give another, free MASTER_PORT"
        else:
            words = f"what answers at {_at(place)} is no rank 0 of a training: give another MASTER_PORT"
        raise MeetingError(f"{words} ({str(mistake).splitlines()[0]})") from mistake


def _wait_for_answer(place: Place, deadline: float, timeout_s: float) -> None:
    while True:
        try:
            socket.create_connection((place.address, place.port), timeout=min(ANSWER_S, timeout_s)).close()
            return
        except OSError as mistake:
            if time.monotonic() > deadline:
                raise MeetingError(
                    f"nobody answers at {_at(place)}, after {timeout_s:.0f} s ({mistake.strerror or mistake}); it is "
                    f"rank {place.rank} on {socket.gethostname()} that asks. Does rank 0 run there, and does the "
                    "network let this port through?"
                ) from mistake
        time.sleep(LOOK_S)


class _Meeting:
    """One process's part of it.

    Rank 0 names the meeting; the others may still read the name of an earlier one, and look again until all have come.

    Attributes:
        name: of the meeting, as far as this process knows; "": rank 0 has not come yet.
    """

    def __init__(self, place: Place, store: dist.Store, deadline: float, timeout_s: float) -> None:
        self.place, self.store, self.deadline, self.timeout_s = place, store, deadline, timeout_s
        self.name, self._me = "", uuid.uuid4().hex
        self._tell_at = time.monotonic() + TELL_S

    def gathered(self) -> list[Member]:
        """Wait for all; every rank, when all have come.

        Raises:
            MeetingError: not all have, or one of them twice.
        """
        if self.place.rank == 0:
            self.store.set("meeting", self._me)
        while True:
            self._join()
            if self.place.rank == 0:
                self._count()
            if everyone := self._listed("all"):
                return everyone
            if self._listed("given up"):
                self.leave_to_another()
            if time.monotonic() > self.deadline:
                waited = f"after {self.timeout_s:.0f} s; why, the missing may have said themselves"
                self._give_up(f"{self._who_is_missing()}, {waited}")
            if self.place.rank == 0 and time.monotonic() > self._tell_at:
                self._tell_at += TELL_S * 4
                print(f"lanes: waiting for the others: {self._who_is_missing()}", file=sys.stderr, flush=True)
            time.sleep(LOOK_S)

    def _key(self, what: object) -> str:
        return f"{self.name}/{what}"

    def _join(self) -> None:
        if not self.store.check(["meeting"]):
            return
        name = self.store.get("meeting").decode()
        if name != self.name:
            self.name = name
            host = socket.gethostname()
            self.store.set(self._key(self.place.rank), json.dumps((self._me, host, gloo_address())))
            self.store.add(self._key(f"{self.place.rank} times"), 1)

    def _here(self) -> list[int]:
        """The ranks that have come."""
        if not self.name:
            return []
        return [rank for rank in range(self.place.world) if self.store.check([self._key(f"{rank} times")])]

    def _count(self) -> None:
        """Tell all that they have met, once they have."""
        here = self._here()
        if twice := [rank for rank in here if int(self.store.get(self._key(f"{rank} times"))) > 1]:
            self._give_up(f"several processes are rank {twice[0]} of {self.place.world}: give each a RANK of its own")
        if len(here) == self.place.world:
            self._list("all", here)

    def _list(self, what: str, ranks: Iterable[int]) -> None:
        members = [json.loads(self.store.get(self._key(rank))) for rank in ranks]
        self.store.set(self._key(what), json.dumps(members))

    def _listed(self, what: str) -> list[Member]:
        """The members on a list, if it is there and this process on it: else it is of an earlier meeting."""
        if not self.name or not self.store.check([self._key(what)]):
            return []
        members = [Member(*member) for member in json.loads(self.store.get(self._key(what)))]
        return members if self._me in {member.id for member in members} else []

    def _who_is_missing(self) -> str:
        here, world = self._here(), self.place.world
        missing = [rank for rank in range(world) if rank not in here]
        if not self.name:
            return f"rank 0 has not come, nor perhaps others of {world}"
        hosts = sorted({json.loads(self.store.get(self._key(rank)))[1] for rank in here})
        named = f"{'rank' if len(missing) == 1 else 'ranks'} {_cut(missing)}"
        return f"{len(here)} of {world} processes have come, from {_cut(hosts)}; {named} {_have(missing)} not"

    def _give_up(self, why: str) -> NoReturn:
        """End the meeting for all that have come; the first to do so says why."""
        if self.name:
            if int(self.store.add(self._key("giving up"), 1)) > 1:
                self.leave_to_another()
            self._list("given up", self._here())
        self._say(f"the processes do not find one another at {_at(self.place)}: {why}")

    def all_end(self, why: str) -> NoReturn:
        """End for a reason that all know."""
        if self.place.rank:
            self.leave_to_another()
        self._say(why)

    def _say(self, why: str) -> NoReturn:
        if self.place.keeps:
            time.sleep(LINGER_S)  # the others read in its store that they are to leave
        raise MeetingError(why)

    def leave_to_another(self) -> NoReturn:
        """End here, when it will have said why."""
        time.sleep(2 * LINGER_S)
        raise MeetingError("another process says why", speaks=False)


def _cut(items: Sequence[object]) -> str:
    shown = ", ".join(str(item) for item in items[:NAMED])
    return f"{shown} and {len(items) - NAMED} more" if len(items) > NAMED else shown


def _have(items: Sequence[object]) -> str:
    return "has" if len(items) == 1 else "have"
