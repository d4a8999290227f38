"""What a process finds out by itself of the network that it is to use."""

import socket

import pytest

from lanes.network import addresses
from lanes.network.addresses import GLOO, NCCL, MeetingError, check_interfaces, check_own, gloo_address, resolved


@pytest.fixture(autouse=True)
def nothing_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (GLOO, NCCL):
        monkeypatch.delenv(name, raising=False)


def test_an_interface_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GLOO, "lo")
    check_interfaces("gloo")
    assert gloo_address() == "127.0.0.1"


@pytest.mark.parametrize("names", ["ib7", "lo,ib7", "lo7"])
def test_no_such_interface(monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    monkeypatch.setenv(GLOO, names)
    with pytest.raises(MeetingError) as error:
        check_interfaces("gloo")
    said = str(error.value)
    assert f"GLOO_SOCKET_IFNAME={names}: there is no such interface on {socket.gethostname()}, which has " in said
    assert "lo (127.0.0.1)" in said


@pytest.mark.parametrize(
    ("names", "right"), [("l", True), ("=l", False), ("ib,lo", True), ("=lo", True), ("ib", False)]
)
def test_nccls_way_of_writing(monkeypatch: pytest.MonkeyPatch, names: str, right: bool) -> None:
    monkeypatch.setenv(NCCL, names)
    check_interfaces("gloo")  # which does not read it
    if right:
        check_interfaces("nccl")
        return
    with pytest.raises(MeetingError, match=f"NCCL_SOCKET_IFNAME={names}: there is no such interface"):
        check_interfaces("nccl")


def test_nccl_without_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses.psutil, "net_if_stats", lambda: {"lo": None, "docker0": None})
    monkeypatch.setattr(addresses, "interfaces", lambda: {"lo": "127.0.0.1"})
    monkeypatch.setenv(NCCL, "^docker")
    check_interfaces("nccl")
    monkeypatch.setenv(NCCL, "^lo")
    with pytest.raises(MeetingError, match="NCCL_SOCKET_IFNAME=\\^lo: docker0 is down or has no address"):
        check_interfaces("nccl")


@pytest.mark.parametrize(
    ("address", "way_out"),
    [
        ("nowhere.invalid", "getent hosts NAME"),
        ("[::1]", "without brackets: ::1"),
        ("localhost:29500", "MASTER_ADDR=localhost MASTER_PORT=29500"),
    ],
)
def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch, address: str, way_out: str) -> None:
    monkeypatch.setattr(addresses, "NAMES_S", 0.5)  # a machine without name servers cannot know that there is none
    with pytest.raises(MeetingError) as error:
        resolved(address)
    assert f"MASTER_ADDR={address} does not resolve on {socket.gethostname()}" in str(error.value)
    assert way_out in str(error.value)


def test_the_meeting_point_is_where_rank_0_runs() -> None:
    check_own("localhost", resolved("localhost"))
    with pytest.raises(MeetingError, match=r"MASTER_ADDR=192\.0\.2\.77 is not .*, where rank 0 runs.*lo \(127"):
        check_own("192.0.2.77", ["192.0.2.77"])


def test_a_host_that_does_not_know_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Gloo does then; others cannot reach it there (meeting.py)."""
    monkeypatch.setattr(socket, "gethostname", lambda: "nowhere.invalid")
    assert gloo_address() == "127.0.0.1"
