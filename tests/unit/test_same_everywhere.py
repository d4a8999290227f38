"""What is compared before training starts, and in which words a difference is told."""

import shutil
from pathlib import Path

import pytest

import lanes
from lanes.faults import same_everywhere
from lanes.faults.same_everywhere import MAY_DIFFER, SHOWN, facts, in_words

CONFIG = {"trainer": {"max_epochs": 90, "callbacks": None}, "model": {"init_skip": ["fc8.*"]}}


def test_configuration_and_environment_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    found = facts(CONFIG)
    assert found["trainer.max_epochs"] == "90"
    assert found["trainer.callbacks"] == "null"
    assert found["model.init_skip"] == '["fc8.*"]'
    assert found["PL_GLOBAL_SEED"] == "7"
    assert found["lanes"] == lanes.__version__


def test_what_does_not_change_the_training_may_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    one = facts({"trainer": {"default_root_dir": "runs/1", "logger": {"save_dir": "a"}}, "ckpt_path": "a"})
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    assert facts({"trainer": {"default_root_dir": "runs/2", "logger": {"save_dir": "b"}}, "ckpt_path": "b"}) == one
    assert facts({"trainer": {"default_root_dirs": "runs/2"}}) != one, "only what is named so"
    assert "trainer.default_root_dir" in MAY_DIFFER


def test_an_order_of_keys_is_no_difference() -> None:
    assert facts({"a": 1, "b": {"c": 2, "d": 3}}) == facts({"b": {"d": 3, "c": 2}, "a": 1})


def test_another_source_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a copy, so that the package itself may be elsewhere on another node."""
    ours = facts({})
    package = tmp_path / "lanes"
    shutil.copytree(Path(lanes.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(same_everywhere.lanes, "__file__", str(package / "__init__.py"))
    assert facts({}) == ours, "a copy is the same code"
    (package / "training" / "health.py").write_text("# changed\n")
    said = in_words([("a", ours), ("b", facts({}))])
    assert "processes differ in lanes/training/health.py: SHA-256 " in said


def test_words_name_ranks_hosts_and_values() -> None:
    one, other = {"torch": "2.13.0", "seed": "0", "x": "1"}, {"torch": "2.12.1", "seed": "1", "y": "1"}
    said = in_words([("a", one), ("a", one), ("b", other)])
    assert "differ in torch: 2.13.0 on rank 0 (on a), 2.12.1 on rank 2 (on b) (and 3 more: seed, x, y)" in said
    assert "nothing on rank 0 (on a), 1 on rank 1 (on b);" in in_words([("a", {}), ("b", {"x": "1"})])


def test_long_values_are_shown_where_they_differ() -> None:
    same = "a" * 500
    said = in_words([("h", {"x": same + "ours" + same}), ("h", {"x": same + "theirs" + same})])
    assert "ours" in said
    assert "theirs" in said
    assert len(said) < 4 * SHOWN + 150
