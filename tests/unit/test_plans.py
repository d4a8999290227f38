"""A plan as data: its table, the file that it is saved in, and what is refused in an edited one."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from lanes import Plan
from tests.planned import plan_alexnet


def test_table() -> None:
    lines = str(plan_alexnet()).splitlines()
    assert lines[0] == "2 lane devices, crossings in float32; bytes are per image and lane device"
    assert lines[1].split("  ")[0] == "layer"
    rows = {line.split()[0]: line for line in lines[3:-3]}
    assert list(rows) == list(plan_alexnet().layers)
    assert re.search(
        r"Conv2d\s+crosses: gather\s+84\.5 KiB\s+84\.5 KiB\s+253\.5 KiB\s+169\.0 KiB\s+442,560$", rows["conv3"]
    )
    assert re.search(r"Conv2d\s+stays\s+-\s+-\s+-\s+-\s+153,728$", rows["conv2"])
    assert re.search(r"Linear\s+crosses: leave_sum\s+4,000 B\s+-\s+4,000 B\s+-\s+2,049,000$", rows["fc8"])
    assert re.search(r"^total\s+104\.4 KiB\s+100\.5 KiB\s+542\.9 KiB\s+185\.0 KiB\s+30,483,112$", lines[-2])
    assert lines[-1].startswith("Megatron-style: forward and backward")
    assert str(plan_alexnet(1)).startswith("1 lane device, ")
    assert not any(line != line.rstrip() for line in lines)


def test_save_and_load(tmp_path: Path) -> None:
    plan = plan_alexnet(dtype=torch.bfloat16)
    plan.save(tmp_path / "plan.yaml")
    loaded = Plan.load(tmp_path / "plan.yaml")
    assert loaded == plan
    assert list(loaded.layers) == list(plan.layers)
    assert str(loaded) == str(plan)
    assert Plan.load(str(tmp_path / "plan.yaml")) == plan


EDITS: dict[str, tuple[Callable[[dict], object], str]] = {
    "another format": (lambda d: d | {"format": "lanes-plan/9"}, "lanes-plan/9"),
    "no format": (lambda d: {k: v for k, v in d.items() if k != "format"}, "None"),
    "a list": (lambda d: [d], "list"),
    "empty": (lambda d: None, "NoneType"),
    "no layers": (lambda d: {k: v for k, v in d.items() if k != "layers"}, "layers"),
    "layers is a list": (lambda d: d | {"layers": list(d["layers"])}, "whole plan"),
    "a layer without a way": (lambda d: d | {"layers": {"conv1": {"type": "Conv2d"}}}, "way"),
    "a layer with too much": (
        lambda d: d | {"layers": {k: v | {"colour": "red"} for k, v in d["layers"].items()}},
        "colour",
    ),
    "a layer that is a word": (lambda d: d | {"layers": {"conv1": "gather"}}, "whole plan"),
    "lane_devices is a word": (lambda d: d | {"lane_devices": "two"}, "two"),
    "a mistyped way": (
        lambda d: d | {"layers": d["layers"] | {"conv3": d["layers"]["conv3"] | {"way": "gahter"}}},
        "gahter",
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edited_plans_are_refused_with_the_file(tmp_path: Path, edit: str) -> None:
    file = tmp_path / "plan.yaml"
    plan_alexnet().save(file)
    change, words = EDITS[edit]
    file.write_text(yaml.safe_dump(change(yaml.safe_load(file.read_text()))))
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        Plan.load(file)
    assert str(file) in str(error.value)


def test_what_is_no_yaml_is_refused_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("format: lanes-plan/1\nlayers: {conv1: [")
    with pytest.raises(ValueError, match="plan") as error:
        Plan.load(file)
    assert str(file) in str(error.value)
