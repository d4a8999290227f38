"""`lanes filters`: which weights, which layer, how many lanes; the files and what is in them; mistakes in one line."""

import csv
import io
import math
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lanes.analysis.lane_statistics import lane_labels, permutation_test
from lanes.analysis.selectivity import filter_measures
from lanes.analysis.specialisation import specialisation
from lanes.checkpoint import save_checkpoint
from lanes.looking import writing
from lanes.looking.checkpoints import filters_in, find_weights
from lanes.looking.command import run, write_filters
from lanes.looking.layers import choose_layer, told_lanes
from lanes.models.registry import build
from lanes.pictures.distributions import specialisation_picture
from lanes.pictures.filters import filter_grids
from tests.damages import DAMAGES, WAY_OUT
from tests.integration.command import refused

FIRST = {
    *("filters-conv1.csv", "lanes-conv1.csv", "tests-conv1.csv"),
    *("filters-conv1-lane0.png", "filters-conv1-lane1.png", "distributions-conv1.png"),
}


def _filters() -> Tensor:
    """Of 12 filters lane 0 is grey gratings, the last of them dead, lane 1 blobs of colour."""
    weight = 0.01 * torch.randn(12, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    grating = torch.cos(torch.arange(5) * 2 * math.pi / 4)
    for index in range(6):
        weight[index] += grating if index % 2 else grating[:, None]
        weight[6 + index, index % 3] += 1
    weight[5] = 0
    return weight


def _net() -> nn.Module:
    layers = [("conv1", nn.Conv2d(3, 12, 5)), ("conv2", nn.Conv2d(12, 8, 3)), ("conv10", nn.Conv2d(4, 8, 1, groups=2))]
    net = nn.Sequential(OrderedDict(layers))
    with torch.no_grad():
        net.conv1.weight.copy_(_filters())
    return net


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """A training's folder, with a best checkpoint beside the last, that was moved after it had been written."""
    folder = tmp_path / "run"
    config = {"model": {"net": {"class_path": "mine.Net", "init_args": {"lanes": 2}}}}
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    best = {"monitor": "val/top1", "best_model_path": "/elsewhere/best.ckpt", "best_model_score": torch.tensor(0.75)}
    for name, step in (("best", 5), ("last", 9)):
        state = {"global_step": step, "callbacks": {"a": {"monitor": None, "best_model_path": "last.ckpt"}, "b": best}}
        save_checkpoint(folder / "checkpoints" / f"{name}.ckpt", _net(), state=state)
    return folder


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- what is written -------------------------------------------------------------------------------------------------


def test_tables_and_pictures_hold_what_is_measured(training: Path) -> None:
    said = write_filters(training, training / "out")
    assert {path.name for path in (training / "out").iterdir()} == FIRST
    assert "best.ckpt (the best of" in said
    assert "val/top1 0.75" in said
    assert "conv1, 12 filters of 3x5x5 in 2 lanes" in said
    assert "conv1: lanes differ in colour selectivity" in said
    rows, measured = _read(training / "out" / "filters-conv1.csv"), filter_measures(_filters())
    assert [int(row["filter"]) for row in rows] == list(range(12))
    assert [int(row["lane"]) for row in rows] == [0] * 6 + [1] * 6
    assert [int(row["dead"]) for row in rows] == [0] * 5 + [1] + [0] * 6
    columns = {
        **{name: name for name in ("norm", "colour_selectivity", "orientation_selectivity", "orientation_degrees")},
        "frequency": "frequency_cycles_per_pixel",
    }
    for name, column in columns.items():
        np.testing.assert_array_equal([float(row[column]) for row in rows], getattr(measured, name))  # all digits
    for lane, expected in enumerate(filter_grids(_filters(), 2, name="conv1")):
        drawn = Image.open(training / "out" / f"filters-conv1-lane{lane}.png")
        np.testing.assert_array_equal(np.asarray(drawn), np.asarray(expected))
    shown = specialisation_picture(_filters(), 2, specialisation(_filters(), 2), layer="conv1")
    np.testing.assert_array_equal(Image.open(training / "out" / "distributions-conv1.png"), np.asarray(shown))


def test_statistics_leave_dead_filters_out_and_are_corrected(training: Path) -> None:
    write_filters(training, training / "out")
    alive = filter_measures(_filters()).without_dead().colour_selectivity.numpy()
    first, second = _read(training / "out" / "lanes-conv1.csv")[:2]
    assert (first["measure"], first["lane"], first["filters"]) == ("colour_selectivity", "0", "5")
    assert (second["lane"], second["filters"]) == ("1", "6")
    assert float(second["mean"]) == alive[6:].mean()
    assert float(second["sd"]) == alive[6:].std(ddof=1)
    assert [float(first[name]) for name in ("quartile_25", "median", "quartile_75")] == list(
        np.quantile(alive[:5], (0.25, 0.5, 0.75))
    )
    tests = _read(training / "out" / "tests-conv1.csv")
    colour = permutation_test(alive, lane_labels(12, 2))
    assert (tests[0]["statistic"], float(tests[0]["effect_size"])) == ("Cliff's delta", -1.0)
    assert float(tests[0]["p"]) == colour.p_value
    assert [row["exact"] for row in tests] == ["1"] * 3
    p_values = sorted((float(row["p"]), float(row["p_holm"])) for row in tests)
    assert p_values[0][1] == 3 * p_values[0][0]
    assert all(plain <= corrected <= 1 for plain, corrected in p_values)


def test_one_lane_has_nothing_to_test(training: Path) -> None:
    said = write_filters(training, training / "out", lanes=1)
    assert (training / "out" / "tests-conv1.csv").read_text().count("\n") == 1
    assert "in 1 lane (as asked for)" in said


def test_only_files_of_an_earlier_call_are_replaced(training: Path) -> None:
    out = training / "out"
    write_filters(training, out, lanes=4)
    kept = [
        "filters-conv1-lane0-step000010.png",
        "filters-conv10-lane3.png",
        "filters-conv1-grey-lane3.png",
        "mine.txt",
    ]
    for name in kept:
        (out / name).write_text("kept")
    write_filters(training, out)
    assert {path.name for path in out.iterdir()} == FIRST | set(kept)
    assert all((out / name).read_text() == "kept" for name in kept)
    assert len(_read(out / "lanes-conv1.csv")) == 3 * 2


def test_views_lie_beside_each_other(training: Path) -> None:
    for view, scale in (("rgb", "layer"), ("opponent", "layer"), ("grey", "filter")):
        write_filters(training, training / "out", view=view, scale=scale)
    more = {f"filters-conv1-{how}-lane{lane}.png" for how in ("opponent", "grey-each-filter") for lane in range(2)}
    assert {path.name for path in (training / "out").iterdir()} == FIRST | more


def test_a_failing_write_leaves_the_earlier_files(training: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = training / "out"
    write_filters(training, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(path: Path, contents: object) -> None:
        path.write_bytes(b"half")
        if path.suffix == ".png":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        write_filters(training, out, lanes=4)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_layer_inside_the_network(training: Path) -> None:
    said = write_filters(training, training / "out", "conv2", groups=1)
    names = {f"kernels-conv2-lane{lane}-{who}.png" for lane in range(2) for who in ("own", "others")}
    assert {path.name for path in (training / "out").iterdir()} == names | {"weights-conv2.csv", "weights-conv2.png"}
    weight = load_file(training / "checkpoints" / "best.ckpt" / "model.safetensors")["conv2.weight"].double().square()
    rows = _read(training / "out" / "weights-conv2.csv")
    assert float(rows[1]["own_share"]) == pytest.approx(float(weight[4:, 6:].sum() / weight[4:].sum()), rel=1e-6)
    assert [row["chance_share"] for row in rows] == ["0.5", "0.5"]
    assert "share of a lane's squared weights" in said
    write_filters(training, training / "out", "conv2", lanes=1, groups=1)
    kernels = [path.name for path in (training / "out").glob("kernels-*")]
    assert kernels == ["kernels-conv2-lane0-own.png"]  # one lane has no others
    write_filters(training, training / "single", "conv10", groups=2)
    assert {path.name for path in (training / "single").iterdir()} == {"weights-conv10.csv", "weights-conv10.png"}


# --- which weights, layer, lanes -------------------------------------------------------------------------------------


def test_the_checkpoint_that_is_meant(training: Path) -> None:
    checkpoints = training / "checkpoints"
    assert find_weights(training).place == checkpoints / "best.ckpt"
    assert find_weights(checkpoints).place == checkpoints / "best.ckpt"
    assert find_weights(checkpoints / "last.ckpt").place == checkpoints / "last.ckpt"
    file = checkpoints / "last.ckpt" / "model.safetensors"
    assert find_weights(file).place == checkpoints / "last.ckpt"
    (checkpoints / "best.ckpt").rename(checkpoints / "gone")  # what the last one calls the best is not there
    (checkpoints / "gone" / "manifest.json").unlink()
    found = find_weights(training)
    assert found.place == checkpoints / "last.ckpt"
    assert "the last of" in found.remark
    with pytest.raises(ValueError, match=r"give one of .*run"):
        find_weights(training.parent)


def test_files_of_any_model(tmp_path: Path) -> None:
    state = _net().state_dict()
    save_file(state, tmp_path / "net.safetensors")
    torch.save(state, tmp_path / "net.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "training.pth")
    for name in ("net.safetensors", "net.pt", "training.pth"):
        found = filters_in(find_weights(tmp_path / name).file)
        assert list(found) == ["conv1", "conv2", "conv10"]  # not conv10 before conv2
        assert torch.equal(found["conv1"], _filters())
    said = write_filters(tmp_path / "net.pt", tmp_path / "out")
    assert "in 1 lane (nothing tells how many there are; --lanes N does)" in said


def test_nothing_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "was run",)

    for name, write in (("new", torch.save), ("old", lambda what, path: path.write_bytes(pickle.dumps(what)))):
        write({"conv1.weight": _filters(), "evil": Evil()}, tmp_path / f"{name}.pt")
        told = refused(["filters", str(tmp_path / f"{name}.pt"), "-o", str(tmp_path / "out")], monkeypatch, capfd)
        assert "nothing in it is run" in told
        assert "weights_only" not in told  # torch's advice is to run it
    assert not (tmp_path / "was run").exists()
    assert not (tmp_path / "out").exists()


def test_the_layer_that_reads_the_images() -> None:
    file = Path("net.pt")
    mobile = {n.removesuffix(".weight"): w for n, w in build("mobilenet_v1_cifar").state_dict().items() if w.dim() == 4}
    assert choose_layer(mobile, None, file) == "stem.0"  # its depthwise layers read 1 channel each
    grey = {"a": torch.zeros(4, 8, 3, 3), "b": torch.zeros(8, 1, 3, 3)}
    assert choose_layer(grey, None, file) == "b"
    with pytest.raises(ValueError, match=r"2 layers of net.pt read 1 channel: name one .* c \(8x1x3x3\)"):
        choose_layer(grey | {"c": torch.zeros(8, 1, 3, 3)}, None, file)
    with pytest.raises(ValueError, match=r"no layer of net.pt reads 1 or 3 channels: .* a \(4x8x3x3\)"):
        choose_layer({"a": torch.zeros(4, 8, 3, 3)}, None, file)


@pytest.mark.parametrize(
    ("config", "lanes"),
    [
        (
            {
                "model": {"net": {"init_args": {"lanes": 4}}},
                "trainer": {"strategy": {"init_args": {"lane_devices": 2}}},
            },
            4,
        ),
        ({"model": {"net": {"class_path": "lanes.models.Named", "init_args": {"name": "alexnet"}}}}, 2),
        ({"model": {"net": {"class_path": "lanes.models.Named", "init_args": {"name": "alexnet_dense"}}}}, 1),
        ({"model": {"net": "lanes.models.ResNet"}, "trainer": {"strategy": {"init_args": {"lane_devices": 3}}}}, 3),
        ({"trainer": {"strategy": {"init_args": {"lane_devices": "auto"}}}}, None),
        (["not", "ours"], None),
    ],
)
def test_the_configuration_tells_how_many_lanes(training: Path, config: object, lanes: int | None) -> None:
    (training / "config.yaml").write_text(yaml.safe_dump(config))
    told = told_lanes(find_weights(training).file)
    assert told == ((lanes, str(training / "config.yaml")) if lanes else (1, ""))


# --- mistakes --------------------------------------------------------------------------------------------------------

MISTAKES = {
    "checkpoint/nowhere": "no such file or folder",
    "run/chekpoints": "did you mean 'checkpoints'",
    "run/config.yaml": "is no checkpoint: give a checkpoint's folder",
    "run --layer conv3": "has no convolution 'conv3'; did you mean 'conv2'",
    "run --layer conv2": "give --groups N (1 if it reads conv1)",
    "run --layer conv2 --groups 3": "8 output channels do not divide over groups=3",
    "run --layer conv2 --groups 1 --view grey": "--view and --scale are for a layer that reads images",
    "run --lanes 5": "12 filters do not divide over lanes=5",
    "run --lanes 0": "do not divide over lanes=0",
    "run -o run/config.yaml": "is a file; name a folder",
    "run -o run/config.yaml/inside": "lies in run/config.yaml, which is a file",
    "cut.safetensors": "cannot be read, it may be cut off",
    "cut.pt": "cannot be read: it is cut off",
    "list.pt": "holds a list, not a state dict",
    "linear.pt": "holds no weights of 2-d convolutions, LAYER.weight [K, C, h, w]: it holds fc.weight",
    "broken.pt": "not finite",
}


@pytest.fixture
def mistaken(training: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = training.parent
    monkeypatch.chdir(folder)
    whole = (training / "checkpoints" / "last.ckpt" / "model.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    state = io.BytesIO()
    torch.save(_net().state_dict(), state)
    (folder / "cut.pt").write_bytes(state.getvalue()[: len(state.getvalue()) // 2])
    torch.save([1], folder / "list.pt")
    torch.save({"fc.weight": torch.zeros(2, 2)}, folder / "linear.pt")
    torch.save({"conv1.weight": torch.full((4, 3, 2, 2), math.nan)}, folder / "broken.pt")
    return folder


@pytest.mark.parametrize("arguments", MISTAKES)
def test_mistakes_are_told_before_anything_is_written(arguments: str, mistaken: Path, monkeypatch, capfd) -> None:
    before = sorted(mistaken.rglob("*"))
    assert MISTAKES[arguments] in refused(["filters", *arguments.split()], monkeypatch, capfd)
    assert sorted(mistaken.rglob("*")) == before


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("place", ["run", "run/checkpoints/best.ckpt", "run/checkpoints/best.ckpt/model.safetensors"])
def test_a_checkpoint_that_is_not_what_was_written(
    damage: str, place: str, mistaken: Path, training: Path, monkeypatch, capfd
) -> None:
    checkpoints = training / "checkpoints"
    other = _net()
    nn.init.zeros_(other.conv1.weight)
    save_checkpoint(checkpoints / "other", other, state={"global_step": 2})
    spoil, words = DAMAGES[damage]
    spoil(checkpoints / "best.ckpt")
    before = sorted(mistaken.rglob("*"))
    if damage == "no manifest" and place != "run/checkpoints/best.ckpt":  # the last one; or told that it is good
        write_filters(place, mistaken / "out")
        return
    told = refused(["filters", place], monkeypatch, capfd)
    assert all(word in told for word in words), told
    if damage in ("cut off", "swapped"):
        assert f"{WAY_OUT}run/checkpoints/last.ckpt" in told
    if damage == "no manifest":
        assert "if its weights are good all the same, give run/checkpoints/best.ckpt/model.safetensors" in told
    assert sorted(mistaken.rglob("*")) == before


def test_what_is_not_read_and_what_is_not_ours_need_not_be_whole(training: Path) -> None:
    best = training / "checkpoints" / "best.ckpt"
    (best / "state.json").unlink()
    assert find_weights(best).file == best / "model.safetensors"
    save_file(_net().state_dict(), best / "exported.safetensors")
    assert find_weights(best / "exported.safetensors").file == best / "exported.safetensors"
    theirs = training.parent / "theirs"
    theirs.mkdir()
    save_file(_net().state_dict(), theirs / "model.safetensors")
    assert find_weights(theirs).file == theirs / "model.safetensors"


def test_the_newest_by_steps_is_not_the_best(training: Path) -> None:
    newest = {"monitor": "step", "best_model_path": "newest.ckpt", "best_model_score": torch.tensor(9.0)}
    best = {"monitor": "val/top1", "best_model_path": "best.ckpt", "best_model_score": torch.tensor(0.75)}
    state = {"global_step": 10, "callbacks": {"a": newest, "b": best}}
    save_checkpoint(training / "checkpoints" / "newest.ckpt", _net(), state=state)
    assert find_weights(training).place == training / "checkpoints" / "best.ckpt"


def test_the_verb_needs_no_lightning_and_no_wandb(training: Path) -> None:
    script = (
        "import sys; from lanes.cli import main; main(['filters', sys.argv[1], '-o', sys.argv[2]]);"
        "print(sorted({'lightning', 'wandb', 'datasets'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, str(training), str(training / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


def test_help_names_the_ways_to_call_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(["--help"])
    assert end.value.code == 0
    assert "average.safetensors" in capsys.readouterr().out
