"""Links between ranks: every pair is measured once, and the slow one is named by the stated rule."""

import csv
from itertools import combinations
from pathlib import Path

import pytest

from lanes.network.links import ACROSS, INSIDE, Link, kind, rounds, slow_links, tables, verdict, write_csv

LAYOUTS = {
    "one node": ["a"] * 5,
    "a rank on each of three": ["a", "b", "c"],
    "two by three": ["a"] * 3 + ["b"] * 3,
    "four by four, dealt out": ["a", "b", "c", "d"] * 4,
    "unequal": ["a", "a", "a", "b", "c", "c"],
}


def measured(hosts: list[str], slow: dict[tuple[int, int], float] | None = None) -> list[Link]:
    """Inside a node ten times as fast as across."""
    found = []
    for a, b in combinations(range(len(hosts)), 2):
        for pair in ((a, b), (b, a)):
            usual = 1000.0 if hosts[a] == hosts[b] else 100.0
            found.append(Link(*pair, (slow or {}).get(pair, usual), 30.0))
    return found


@pytest.mark.parametrize("hosts", LAYOUTS.values(), ids=LAYOUTS)
def test_every_pair_once(hosts: list[str]) -> None:
    order = rounds(hosts)
    assert sorted(tuple(sorted(pair)) for pairs in order for pair in pairs) == list(combinations(range(len(hosts)), 2))
    for pairs in order:
        ranks = [rank for pair in pairs for rank in pair]
        assert len(ranks) == len(set(ranks)), "nobody is measured twice at a time"
        assert len({kind(Link(*pair, 1, 1), hosts) for pair in pairs}) == 1, "kinds do not disturb one another"


def test_links_of_a_kind_share_with_equally_many() -> None:
    """Else one that is measured alone would be faster than its like."""
    hosts = ["a"] * 4 + ["b"] * 4 + ["c"] * 4 + ["d"] * 4
    for pairs in rounds(hosts):
        nodes = [frozenset((hosts[a], hosts[b])) for a, b in pairs]
        inside = any(len(node) == 1 for node in nodes)
        assert {nodes.count(node) for node in nodes} == {2 if inside else 4}
        assert len(set(nodes)) == (4 if inside else 2)


def test_nobody_to_measure() -> None:
    assert rounds(["a"]) == []


def test_a_kind_is_compared_with_its_like() -> None:
    hosts = LAYOUTS["two by three"]
    assert slow_links(measured(hosts), hosts) == [], "across nodes a tenth is what is usual"
    assert "no link is slow" in verdict(measured(hosts), hosts)
    slow = slow_links(measured(hosts, {(0, 1): 499.0, (1, 2): 501.0, (4, 0): 49.0}), hosts)
    assert [(link.sender, link.receiver) for link in slow] == [(4, 0), (0, 1)], "below half, the slowest first"
    assert [kind(link, hosts) for link in slow] == [ACROSS, INSIDE]
    words = verdict(measured(hosts, {(4, 0): 40.0}), hosts)
    assert "slow: rank 4 (b) to rank 0 (a), 40 MiB/s, 40% of the median across nodes" in words
    assert "every slow link" not in words


def test_what_slow_links_have_in_common() -> None:
    hosts = [f"node{rank}" for rank in range(5)]
    bad = {pair: 10.0 for other in (0, 1, 3, 4) for pair in ((2, other), (other, 2))}
    assert "rank 2 (node2) is at one end of every slow link" in verdict(measured(hosts, bad), hosts)
    hosts = [f"node{rank // 2}" for rank in range(8)]
    bad = {pair: 10.0 for one in (2, 3) for other in (0, 1, 4, 5, 6, 7) for pair in ((one, other), (other, one))}
    assert "\nnode1 is at one end of every slow link" in verdict(measured(hosts, bad), hosts)
    bad = dict.fromkeys(((0, 2), (4, 6)), 10.0)
    assert "at one end" not in verdict(measured(hosts, bad), hosts)


def test_tables() -> None:
    hosts = ["a", "a", "b"]
    shown = tables(measured(hosts, {(2, 0): 40.0}), hosts)
    assert [line.split() for line in shown.splitlines()[1:6]] == [
        ["0", "1", "2"],
        ["-" * 22],
        ["0", "a", "-", "1,000", "100"],
        ["1", "a", "1,000", "-", "100"],
        ["2", "b", "40", "100", "-"],
    ]


def test_of_many_ranks_hosts_are_shown() -> None:
    hosts = [f"node{rank // 8}" for rank in range(24)]
    shown = tables(measured(hosts, {(9, 20): 7.0}), hosts)
    assert "the worst of its ranks, of 24" in shown
    rows = [line.split() for line in shown.splitlines() if line.startswith("node1")]
    assert rows[0] == ["node1", "100", "1,000", "7"]


def test_every_link_in_a_file(tmp_path: Path) -> None:
    hosts = ["a", "b"]
    write_csv(tmp_path / "links.csv", measured(hosts, {(1, 0): 7.5}), hosts)
    rows = list(csv.DictReader((tmp_path / "links.csv").open()))
    assert [(row["sender_host"], row["receiver"], row["MiB_per_s"]) for row in rows] == [
        ("a", "1", "100.0"),
        ("b", "0", "7.5"),
    ]
