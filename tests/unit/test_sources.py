"""Opening a source: paths and hub names, splits, columns, labels; every mistake is one line with the way out."""

import datasets
import numpy as np
import pytest

from lanes.data.sources import Source, local_path
from tests.images import class_names, patches, write_folder, write_parquet, write_rows

SMALL = {"count": 24, "size": 12, "classes": 3, "val_count": 6}


@pytest.fixture(autouse=True)
def hf_home(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "tables")


@pytest.fixture
def parquet(tmp_path):
    return write_parquet(tmp_path / "set", **SMALL)


def _write(file, features, **columns):
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(file)
    return str(file)


def _images(count):
    return [{"bytes": data, "path": None} for data, _ in patches(count=count, size=12, classes=1)]


@pytest.mark.parametrize("source", ["/no/such", "./nothing", "../nothing", "~/no-such", "a.parquet", "data/sets/cifar"])
def test_what_looks_like_a_path_is_never_asked_of_the_hub(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no file or folder '.*' \(looked in"):
        Source(source)


def test_hub_names_and_nonsense(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert local_path("cifar10") is None
    assert local_path("uoft-cs/cifar10") is None
    (tmp_path / "cifar10").mkdir()
    assert local_path("cifar10") == tmp_path / "cifar10"  # what exists is meant
    with pytest.raises(ValueError, match="neither an existing path nor a name on the hub"):
        local_path("two words")


def test_parquet_folder_file_and_image_folder(tmp_path, parquet):
    folder = write_folder(tmp_path / "folder", **SMALL)
    opened = [Source(str(path)) for path in (parquet, folder)]
    for source in opened:
        assert source.sizes == {"train": 24, "validation": 6}
        assert source.class_names == tuple(class_names(3))
        assert (source.image_column, source.label_column) == ("image", "label")
        split = source.split("train", key="train_split")
        assert split.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    one = Source(str(parquet / "validation-00000-of-00001.parquet"))
    assert one.sizes == {"train": 6}
    files = patches(count=24, size=12, classes=3)
    row = opened[0].split("train", key="").read([5, 20])
    assert [image["bytes"] for image in row] == [files[5][0], files[20][0]]
    assert opened[1].split("train", key="").read([5])[0]["path"].endswith("00005.png")


def test_slices_limits_and_rows(parquet):
    source = Source(str(parquet))
    part = source.split("train[50%:75%]", key="train_split")
    assert part.labels.tolist() == [1] * 4 + [2] * 2
    assert part.where(2, "a.png") == f"a.png (row 14 of split 'train' of {parquet})"
    both = source.split("train[:4]+validation[-2:]", key="train_split")
    assert both.labels.tolist() == [0] * 4 + [2] * 2
    assert both.where(5, None) == f"row 5 of split 'validation' of {parquet}"
    few = source.split("train", key="train_split", limit=6)
    assert few.labels.tolist() == [0, 0, 1, 1, 2, 2]  # spread over the classes, by which files are often sorted
    assert few.rows.tolist() == [0, 4, 8, 12, 16, 20]
    assert len({split.fingerprint for split in (part, both, few, source.split("train", key=""))}) == 4
    assert Source(str(parquet)).split("train[50%:75%]", key="").fingerprint == part.fingerprint


def test_the_fingerprint_follows_the_files(tmp_path, parquet):
    before = Source(str(parquet)).split("train", key="").fingerprint
    rows = patches(count=24, size=12, classes=3, seed=9)
    write_rows(parquet / "train-00000-of-00001.parquet", rows, class_names(3))
    assert Source(str(parquet)).split("train", key="").fingerprint != before


@pytest.mark.parametrize(
    ("values", "names", "labels"),
    [
        ([3, 7, 3, 9], ("3", "7", "9"), [0, 1, 0, 2]),
        (["dog", "cat", "dog", "eel"], ("cat", "dog", "eel"), [1, 0, 1, 2]),
        ([1, -1, 0, None], ("0", "1"), [1, -1, 0, -1]),
    ],
)
def test_labels_without_names(tmp_path, values, names, labels):
    kind = datasets.Value("string" if isinstance(values[0], str) else "int64")
    file = _write(
        tmp_path / "a.parquet", {"picture": datasets.Image(), "label": kind}, picture=_images(4), label=values
    )
    source = Source(file)
    assert source.class_names == names
    assert source.split("train", key="").labels.tolist() == labels


def test_labels_that_are_no_classes(tmp_path):
    features = {"image": datasets.Image(), "label": datasets.Value("float32")}
    source = Source(_write(tmp_path / "a.parquet", features, image=_images(2), label=[0.0, 1.5]))
    with pytest.raises(ValueError, match=r"'label' of .* holds float values, not classes"):
        _ = source.class_names


def test_a_label_that_training_lacks(tmp_path):
    features = {"image": datasets.Image(), "label": datasets.Value("string")}
    for split, values in (("train", ["a", "b"]), ("test", ["a", "c"])):
        _write(tmp_path / "set" / f"{split}.parquet", features, image=_images(2), label=values)
    with pytest.raises(ValueError, match="has the value 'c' that no training image has"):
        Source(str(tmp_path / "set")).split("test", key="")


def test_columns_are_found_or_asked_for(tmp_path):
    names = datasets.ClassLabel(names=["a", "b"])
    features = {"left": datasets.Image(), "right": datasets.Image(), "fine_label": names, "coarse_label": names}
    file = _write(
        tmp_path / "a.parquet", features, left=_images(2), right=_images(2), fine_label=[0, 1], coarse_label=[1, 1]
    )
    with pytest.raises(ValueError, match=r"several image columns \(left, right\).*set image_column"):
        Source(file)
    with pytest.raises(ValueError, match=r"several label columns \(fine_label, coarse_label\).*set label_column"):
        Source(file, image_column="left")
    with pytest.raises(ValueError, match=r"image_column: .* has no column 'letf'; did you mean 'left'\?"):
        Source(file, image_column="letf")
    found = Source(file, image_column="right", label_column="coarse_label")
    assert found.split("train", key="").labels.tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"'fine_label' of .* holds no images"):
        Source(file, image_column="fine_label", label_column="coarse_label").split("train", key="")


def test_no_columns(tmp_path):
    file = _write(tmp_path / "a.parquet", {"x": datasets.Value("float32")}, x=[1.0])
    with pytest.raises(ValueError, match=r"has no column of type Image; its columns are x: set image_column"):
        Source(file)
    file = _write(
        tmp_path / "b.parquet", {"image": datasets.Image(), "x": datasets.Value("float32")}, image=_images(1), x=[0.5]
    )
    with pytest.raises(ValueError, match=r"has no column that looks like a label.*set label_column"):
        Source(file)
    with pytest.raises(ValueError, match="holds float values, not classes"):
        _ = Source(file, label_column="x").class_names


def test_splits_that_are_not_there_or_empty(tmp_path, parquet):
    source = Source(str(parquet))
    with pytest.raises(
        ValueError, match=r"train_split: .* no split 'trian'; did you mean 'train'\? \(it has train \(24\)"
    ):
        source.split("trian", key="train_split")
    with pytest.raises(ValueError, match=r"has no split 'train\[:9'"):
        source.split("train[:9", key="train_split")
    with pytest.raises(ValueError, match=r"val_split: split 'train\[10:10\]' of .* is empty"):
        source.split("train[10:10]", key="val_split")
    write_rows(tmp_path / "none" / "train.parquet", patches(count=3, size=12, classes=3), class_names(3))
    write_rows(tmp_path / "none" / "test.parquet", [], class_names(3))
    with pytest.raises(ValueError, match=r"split 'test' of .*none is empty"):
        Source(str(tmp_path / "none"))


def test_folders_and_files_without_images(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"the images in .*empty cannot be opened: ") as told:
        Source(str(tmp_path / "empty"))
    assert "\n" not in str(told.value)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"one file is read if it is a \.parquet file"):
        Source(str(tmp_path / "a.png"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and then nonsense")
    with pytest.raises(ValueError, match=r"bad\.parquet cannot be opened: "):
        Source(str(tmp_path / "bad.parquet"))


def test_rows_are_read_in_any_order(parquet):
    split = Source(str(parquet)).split("train", key="")
    files = patches(count=24, size=12, classes=3)
    for indices in ([7, 0, 7], np.array([23, 1])):
        assert [row["bytes"] for row in split.read(indices)] == [files[i][0] for i in indices]
