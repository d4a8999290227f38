"""scripts/checkpoint_cost: what is taken of a round, and the line of the table."""

import pytest

from tests.unit.test_scripts import load


@pytest.fixture(scope="module")
def script():
    return load("checkpoint_cost")


def test_the_line_tells_both_sides_and_what_the_steps_meanwhile_cost(script) -> None:
    quiet = {"quiet": [0.2, 0.1, 0.1]}
    rounds = [
        {**quiet, "background": 0.1, "busy": [0.15, 0.25], "written": 0.5, "blocking": 1.0},
        {**quiet, "background": 0.2, "busy": [0.1], "written": 0.7, "blocking": 1.0},
        {**quiet, "background": 0.3, "busy": [], "written": 0.9, "blocking": 0.6},
    ]
    cells = [cell.strip() for cell in script.row("alexnet", 488 * 2**20, rounds).strip("|").split("|")]
    assert cells == [
        "alexnet, 32 images a step, 488 MiB",
        "200 (100 - 300) ms",
        "1,000 (600 - 1,000) ms",
        "0.20 (0.10 - 0.50)",
        "700 (500 - 900) ms",
        "100 (100 - 200) ms",
        "1.50 (1.00 - 2.00), of 3 steps",
        "0.30 (0.20 - 0.50)",
        "3",
    ]
    assert script.HEAD[0].count("|") == script.HEAD[1].count("|") == len(cells) + 1


def test_a_write_that_ends_before_the_next_step(script) -> None:
    rounds = [{"quiet": [0.1], "background": 0.1, "busy": [], "written": 0.1, "blocking": 0.2}]
    assert "| none began | 0.50 (0.50 - 0.50) | 1 |" in script.row("small_alexnet", 1, rounds)
