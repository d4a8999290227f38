"""Many tests at once, and what channels prefer: known answers."""

import math

import pytest
import torch

from lanes.analysis.lane_tests import holm, lane_tests
from lanes.analysis.preferences import FrequencyPreference, preferred_class
from lanes.analysis.responses import ClassSelectivity


def test_holms_example() -> None:
    """Four tests: 0.005 x 4, 0.01 x 3, 0.03 x 2, and 0.04 x 1, which is no smaller than the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def test_all_measures_of_all_layers_are_corrected_together() -> None:
    apart, nothing = [*range(8), *range(100, 108)], [math.nan] * 16
    same = [*range(0, 16, 2), *range(1, 16, 2)]
    found = lane_tests({"conv1": {"a": apart, "b": nothing}, "conv2": {"a": same}}, 2)
    assert [(test.layer, test.measure) for test in found] == [("conv1", "a"), ("conv1", "b"), ("conv2", "a")]
    first, undefined, other = found
    assert first.test is not None
    assert other.test is not None
    assert first.test.effect.value == -1
    assert first.corrected == 2 * first.test.p_value < 0.001, "of the two tests that could be made"
    assert other.corrected == other.test.p_value > 0.05
    assert undefined.test is None
    assert math.isnan(undefined.corrected)
    assert [lane.count for lane in undefined.lanes] == [0, 0]


def test_the_preferred_frequency_is_that_of_the_largest_response() -> None:
    measure = FrequencyPreference(3, frequencies=(0.1, 0.2))
    measure.update(torch.tensor([[1.0, 5, -1], [2, 0, -1]]), 0)
    measure.update(torch.tensor([[3.0, 4, -1]]), 1)
    first, second, silent = measure.compute().tolist()
    assert (first, second) == (0.2, 0.1)
    assert math.isnan(silent)
    with pytest.raises(ValueError, match="frequency 2 is no index of the 2 frequencies"):
        measure.update(torch.zeros(1, 3), 2)


def test_the_preferred_class_is_that_of_the_largest_mean() -> None:
    """Class 1 has the largest sum but not the largest mean, class 3 no images."""
    measure = ClassSelectivity(2, num_classes=4)
    responses = torch.tensor([[1.0, -1], [4, -1], [4, -1], [5, -1]])
    measure.update(responses, torch.tensor([0, 1, 1, 2]))
    found = preferred_class(measure)
    assert found.favourite[0] == 2
    assert found.favourite[1].isnan(), "nothing excites it"
    assert found.strength.tolist() == [3.5, 0]
