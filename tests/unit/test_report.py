"""The page without an account, short of the browser: finding and reading runs, what is in the page, the verb."""

import base64
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from lanes.cli import main
from lanes.report import page as page_module
from lanes.report.page import as_json, content, embedded_source, page, write_report
from lanes.report.reading import Run, _add_row, find_logs, read_run
from tests.report_runs import EVIL, Parsed, a_run, log_file, make_killed_run, two_runs

ROOT = Path(__file__).parents[2]
REPORT = ROOT / "lanes" / "report"


def base64_of(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


# --- finding ---------------------------------------------------------------------------------------------------------


def test_a_run_is_found_from_every_place_above_it(tmp_path: Path) -> None:
    log = log_file(tmp_path / "runs" / "1", "abc", "20260101_000000")
    (tmp_path / "runs" / "1" / "wandb" / "latest-run").symlink_to(log.parent)
    latest = tmp_path / "runs" / "1" / "wandb" / "latest-run"
    for place in (log, log.parent, latest, log.parents[1], log.parents[2], log.parents[3]):
        assert find_logs([place]) == {"abc": [log]}, place


def test_folders_of_one_id_are_one_run_oldest_first(tmp_path: Path) -> None:
    later = log_file(tmp_path, "abc", "20260102_000000")
    other = log_file(tmp_path, "xyz", "20260101_120000")
    first = log_file(tmp_path, "abc", "20260101_000000")
    assert list(find_logs([tmp_path]).items()) == [("abc", [first, later]), ("xyz", [other])]
    assert find_logs([later.parent]) == {"abc": [first, later]}  # what it continues comes with it
    assert find_logs([tmp_path, tmp_path]) == find_logs([tmp_path])


def test_parts_of_one_run_in_different_folders_are_merged(tmp_path: Path) -> None:
    first = log_file(tmp_path / "1", "abc", "20260101_000000")
    later = log_file(tmp_path / "2", "abc", "20260102_000000")
    assert find_logs([tmp_path / "2", tmp_path / "1"]) == {"abc": [first, later]}


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_runs(tmp_path_factory)


def test_a_run_in_two_folders_is_read_as_one(logged: Path) -> None:
    (logs,) = find_logs([logged / "1"]).values()
    run = read_run(logs)
    assert (run.run_id, run.name, run.ending, len(run.folders)) == ("run1", "two parts", 0, 2)
    loss = run.scalars["train/loss"]
    assert list(loss) == list(range(51))  # 0..30 and 25..50: every step once, in order
    assert loss[40] == pytest.approx(2 / 41)
    assert run.scalars["broken"] == {30: None, 50: None}
    assert run.texts["words"][50] == f"p = 0.01 {EVIL}"
    assert run.config == {"seed_everything": 1, "trainer": {"max_epochs": 3}, "note": EVIL}
    assert run.facts["torch"].startswith("2.")
    films = run.pictures["filters/lane1/conv1"]
    assert list(films) == [0, 10, 20, 30, 40, 50]
    assert films[50].caption == f"conv1, lane 1, {EVIL}"
    with Image.open(films[50].path) as picture:
        assert picture.getpixel((0, 0)) == (40, 100, 120)  # of run 1, step 50, lane 1
    assert "filters/lane1/conv1.size" not in run.scalars


def test_a_killed_run_is_read_up_to_its_last_flush(tmp_path: Path) -> None:
    steps = make_killed_run(tmp_path)
    said = write_report([tmp_path / "killed"], tmp_path / "report.html")
    (logs,) = find_logs([tmp_path]).values()
    run = read_run(logs)
    assert run.ending is None
    assert 10 <= len(run.scalars["train/loss"]) <= steps
    assert list(run.scalars["train/loss"]) == list(range(len(run.scalars["train/loss"])))
    assert len(run.pictures["filters/lane0/conv1"]) >= 2
    assert said.startswith(f"{tmp_path / 'report.html'}: 1 run, ")


def test_a_broken_log_is_refused_in_one_line(tmp_path: Path) -> None:
    log = log_file(tmp_path, "abc", "20260101_000000")
    log.write_bytes(b"this is no log")
    with pytest.raises(ValueError, match=rf"^{re.escape(str(log))} cannot be read: .*bad header.*$"):
        read_run([log])


def test_what_a_log_says_of_files_elsewhere_is_not_believed(tmp_path: Path) -> None:
    files = tmp_path / "run" / "files"
    files.mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(tmp_path / "secret.png")
    Image.new("RGB", (2, 2)).save(files / "own.png")
    run = Run("abc")
    for step, path in enumerate(("own.png", "../../secret.png", str(tmp_path / "secret.png"), "gone.png")):
        _add_row(run, {"p._type": "image-file", "p.path": path, "p.width": 2, "p.height": 2}, step, files)
    assert list(run.pictures["p"]) == [0]


def test_a_configuration_beside_the_run_stands_in_for_one_that_was_not_logged(tmp_path: Path) -> None:
    log = log_file(tmp_path, "abc", "1")
    assert read_run([log]).config == {}
    (tmp_path / "config.yaml").write_text("# lightning\ntrainer: {max_epochs: 3}\n")
    assert read_run([log]).config == {"trainer": {"max_epochs": 3}}
    (tmp_path / "config.yaml").write_text("trainer: {")
    with pytest.raises(ValueError, match=r"config\.yaml cannot be read: .*$"):
        read_run([log])


# --- the page --------------------------------------------------------------------------------------------------------


def test_names_and_captions_stay_text(tmp_path: Path) -> None:
    run = a_run(tmp_path, captions=(EVIL, "<!--<script>"))
    run.name, run.config, run.texts = EVIL, {EVIL: EVIL}, {EVIL: {0: EVIL}}
    text = page([run])
    parsed = Parsed(text)
    assert [tag for tag, _ in parsed.tags].count("script") == 2 == text.count("</script")
    assert "img" not in [tag for tag, _ in parsed.tags]
    assert parsed.title.startswith(EVIL)
    data = json.loads(parsed.scripts[0])
    assert "<" not in parsed.scripts[0]
    assert data["runs"][0]["label"] == EVIL
    assert data["runs"][0]["config"] == {EVIL: EVIL}
    assert [shot[2] for shot in data["runs"][0]["pictures"]["filters/lane1/conv1"]] == ["<!--<script>"] * 2


def test_nothing_in_the_page_comes_from_outside(tmp_path: Path) -> None:
    parsed = Parsed(page([a_run(tmp_path)]))
    links = [value for _, attributes in parsed.tags for name, value in attributes.items() if name in ("src", "href")]
    assert links == ["data:,"]  # the icon, which a browser would ask for otherwise
    policy = next(a["content"] for _, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "connect-src" not in policy
    assert "'self'" not in policy
    assert f"'sha256-{page_module._sha256(parsed.scripts[1])}'" in policy  # or no browser would run it


def test_every_picture_is_in_the_page_once(tmp_path: Path) -> None:
    text = page([a_run(tmp_path, "first"), a_run(tmp_path, "second")])  # both runs, both steps: the same pictures
    sources = [f"data:image/png;base64,{base64_of(tmp_path / f'first-{lane}.png')}" for lane in range(2)]
    assert [text.count(source) for source in sources] == [1, 1]
    assert text.count("data:image/png;base64,") == 2


def test_numbers_keep_six_digits_and_not_finite_is_null(tmp_path: Path) -> None:
    data = content([a_run(tmp_path)], embedded_source)
    assert data["runs"][0]["scalars"] == {"train/loss": [[0, 5, 10], [1, None, 0.123457]]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        as_json(float("nan"))


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [Run("a1", name="net"), Run("b2", name="net"), Run("c3", name="other")]
    assert [run["label"] for run in content(runs, embedded_source)["runs"]] == ["net (a1)", "net (b2)", "other"]


# --- the verb --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{folder}/nowhere"], "no such folder: {folder}/nowhere"),
        (["{folder}/config.yaml"], "{folder}/config.yaml is a file: give a run's folder"),
        (["{folder}/bare"], "no run in {folder}/bare: give a run's folder"),
        (["{folder}/bare", "--serve"], "no run in {folder}/bare: give a run's folder"),
        (["{folder}/empty"], "nothing was logged yet in {folder}/empty/wandb/offline-run-1-abc: "),
        (["{folder}/broken"], "{folder}/broken/wandb/offline-run-1-abc/run-abc.wandb cannot be read: "),
        (["{folder}/empty", "-o", "{folder}/no/report.html"], "there is no folder {folder}/no"),
        (["{folder}/empty", "-o", "{folder}"], "{folder} is a folder; name a file"),
        (["{folder}/empty", "--serve", "--port", "70000"], "--port 70000 must be between 0 (a free one) and 65535"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "config.yaml").touch()
    log_file(tmp_path / "empty", "abc", "1")
    log_file(tmp_path / "broken", "abc", "1").write_bytes(b"this is no log")
    with pytest.raises(SystemExit) as end:
        main(["report", *(argument.format(folder=tmp_path) for argument in arguments)])
    error = capfd.readouterr().err
    assert end.value.code == 2
    assert error.startswith("lanes report: error: ")
    assert said.format(folder=tmp_path) in error
    assert error.count("\n") == 1


def test_the_verb_writes_the_page_and_says_what_is_in_it(
    logged: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log_file(tmp_path, "unborn", "20990101_000000")
    report = tmp_path / "report.html"
    main(["report", *map(str, (logged / "1", logged / "2", tmp_path)), "-o", str(report)])
    left_out = "2 runs; 1 without anything logged left out, 36 pictures, 13 curves, 0."
    assert capfd.readouterr().out.startswith(f"{report}: {left_out}")
    data = json.loads(Parsed(report.read_text()).scripts[0])
    assert [run["label"] for run in data["runs"]] == ["two parts", f"other {EVIL}"]


def test_looking_waits_for_nothing_heavy() -> None:
    code = (
        "import sys, lanes.report.command; print(sorted({'torch', 'lightning', 'wandb', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_chart_library_comes_with_its_licence_and_version() -> None:
    library = REPORT / "vendor" / "uplot"
    version = (library / "VERSION").read_text().split()[1].rstrip(",")
    assert f"(v{version})" in (library / "uPlot.iife.min.js").read_text()[:100]
    assert "MIT License" in (library / "LICENSE").read_text()


def test_the_packages_carry_all_files_of_the_page() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["lanes"]
    carried = {path for pattern in patterns for path in (ROOT / "lanes").glob(pattern)}
    files = {path for path in REPORT.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert files <= carried
    assert len(files) >= 10
