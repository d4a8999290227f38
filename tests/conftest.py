"""Fixtures shared by all tests; at the end of a run the table of measured errors, and which files took longest."""

from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.ranks import Ranks

MEASURED = "measured"
SLOWEST = 20  # files that are listed
_measured: list[str] = []
_seconds: Counter[str] = Counter()


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """A pool of real processes."""
    pool = Ranks()
    yield pool
    pool.stop()


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Add a line to the table of measured errors."""
    return lambda line: request.node.user_properties.append((MEASURED, line))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """In the process that prints, whichever ran the test."""
    _seconds[report.nodeid.partition("::")[0]] += report.duration  # type: ignore[assignment]
    if report.when == "teardown":
        _measured.extend(str(line) for name, line in report.user_properties if name == MEASURED)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _measured:
        terminalreporter.section("measured against the plain model")
        for line in _measured:
            terminalreporter.write_line(line)
    if len(_seconds) > 1:
        terminalreporter.section(f"slowest files, of {sum(_seconds.values()) / 60:.0f} minutes in all")
        for file, seconds in _seconds.most_common(SLOWEST):
            terminalreporter.write_line(f"{seconds:6.0f} s  {file}")
