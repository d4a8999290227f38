"""A sweep: its runs, their names, the command of one; what is wrong in it."""

import os
from pathlib import Path

import pytest

from lanes.cli import main
from lanes.sweeps import combinations, command, name_of, read, run

ROOT = Path(__file__).parents[2]
GRID = "grid: {model.net.init_args.lanes: [1, 2], data.init_args.cache_dir: [a/b], seed_everything: [0, 1]}"
SWEEP = f"config: {ROOT}/configs/photographs.yaml\nkeys: {{trainer.callbacks: []}}\n{GRID}\n"


def sweep(folder: Path, text: str = SWEEP) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def test_every_combination_has_a_name_and_a_command(tmp_path: Path) -> None:
    found = read(sweep(tmp_path))
    names = [name_of(values) for values in combinations(found)]
    assert names[1] == "lanes=1-cache_dir=a_b-seed_everything=1"
    assert len(set(names)) == 4
    words = command(found, "mine", 2, ["--trainer.max_epochs", "1"])
    assert words[3:7] == ["--trainer.default_root_dir", "runs/mine", "--run", "lanes=2-cache_dir=a_b-seed_everything=0"]
    assert words[7:11] == ["--trainer.callbacks", "[]", "--model.net.init_args.lanes", "2"]
    assert words[-2:] == ["--trainer.max_epochs", "1"]


def test_runs_are_one_group_on_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_GROUP", "")
    monkeypatch.delenv("WANDB_RUN_GROUP")
    words = run([str(sweep(tmp_path)), "--run", "0"])
    assert words is not None
    assert words[0] == "fit"
    assert os.environ["WANDB_RUN_GROUP"] == "mine"


def test_the_list_says_how_to_submit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["sweep", str(sweep(tmp_path))])
    said = capsys.readouterr().out
    assert said.startswith("0  lanes=1-cache_dir=a_b-seed_everything=0\n")
    assert f"sbatch --array=0-3 slurm/sweep.sbatch {tmp_path}/mine.yaml" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("config: x", "is no sweep: it needs `config`, a file, and `grid`"),
        ("[", "is no YAML"),
        (SWEEP + "grids: 1", "a sweep has no 'grids'; did you mean 'grid'?"),
        (SWEEP.replace("photographs", "nothing"), "there is no configuration"),
        (SWEEP.replace("[0, 1]", "3"), "seed_everything needs a list of values, not 3"),
        (SWEEP.replace("[0, 1]", "[0, 0]"), "two runs would have the same name"),
    ],
)
def test_what_is_wrong(tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run([str(sweep(tmp_path, text)), "--run", "0"])
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_a_run_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run([str(sweep(tmp_path)), "--run", "4"])
    assert "--run 4: the sweep has 4 runs, 0 to 3" in capsys.readouterr().err


def test_sweeps_that_come_with_it_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for path in Path("configs/sweeps").glob("*.yaml"):
        assert combinations(read(path))
