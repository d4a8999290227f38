"""Pictures and numbers of all callbacks that look arrive in the log, side by side, and in the run's folder."""

from pathlib import Path

import yaml

from lanes.report.reading import find_logs, read_run
from tests.integration.command import CONFIG, SMALL, lanes

LOOKS = ("FilterPictures", "Specialisation", "LayerSquares", "SamplePredictions")
PAIRS = ("conv2-conv3", "conv3-conv4", "conv4-conv5")


def test_a_report_reads_what_was_looked_at(tmp_path: Path) -> None:
    callbacks = {"trainer": {"callbacks": [{"class_path": f"lanes.training.{name}"} for name in LOOKS]}}
    (tmp_path / "looks.yaml").write_text(yaml.safe_dump(callbacks))
    answer = lanes("fit", "-c", CONFIG, "-c", "looks.yaml", *SMALL, "--report", "false", folder=tmp_path)
    assert answer.returncode == 0, answer.stderr
    ((logs),) = find_logs([tmp_path / "runs" / "photographs" / "1"]).values()
    run = read_run(logs)
    pictures = {f"corr/{pair}" for pair in PAIRS} | {"predictions", "spec/distributions"}
    pictures |= {f"filters/lane{lane}/conv1" for lane in (0, 1)}
    assert set(run.pictures) == pictures
    assert all(list(shots) == [0, 8] for shots in run.pictures.values()), "before training, and after its epoch"
    for pair in PAIRS:
        ratios = run.scalars[f"corr/{pair}/ratio"]
        assert list(ratios) == [0, 8]
        for step, ratio in ratios.items():
            assert f"in-lane / cross-lane {ratio:.2f}x" in run.pictures[f"corr/{pair}"][step].caption
    for name, kinds in (("squares", 3), ("predictions", 1), ("specialisation", 1)):
        assert len(list(tmp_path.glob(f"runs/photographs/1/{name}/*.png"))) == 2 * kinds
