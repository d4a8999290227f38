"""Training state through JSON text and back."""

import json
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lanes.statecodec import decode, encode


def through_json(value: Any) -> Any:
    return decode(json.loads(json.dumps(encode(value))))


VALUES = {
    "nothing": None,
    "bool": True,
    "number": 3,
    "float": 0.1,
    "infinity": math.inf,
    "text": "ä\n",
    "list": [1, [2, []], None],
    "tuple": (1, (2,), ()),
    "tuples in lists in tuples": ([(1, 2)], [[]]),
    "mapping": {"a": 1, "b": {"c": None}},
    "empty mapping": {},
    "int keys": {0: "a", -1: {2: "b"}},
    "mixed keys": {1: "int", "1": "str", None: "none", (1, 2): "tuple", 0.5: "float"},
    "keys that look like ours": {"__tuple__": [1], "a": 2},
    "key __tensor__": {"__tensor__": 1, "dtype": "float32"},
    "key __items__": {"__items__": [[1, 2]]},
    "callbacks as Lightning has them": {"ModelCheckpoint{'monitor': None}": {"best_k_models": {}, "kth_value": -1.5}},
}


@pytest.mark.parametrize("title", VALUES)
def test_plain_values(title: str) -> None:
    value = VALUES[title]
    back = through_json(value)
    assert back == value
    assert repr(back) == repr(value)  # tells True from 1 and (1,) from [1], inside too


TENSORS = {
    "scalar": torch.tensor(1.5),
    "float64": torch.tensor([0.1, 1 / 3], dtype=torch.float64),
    "float32": torch.tensor([0.1, 1 / 3]),
    "bfloat16": torch.tensor([0.1, 3.0], dtype=torch.bfloat16),
    "int64": torch.tensor([[1, 2**53 + 1]]),
    "bool": torch.tensor([True, False]),
    "not finite": torch.tensor([math.inf, -math.inf]),
    "empty": torch.empty(0),
    "empty with a shape": torch.empty(2, 0, 3),
    "largest": torch.arange(1024),
    "transposed": torch.arange(6).view(2, 3).T,
    "random stream": torch.arange(1000, dtype=torch.uint8),
}


@pytest.mark.parametrize("title", TENSORS)
def test_tensors(title: str) -> None:
    tensor = TENSORS[title]
    back = through_json({"a": [tensor]})["a"][0]
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    assert torch.equal(back, tensor)


def test_a_tensor_that_needs_a_gradient_and_a_parameter() -> None:
    for tensor in (torch.ones(2, requires_grad=True), nn.Parameter(torch.ones(2))):
        assert torch.equal(through_json(tensor), tensor.detach())


def test_nested() -> None:
    value = {"loops": {0: [(torch.tensor(2), None), {"x": (1.0,)}]}}
    back = through_json(value)
    assert isinstance(back["loops"][0][0], tuple)
    assert torch.equal(back["loops"][0][0][0], torch.tensor(2))
    assert back["loops"][0][1] == {"x": (1.0,)}


def test_not_a_number() -> None:
    assert math.isnan(through_json(math.nan))
    assert through_json(torch.tensor(math.nan)).isnan()


def test_paths_become_text() -> None:
    assert through_json({"dir": Path("a") / "b"}) == {"dir": "a/b"}


def test_ordered_mappings_keep_their_order() -> None:
    assert list(through_json(OrderedDict([("b", 1), ("a", 2)]))) == ["b", "a"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (object(), ("state: ", "object")),
        ({"a": {"b": [0, {1}]}}, ("state.a.b[1]: ", "set")),
        ({"a": (1, b"x")}, ("state.a[1]: ", "bytes")),
        ({0: print}, ("state[0]: ", "builtin_function_or_method")),
        ({"a": 1j}, ("state.a: ", "complex")),
        ({"a": [torch.zeros(1025)]}, ("state.a[0]: ", "1025 elements", "too large")),
        ({frozenset(): 1}, ("state", "frozenset")),
    ],
)
def test_refusal_names_the_place(value: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(TypeError) as error:
        encode(value)
    for word in words:
        assert word in str(error.value)


def test_the_caller_names_the_place() -> None:
    with pytest.raises(TypeError, match=r"^optimizer\.lr: a Module "):
        encode({"lr": nn.Module()}, "optimizer")


def test_the_value_is_left_as_it_was() -> None:
    tensor: Tensor = torch.zeros(2)
    value = {"a": [tensor, (1,)]}
    encode(value)
    assert value["a"][0] is tensor
    assert value["a"][1] == (1,)
