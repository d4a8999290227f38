"""Links between ranks: in which order they are measured, their table, and which of them are slow.

Kept out: measuring (measuring.py).
"""

import csv
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lanes.tables import table

SLOW = 0.5  # a link is slow below so much of the median of its kind
SHOWN_RANKS = 16  # of more than so many, hosts are shown instead of ranks
INSIDE, ACROSS = "inside a node", "across nodes"

Pair = tuple[int, int]


@dataclass(frozen=True)
class Link:
    """One direction between two ranks.

    Attributes:
        sender: rank.
        receiver: rank.
        MiB_per_s: of a few large messages, with their acknowledgement.
        latency_us: half a round trip of 8 bytes, in microseconds, the median of a few.
    """

    sender: int
    receiver: int
    MiB_per_s: float
    latency_us: float

    @property
    def pair(self) -> Pair:
        """Its ends, in ascending order."""
        return min(self.sender, self.receiver), max(self.sender, self.receiver)


def rounds(hosts: Sequence[str]) -> list[list[Pair]]:
    """In which order all pairs of ranks are measured: those of a round at the same time, no rank in two of them.

    Inside nodes on all nodes at once; across nodes all ranks of one node with all of another, as in training, so that
    links of a kind always share their node's network with equally many others.

    Args:
        hosts: of every rank.
    """
    nodes = [[rank for rank, host in enumerate(hosts) if host == name] for name in dict.fromkeys(hosts)]
    most = max(map(len, nodes))
    inside = [
        [(node[a], node[b]) for node in nodes for a, b in pairs if b < len(node)] for pairs in _each_with_each(most)
    ]
    across = [
        [
            (nodes[one][a], nodes[other][(a + shift) % most])
            for one, other in pairs
            for a in range(len(nodes[one]))
            if (a + shift) % most < len(nodes[other])
        ]
        for pairs in _each_with_each(len(nodes))
        for shift in range(most)
    ]
    return [pairs for pairs in [*inside, *across] if pairs]


def _each_with_each(number: int) -> Iterator[list[Pair]]:
    """Rounds of a tournament, by the circle method: one stands still, the others walk around it."""
    players = list(range(number + number % 2))  # the last one is nobody, of an odd number
    for _ in range(len(players) - 1):
        half = len(players) // 2
        facing = zip(players[:half], reversed(players[half:]), strict=True)
        yield [(min(a, b), max(a, b)) for a, b in facing if max(a, b) < number]
        players = [players[0], players[-1], *players[1:-1]]


def kind(link: Link, hosts: Sequence[str]) -> str:
    """Whether a link stays inside a node."""
    return INSIDE if hosts[link.sender] == hosts[link.receiver] else ACROSS


def medians(links: Sequence[Link], hosts: Sequence[str]) -> dict[str, float]:
    """MiB/s by kind of link."""
    kinds = {name: [link.MiB_per_s for link in links if kind(link, hosts) == name] for name in (INSIDE, ACROSS)}
    return {name: statistics.median(rates) for name, rates in kinds.items() if rates}


def slow_links(links: Sequence[Link], hosts: Sequence[str]) -> list[Link]:
    """Those below half of the median of their kind, the slowest first."""
    usual = medians(links, hosts)
    return sorted(
        (link for link in links if link.MiB_per_s < SLOW * usual[kind(link, hosts)]), key=lambda link: link.MiB_per_s
    )


def verdict(links: Sequence[Link], hosts: Sequence[str]) -> str:
    """A line on each kind, and one on each slow link."""
    usual, slow = medians(links, hosts), slow_links(links, hosts)
    lines = []
    for name, median in usual.items():
        own = [link for link in links if kind(link, hosts) == name]
        rates, latency = [link.MiB_per_s for link in own], statistics.median(link.latency_us for link in own)
        spread = f"{min(rates):,.0f} to {max(rates):,.0f}"
        lines.append(f"{name}: median {median:,.0f} MiB/s ({spread}), {latency:,.0f} us, n = {len(own)}")
    for link in slow:
        part = link.MiB_per_s / usual[kind(link, hosts)]
        where = f"{_named(link.sender, hosts)} to {_named(link.receiver, hosts)}"
        lines.append(f"slow: {where}, {link.MiB_per_s:,.0f} MiB/s, {part:.0%} of the median {kind(link, hosts)}")
    if culprit := _at_all_ends(slow, hosts):
        lines.append(f"{culprit} is at one end of every slow link")
    if not slow:
        lines.append(f"no link is slow: none is below {SLOW:.0%} of the median of its kind")
    return "\n".join(lines)


def _named(rank: int, hosts: Sequence[str]) -> str:
    return f"rank {rank} ({hosts[rank]})"


def _at_all_ends(slow: Sequence[Link], hosts: Sequence[str]) -> str | None:
    """The rank that all slow links have in common, if there are several and it is one; else the host."""
    if len({link.pair for link in slow}) < 2:
        return None
    ranks = set.intersection(*(set(link.pair) for link in slow))
    if len(ranks) == 1:
        return _named(ranks.pop(), hosts)
    common = set.intersection(*({hosts[link.sender], hosts[link.receiver]} for link in slow))
    return common.pop() if len(common) == 1 and len(set(hosts)) > 2 else None


def tables(links: Sequence[Link], hosts: Sequence[str]) -> str:
    """Two tables, sender by receiver: MiB/s and latency. Of many ranks the worst between two hosts is shown."""
    if len(hosts) <= SHOWN_RANKS:
        names, place = [f"{rank} {host}" for rank, host in enumerate(hosts)], list(range(len(hosts)))
        heads, what = [str(rank) for rank in place], "rank (row) to rank (column)"
    else:
        names = list(dict.fromkeys(hosts))
        place, heads = [names.index(host) for host in hosts], names
        what = f"host (row) to host (column), the worst of its ranks, of {len(hosts)}"
    rates: dict[Pair, float] = {}
    waits: dict[Pair, float] = {}
    for link in links:
        cell = place[link.sender], place[link.receiver]
        rates[cell] = min(link.MiB_per_s, rates.get(cell, link.MiB_per_s))
        waits[cell] = max(link.latency_us, waits.get(cell, link.latency_us))
    return f"{_square(f'MiB/s, {what}', names, heads, rates)}\n\n{_square('latency in us', names, heads, waits)}"


def _square(title: str, names: Sequence[str], heads: Sequence[str], cells: dict[Pair, float]) -> str:
    rows = [["", *heads]]
    for row, name in enumerate(names):
        found = [cells.get((row, column)) for column in range(len(heads))]
        rows.append([name, *("-" if value is None else f"{value:,.0f}" for value in found)])
    return f"{title}\n{table(rows, '<' + '>' * len(heads))}"


def write_csv(path: Path, links: Sequence[Link], hosts: Sequence[str]) -> None:
    """Every link, a line each.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("w", newline="") as file:
        fields = ("sender", "sender_host", "receiver", "receiver_host", "MiB_per_s", "latency_us")
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        for link in links:
            named = {"sender_host": hosts[link.sender], "receiver_host": hosts[link.receiver]}
            writer.writerow({**asdict(link), **named})
