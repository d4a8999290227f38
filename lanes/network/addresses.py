"""Addresses, names and interfaces, as far as one process can judge them by itself, before it talks to anybody.

Kept out: whether the others answer (meeting.py).
"""

import os
import re
import socket
import time
from collections.abc import Callable

import psutil

NAMES_S = 10.0  # a name server may be slow to answer; one that does not know a name says so at once
GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"


class MeetingError(ValueError):
    """Processes do not find one another; names the value and the way out.

    Attributes:
        speaks: whether this process says so; another does, for all, if not.
    """

    def __init__(self, words: str, *, speaks: bool = True) -> None:
        super().__init__(words)
        self.speaks = speaks


def check_interfaces(backend: str) -> None:
    """Check that the interfaces which the environment names are there, have an address, and are up.

    Args:
        backend: "gloo" or "nccl"; signals and objects travel over Gloo beside NCCL, too.

    Raises:
        MeetingError: names the variable, and the interfaces that there are.
    """
    if names := os.environ.get(GLOO):
        for name in names.split(","):
            _check_interface(GLOO, names, lambda found, name=name: found == name)  # type: ignore[misc]
    if backend == "nccl" and (names := os.environ.get(NCCL)):
        _check_interface(NCCL, names, _nccls(names))


def _nccls(names: str) -> Callable[[str], bool]:
    """Which interfaces NCCL takes: beginnings of names; "=": whole names; "^": none of them."""
    exclude, exact = names.startswith("^"), "=" in names[:2]
    listed = names.lstrip("^=").split(",")
    return lambda found: exclude != any(found == name if exact else found.startswith(name) for name in listed)


def _check_interface(variable: str, names: str, takes: Callable[[str], bool]) -> None:
    have = interfaces()
    taken = [name for name in psutil.net_if_stats() if takes(name)]
    if any(name in have for name in taken):
        return
    wrong = f"{' and '.join(taken)} is down or has no address" if taken else "there is no such interface"
    raise MeetingError(f"{variable}={names}: {wrong} on {socket.gethostname()}, which has {_listed(have)}")


def interfaces() -> dict[str, str]:
    """The interfaces that are up and have an address, IPv4 where there is one, by name."""
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    found = {}
    for name, addresses in psutil.net_if_addrs().items():
        for family in (socket.AF_INET6, socket.AF_INET):
            own = [address.address.partition("%")[0] for address in addresses if address.family == family]
            if own and name in up:
                found[name] = own[0]
    return found


def _listed(have: dict[str, str]) -> str:
    return ", ".join(f"{name} ({address})" for name, address in have.items())


def resolved(address: str) -> list[str]:
    """The addresses of the host at which all meet.

    Raises:
        MeetingError: it has none.
    """
    deadline = time.monotonic() + NAMES_S
    while True:
        try:
            found = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)
            return list(dict.fromkeys(str(info[4][0]) for info in found))
        except OSError as mistake:  # also of a name server
            later = isinstance(mistake, socket.gaierror) and mistake.errno == socket.EAI_AGAIN
            if not later or time.monotonic() > deadline:
                where, why = socket.gethostname(), mistake.strerror or mistake
                raise MeetingError(
                    f"MASTER_ADDR={address} does not resolve on {where} ({why}); {_way_out(address)}"
                ) from mistake
        time.sleep(0.5)


def _way_out(address: str) -> str:
    if "[" in address or "]" in address:
        return f"write an IPv6 address without brackets: {re.sub(r'[][]', '', address)}"
    if re.fullmatch(r"[^:]+:\d+", address):
        host, _, port = address.partition(":")
        return f"give host and port apart: MASTER_ADDR={host} MASTER_PORT={port}"
    return "give a name that this host knows (getent hosts NAME), or an address in numbers"


def check_own(address: str, addresses: list[str]) -> None:
    """Check that the meeting point is on this host, whose process 0 keeps it.

    Raises:
        MeetingError: it is elsewhere.
    """
    for own in addresses:
        family = socket.AF_INET6 if ":" in own else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            try:
                trial.bind((own, 0))
                return
            except OSError:
                continue
    host, there = socket.gethostname(), ", ".join(addresses)
    at = "" if there == address else f" ({there})"
    raise MeetingError(
        f"MASTER_ADDR={address}{at} is not {host}, where rank 0 runs and waits for the others; give its name, or an "
        f"address of {_listed(interfaces())}"
    )


def gloo_address() -> str:
    """Where Gloo would listen on this host: at the interface that is asked for, else where the host's name leads."""
    if names := os.environ.get(GLOO):
        return interfaces()[names.split(",")[0]]
    try:
        family, *_, address = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.bind((address[0], 0, *address[2:]))
        return str(address[0])
    except OSError:
        return "127.0.0.1"  # Gloo's own way out


def is_loopback(address: str) -> bool:
    """Whether no other host can reach it."""
    return address.startswith("127.") or address == "::1"


def interface_towards(address: str) -> str | None:
    """The name of the interface by which this host reaches an address, where that is another host's."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as unsent:
        try:
            unsent.connect((address, 1))
            own = unsent.getsockname()[0]
        except OSError:
            return None
    return next((name for name, found in interfaces().items() if found == own and not is_loopback(own)), None)
