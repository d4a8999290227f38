"""What the README shows is what the code prints."""

import re
from pathlib import Path

import pytest
import torch

import lanes

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_plan_of_alexnet() -> None:
    with torch.device("meta"):
        plan = lanes.plan(lanes.models.AlexNet(lanes=2), torch.empty(2, 3, 224, 224), lane_devices=2)
    shown = re.search(r"<!-- plan:begin -->\n```\n(.*?)```\n<!-- plan:end -->", README, re.DOTALL)
    assert shown is not None
    assert shown.group(1) == f"{plan}\n"


def test_refusal() -> None:
    with torch.device("meta"), pytest.raises(lanes.PlanError) as error:
        lanes.plan(lanes.models.AlexNet(lanes=2), torch.empty(2, 3, 224, 224), lane_devices=4)
    assert f"\n{error.value}\n" in README


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"
        for command in re.findall(r"`((?:scripts|examples|configs|tests|lanes)/[\w./-]+)", page.read_text()):
            assert (ROOT / command).exists(), f"{page.name}: {command}"
