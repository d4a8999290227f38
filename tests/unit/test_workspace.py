"""`lanes workspace`: every logged key has a panel, the specification is as it was, mistakes in one line."""

import json
import socket
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lanes.analysis.specialisation import MEASURES
from lanes.cli import main
from lanes.workspace.panels import Panel, expected_keys, sections
from lanes.workspace.specification import STEP_KEY, as_json, workspace
from tests.integration.command import refused
from tests.report_runs import log_file, two_runs

GOLDEN = Path(__file__).parents[1] / "workspace.json"

SCALARS = [
    *(f"spec/lane{lane}/{measure}" for lane in range(2) for measure in ("frequency", "dead")),
    *("spec/effect/frequency", "spec/effect/colour_selectivity", "spec/p/frequency", "spec/p/colour_selectivity"),
    *("train/loss", "val/loss", "val/top1", "train/lr", "step_time_s", "data_wait_share", "crossing/sent_MiB"),
    *("health/conv1/lane0/update_ratio", "health/conv1/lane1/update_ratio", "health/gradient_norm"),
    *("corr/conv1-conv2/ratio", "mine", "epoch"),
]
PICTURES = ["filters/lane1/conv1", "filters/lane0/conv1", "corr/conv1-conv2", "spec/distributions", "predictions"]


def _panels(scalars: list[str], pictures: list[str]) -> dict[str, tuple[Panel, ...]]:
    return {section.name: section.panels for section in sections(scalars, pictures)}


# --- which panels ----------------------------------------------------------------------------------------------------


def test_every_key_has_one_panel() -> None:
    keys = Counter(key for panels in _panels(SCALARS, PICTURES).values() for panel in panels for key in panel.keys)
    assert keys == Counter({*SCALARS, *PICTURES} - {"epoch"})


def test_lanes_share_a_plot_and_stand_side_by_side() -> None:
    found = _panels(SCALARS, PICTURES)
    assert found["What each lane has become"] == (
        Panel("spec/lane*/dead", ("spec/lane0/dead", "spec/lane1/dead")),
        Panel("spec/lane*/frequency", ("spec/lane0/frequency", "spec/lane1/frequency")),
    )
    assert found["Filters, lane by lane"] == (
        Panel("conv1, lane 0", ("filters/lane0/conv1",), pictures=True),
        Panel("conv1, lane 1", ("filters/lane1/conv1",), pictures=True),
    )
    assert found["Loss and accuracy"][0] == Panel("*/loss", ("train/loss", "val/loss"))
    effects, chances = found["Do lanes differ?"]
    assert effects.keys == ("spec/effect/colour_selectivity", "spec/effect/frequency")
    assert (effects.log_y, chances.log_y) == (False, True)


def test_as_many_columns_as_lanes_layer_by_layer() -> None:
    pictures = [f"filters/lane{lane}/{layer}" for lane in range(12) for layer in ("conv2", "conv1")]
    for lanes, columns in ((2, 2), (3, 3), (12, 4)):
        [section] = sections([], pictures[: 2 * lanes])
        assert section.columns == columns
    titles = [panel.title for panel in section.panels]
    assert titles == [f"{layer}, lane {lane}" for layer in ("conv1", "conv2") for lane in range(12)]


def test_lanes_are_told_by_whole_words() -> None:
    found = _panels(["health/lane1norm/lane0/x", "health/lane1norm/lane1/x", "health/midlane2/x"], [])
    assert [panel.keys for panel in found["Health"]] == [
        ("health/lane1norm/lane0/x", "health/lane1norm/lane1/x"),
        ("health/midlane2/x",),
    ]


def test_expected_keys_are_those_of_a_training() -> None:
    scalars, pictures = expected_keys(2, ["conv1", "conv2"], list(MEASURES))
    assert {"spec/lane1/colour_selectivity", "spec/lane0/dead", "spec/p/frequency", "val/top1"} <= set(scalars)
    assert pictures == [
        *("filters/lane0/conv1", "filters/lane1/conv1", "corr/conv1-conv2", "spec/distributions", "predictions")
    ]
    assert "More" not in _panels(scalars, pictures)
    alone, _ = expected_keys(1, ["conv1"], list(MEASURES))
    assert not [key for key in alone if key.startswith(("spec/effect", "spec/p"))]


# --- the specification -----------------------------------------------------------------------------------------------


def _without_ids(part: Any) -> Any:
    """The same without the identifiers that are drawn anew each time."""
    if isinstance(part, dict):
        return {key: "ID" if key == "__id__" else _without_ids(value) for key, value in part.items()}
    return [_without_ids(item) for item in part] if isinstance(part, list) else part


def test_the_specification_is_as_it_was() -> None:
    built = workspace(sections(SCALARS, PICTURES), entity="me", project="lanes", name="lanes")
    # After a wanted change: write this text to the file, and read the difference.
    assert json.dumps(_without_ids(json.loads(as_json(built))), indent=1) + "\n" == GOLDEN.read_text()


def test_panels_step_by_the_training_and_have_a_slider() -> None:
    document = json.loads(as_json(workspace(sections(SCALARS, PICTURES), entity="", project="p", name="n")))
    made = document["spec"]["section"]["panelBankConfig"]["sections"]
    panels = [panel for section in made for panel in section["panels"]]
    plots = [panel["config"] for panel in panels if panel["viewType"] == "Run History Line Plot"]
    media = [panel["config"] for panel in panels if panel["viewType"] == "Media Browser"]
    assert {plot["xAxis"] for plot in plots} == {STEP_KEY}
    assert sorted(key for panel in media for key in panel["mediaKeys"]) == sorted(PICTURES)
    assert {panel["gallerySettings"]["axis"] for panel in media} == {"run"}  # "step" would lay all steps side by side
    assert len({panel["__id__"] for panel in panels}) == len(panels)


# --- the verb --------------------------------------------------------------------------------------------------------


def test_the_panels_follow_what_runs_have_logged(tmp_path_factory, tmp_path: Path, capsys) -> None:
    runs, output = two_runs(tmp_path_factory), tmp_path / "workspace.json"
    output.write_text("an earlier one")
    main(["workspace", str(runs), "--entity", "me", "-o", str(output)])
    assert capsys.readouterr().out.startswith(f"{output}: ")
    document = json.loads(output.read_text())
    assert (document["entity"], document["project"], document["displayName"]) == ("me", "lanes", "lanes")
    made = document["spec"]["section"]["panelBankConfig"]["sections"]
    told = {section["name"]: [panel["config"] for panel in section["panels"]] for section in made}
    assert [panel["mediaKeys"] for panel in told["Filters, lane by lane"]] == [
        [f"filters/lane{lane}/conv1"] for lane in range(2)
    ]
    [curves] = told["What each lane has become"]
    assert curves["metrics"] == ["spec/lane0/colour_share", "spec/lane1/colour_share"]
    assert [panel["metrics"] for panel in told["More"]] == [["broken"]]  # of one of the two runs
    assert [path.name for path in tmp_path.iterdir()] == ["workspace.json"]


def test_printing_asks_no_server(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    main(["workspace", "--lanes", "3", "--layer", "stem", "--layer", "body", "--print"])
    made = json.loads(capsys.readouterr().out)["spec"]["section"]["panelBankConfig"]["sections"]
    media = [key for section in made for panel in section["panels"] for key in panel["config"].get("mediaKeys", ())]
    filters = [f"filters/lane{lane}/stem" for lane in range(3)]
    assert media == [*filters, "spec/distributions", "corr/stem-body", "predictions"]


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    for name in [*(name for name in sys.modules if name.startswith("wandb_workspaces")), "wandb_workspaces"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert "pip install wandb-workspaces" in refused(["workspace", "--lanes", "2", "--print"], monkeypatch, capfd)


def test_mistakes_are_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    log_file(tmp_path / "killed", "abc", "20260101_000000")
    mistakes = {
        "": "give a RUN, whose keys the panels follow, or --lanes N",
        "nowhere": "no such folder: nowhere",
        "killed": "nothing was logged yet in killed: give --lanes N",
        "killed --lanes 2": "--lanes and --layer are for a workspace without a RUN",
        "--layer conv1": "or --lanes N",
        "--lanes 0": "--lanes 0 must be at least 1",
        "--lanes 2 -o killed": "is a folder; name a file",
        "--lanes 2 -o nowhere/file.json": "there is no folder nowhere",
        "--lanes 2 --print -o file.json": "not allowed with argument",
    }
    for arguments, told in mistakes.items():
        assert told in refused(["workspace", *arguments.split()], monkeypatch, capfd), arguments
    assert [path.name for path in tmp_path.iterdir()] == ["killed"]
