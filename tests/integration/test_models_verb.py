"""The verb ``models``: the table of networks, all about one, and that a configuration takes what it prints."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lanes.cli import main
from lanes.models import names
from lanes.models.registry import ENTRIES
from tests.integration.command import CONFIG, ROOT, lanes, refused


def rows(listing: str) -> dict[str, list[str]]:
    """Name -> the other cells of its row."""
    lines = [re.split(r"\s{2,}", line) for line in listing.splitlines()[2:-1]]
    return {name: cells for name, *cells in lines}


def test_the_listing(tmp_path: Path) -> None:
    answer = lanes("models", folder=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr in ("", f"reading {len(names())} networks ...\n")
    table = rows(answer.stdout)
    assert list(table) == names()
    assert table["alexnet"][:5] == ["60,965,224", "724.4 M", "3 x 224 x 224", "2", "1, 2"]
    assert table["nin_root8"][:5] == ["314,954", "103.3 M", "3 x 32 x 32", "4, 8", "1, 2, 4"]
    assert table["resnext50_32x4d"][:5] == ["25,028,904", "4,230.5 M", "3 x 224 x 224", "32", "1, 2, 4, 8, 16, 32"]
    assert table["mobilenet_v2"][:5] == ["3,504,872", "300.8 M", "3 x 224 x 224", "depthwise", "1, 2, 4, 8"]
    assert table["shufflenet_v1_g3"][:5] == ["1,865,728", "137.5 M", "3 x 224 x 224", "3, depthwise", "1, 3"]
    assert table["volume_net"][:5] == ["19,674", "24.1 M", "1 x 28 x 28 x 28", "4", "1, 2, 4"]
    assert table["alexnet_dense"][3:5] == ["-", "1"]
    assert not list(tmp_path.iterdir()), "something was written"


def test_it_lists_what_divides(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    few = {name: ENTRIES[name] for name in ("nin", "nin_root8", "signal_net")}
    monkeypatch.setattr("lanes.listing.ENTRIES", few)
    main(["models", "--lane_devices", "4"])
    assert list(rows(capsys.readouterr().out)) == ["nin", "nin_root8", "signal_net"]
    main(["models", "--lane_devices", "16"])
    assert list(rows(capsys.readouterr().out)) == ["nin"]
    with pytest.raises(SystemExit, match="2"):
        main(["models", "--lane_devices", "5"])
    assert "none of the 3 networks divides over 5 lane devices" in capsys.readouterr().err


def test_all_about_one(capsys: pytest.CaptureFixture[str]) -> None:
    main(["models", "nin_root8", "--lane_devices", "2"])
    said = capsys.readouterr().out
    for words in (
        "nin_root8: NIN with 8 filter groups, then 4",
        "arXiv 1605.06489",
        "lanes.models.nin.NetworkInNetwork",
        "314,954 (966,986 if dense)",
        "103,342,080 (222,486,528 if dense)",
        "grouping saves 67.4 % of the parameters and 53.6 % of the multiply-adds",
        "lane devices:  1, 2, 4\n",
        "each lane device sends",
        "  root: 8\n",
        "  dropout: 0.5\n",
    ):
        assert words in said


def test_a_configuration_takes_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["models", "resnext11_8x4d_cifar"])
    net = yaml.safe_load(re.search(r"below model:\n(.*?)\n\n", capsys.readouterr().out, re.DOTALL).group(1))
    assert net["net"]["init_args"] == {"name": "resnext11_8x4d_cifar", "num_classes": 10}
    config = yaml.safe_load(CONFIG.read_text())
    config["model"] |= net
    config["data"]["init_args"]["image_size"] = 32
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    main(["plan", "-c", "mine.yaml", "--model.net.init_args.cardinality", "4"])
    said = capsys.readouterr().out
    assert said.startswith("mesh: 1 x 2 (replicas x lane devices)")
    assert re.search(r"^layer3\.0\.conv2 +Conv2d +stays", said, re.MULTILINE)


NET = "--model.net.init_args"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["models", "nin_rot8"], ["no network 'nin_rot8'", "did you mean 'nin_root8'?"]),
        (["models", "nin_root8", "--lane_devices", "8"], ["conv3a", "4 groups", "8 lane devices", "use"]),
        (["models", "--lane_devices", "0"], ["--lane_devices must be at least 1, got 0"]),
        (["models", "--lane_device", "x"], ["--lane_devices: invalid int value: 'x'"]),
        (["plan", "-c", str(CONFIG), "--model.net", "lanes.models.Named"], ["name is missing"]),
        (["plan", "-c", "named.yaml", f"{NET}.name", "nin_rot8"], ["'nin_rot8'", "did you mean 'nin_root8'"]),
        (["plan", "-c", "named.yaml", f"{NET}.nam", "nin"], ["no key 'nam'", "did you mean 'name'"]),
        (["plan", "-c", "named.yaml", f"{NET}.numclasses", "2"], ["'numclasses'", "did you mean 'num_classes'"]),
        (["plan", "-c", "named.yaml", f"{NET}.lanes", "2"], ["nin_root8_cifar has no argument 'lanes'", "it has num"]),
        (["plan", "-c", "named.yaml", f"{NET}.root", "7"], ["root must be one of 1, 2, 4, 8, 16, 32, got 7"]),
        (["plan", "-c", "named.yaml", f"{NET}.num_classes", "ten"], ["num_classes", "int", "ten"]),
    ],
)
def test_one_line(
    arguments: list[str],
    said: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(CONFIG.read_text())
    config["model"]["net"] = {"class_path": "lanes.models.Named", "init_args": {"name": "nin_root8_cifar"}}
    config["data"]["init_args"]["image_size"] = 32
    Path("named.yaml").write_text(yaml.safe_dump(config))
    error = refused(arguments, monkeypatch, capfd)
    for words in said:
        assert words in error


def test_nobody_who_only_looks_waits_for_lightning() -> None:
    code = "import sys; from lanes.cli import main; main(['models', 'nin']); assert 'lightning' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, timeout=60)
