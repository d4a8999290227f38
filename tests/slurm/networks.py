"""A network for each node of a cluster, on one machine, so that it can be cut: namespaces, and a bridge between them.

Needs root and the right to make namespaces. The machine's own /etc/hosts and name are left alone.
"""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Networks:
    """Networks that are up.

    Attributes:
        addresses: of each node, by its name.
        controller: the address by which nodes reach this machine.
        tag: part of all names, of this process's own.
        folder: where the files lie that nodes see in the place of the machine's.
    """

    addresses: dict[str, str]
    controller: str
    tag: str
    folder: Path

    def inside(self, node: str, words: Sequence[str]) -> list[str]:
        """A command that runs another on a node: in its network, under its name."""
        files = " && ".join(f"mount --bind {self.folder}/{name} /etc/{name}" for name in ("hosts", "resolv.conf"))
        # Not `ip netns exec`, which hides what slurmd looks for below /sys.
        enter = ["nsenter", f"--net=/run/netns/{self.tag}{node}", "unshare", "--uts", "--mount"]
        return [*enter, "sh", "-c", f'hostname {node} && {files} && exec "$@"', "sh", *words]

    def cut(self, node: str) -> None:
        """From now on nothing reaches a node, and nothing leaves it."""
        _ip("link", "set", f"{self.tag}{node}", "down")

    def mend(self, node: str) -> None:
        """The node is there again."""
        _ip("link", "set", f"{self.tag}{node}", "up")


@contextmanager
def networks(folder: Path, nodes: Sequence[str]) -> Iterator[Networks]:
    """Make a network for each node; they go with the block.

    Args:
        folder: empty, for files.
        nodes: names of at most 5 letters (an interface's has 15).
    """
    number = os.getpid() % 250
    subnet, tag = f"10.213.{number}", f"l{number}-"
    addresses = {node: f"{subnet}.{place}" for place, node in enumerate(nodes, 2)}
    controller = f"{subnet}.1"
    hosts = {"127.0.0.1": "localhost", controller: os.uname().nodename} | {at: node for node, at in addresses.items()}
    folder.mkdir()
    (folder / "hosts").write_text("".join(f"{address} {name}\n" for address, name in hosts.items()))
    (folder / "resolv.conf").write_text("")  # else looking for names' IPv6 addresses waits for a server
    found = Networks(addresses, controller, tag, folder)
    bridge = f"{tag}bridge"
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("address", "add", f"{controller}/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for node, address in addresses.items():
            space, outside = f"{tag}{node}", f"{tag}{node}"
            _ip("netns", "add", space)
            _ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", outside, "master", bridge, "up")
            _ip("-n", space, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", space, "link", "set", device, "up")
        yield found
    finally:
        for node in addresses:
            _ip("link", "delete", f"{tag}{node}", check=False)
            _ip("netns", "delete", f"{tag}{node}", check=False)
        _ip("link", "delete", bridge, check=False)


def _ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=not check)
