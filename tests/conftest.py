"""Fixtures shared by all tests, and the table of measured errors at the end of a run."""

from collections.abc import Callable, Iterator

import pytest

from tests.ranks import Ranks

MEASURED = "measured"
_measured: list[str] = []


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
    if report.when == "teardown":
        _measured.extend(str(line) for name, line in report.user_properties if name == MEASURED)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _measured:
        terminalreporter.section("measured against the plain model")
        for line in _measured:
            terminalreporter.write_line(line)
