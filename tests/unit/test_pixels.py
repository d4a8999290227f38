"""Decoding, the cache of decoded bytes, bad images, statistics."""

import json
import pickle
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lanes.data import pixels
from lanes.data.decoding import BadImageError, Form, decode, original_sizes
from lanes.data.pixels import PixelCache, default_cache_dir
from lanes.data.sources import Source
from tests.images import class_names, patches, write_folder, write_parquet, write_rows

COUNT = 40


@pytest.fixture(autouse=True)
def hf_home(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "tables")


@pytest.fixture
def split(tmp_path):
    write_parquet(tmp_path / "set", count=COUNT, size=(24, 18), classes=4, val_count=8)
    return Source(str(tmp_path / "set")).split("train", key="train_split")


def bad_split(tmp_path, *bad_rows, data=b"no image"):
    rows = patches(count=12, size=16, classes=2)
    for row in bad_rows:
        rows[row] = (data if isinstance(data, bytes) else data(rows[row][0]), rows[row][1])
    file = write_rows(tmp_path / "bad" / "train.parquet", rows, class_names(2))
    return Source(str(file)).split("train", key="train_split")


def cache(tmp_path, mode="disk", on_bad_image="stop", **more):
    more = {"limit_gib": 1, "show_progress": False} | more
    return PixelCache(tmp_path / "cache", mode, on_bad_image=on_bad_image, **more)


def gradient(width, height, mode="RGB"):
    """Column x has the value 10 x, so that a crop tells where it was cut."""
    row = (np.arange(width) * 10).astype(np.uint8)
    return Image.fromarray(np.tile(row, (height, 1))).convert(mode)


def test_the_right_size_is_left_alone_and_the_centre_is_cut_out():
    image = gradient(16, 16)
    assert np.array_equal(decode(image, Form(16)), np.asarray(image).transpose(2, 0, 1))
    wide = decode(gradient(20, 8), Form(8))
    assert wide.shape == (3, 8, 8)
    assert wide[0, 0].tolist() == [60, 70, 80, 90, 100, 110, 120, 130]  # columns 6 to 13 of 20
    tall = decode(gradient(8, 21).rotate(0), Form(8, "grey"))
    assert tall.shape == (1, 8, 8)
    assert tall[0, 0].tolist() == [0, 10, 20, 30, 40, 50, 60, 70]


def test_the_shorter_side_is_scaled_with_antialiasing():
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (24, 24))  # without antialiasing: all black or all white
    small = decode(Image.fromarray(stripes), Form(8, "grey"))
    assert small.shape == (1, 8, 8)
    assert abs(small.astype(int) - 127).max() <= 45
    flat = decode(Image.new("RGB", (300, 200), (10, 20, 30)), Form(64))
    assert (flat == np.array([10, 20, 30], dtype=np.uint8)[:, None, None]).all()
    assert decode(Image.new("RGB", (1000, 333)), Form(7)).shape == (3, 7, 7)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK", "1", "LA", "I;16", "I"])
@pytest.mark.parametrize("color", ["rgb", "grey"])
def test_every_kind_of_image(mode, color):
    if mode.startswith("I"):
        kind = np.uint16 if mode == "I;16" else np.int32
        image = Image.fromarray(np.full((12, 12), 200 * 256, dtype=kind))
    else:
        image = Image.new("L", (12, 12), 200).convert(mode)
    found = decode(image, Form(12, color))
    assert found.dtype == np.uint8
    assert found.shape == Form(12, color).shape
    wanted = 255 if mode == "1" else 200
    assert abs(found.astype(int) - wanted).max() <= (0 if mode != "1" else 255)


def test_a_camera_held_sideways():
    file, exif = BytesIO(), Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    gradient(8, 8, "L").save(file, "png", exif=exif)
    found = decode(Image.open(file), Form(8, "grey"))
    assert found[0, :, 0].tolist() == [0, 10, 20, 30, 40, 50, 60, 70]


def test_cached_and_decoded_images_agree_bit_for_bit(tmp_path, split):
    form = Form(16)
    stored, decoded = cache(tmp_path).open(split, form), cache(tmp_path, "off").open(split, form)
    assert stored.stored_in is not None
    assert decoded.stored_in is None
    for indices in (list(range(COUNT)), [31, 4, 4, 0]):
        images, labels = stored.__getitems__(indices)
        assert images.shape == (len(indices), 3, 16, 16)
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        again, labels_again = decoded.__getitems__(indices)
        assert torch.equal(images, again)
        assert torch.equal(labels, labels_again)
        assert labels.tolist() == split.labels[indices].tolist()
    assert torch.equal(stored[7][0], stored.__getitems__([7])[0][0])
    wanted = decode(Image.open(BytesIO(split.read([31])[0]["bytes"])), form)
    assert np.array_equal(stored[31][0].numpy(), wanted)
    assert cache(tmp_path).statistics(stored) == cache(tmp_path / "b", "off").statistics(decoded)


def test_the_cache_is_made_once(tmp_path, split, monkeypatch):
    first = cache(tmp_path).open(split, Form(16))
    monkeypatch.setattr(pixels, "decode_row", None)
    monkeypatch.setattr(pixels, "measure", lambda images: (_ for _ in ()).throw(AssertionError))
    again = cache(tmp_path, "auto", limit_gib=0).open(split, Form(16))  # what is there is used, whatever the limit
    assert again.stored_in == first.stored_in
    assert torch.equal(again[5][0], first[5][0])
    assert first.stored_in.stat().st_size == COUNT * 3 * 16 * 16
    about = json.loads((first.stored_in.parent / "about.json").read_text())
    assert (about["split"], about["images"], about["bad"]) == ("train", COUNT, {})
    assert not list(first.stored_in.parent.glob("*.part"))
    with pytest.raises(TypeError):  # another size, another cache
        cache(tmp_path).open(split, Form(8))


def test_writing_to_a_batch_leaves_the_cache_alone(tmp_path, split):
    images = cache(tmp_path).open(split, Form(16))
    before = images[3][0].clone()
    images[3][0].zero_()
    assert torch.equal(cache(tmp_path).open(split, Form(16))[3][0], before)


def test_auto_keeps_to_its_limits(tmp_path, split, monkeypatch):
    size = COUNT * 3 * 16 * 16
    assert cache(tmp_path, "auto", limit_gib=(size - 1) / 2**30).open(split, Form(16)).stored_in is None
    monkeypatch.setattr(pixels.shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * size - 1))
    assert cache(tmp_path, "auto").open(split, Form(16)).stored_in is None  # more than half of the free disk
    monkeypatch.setattr(pixels.shutil, "disk_usage", lambda _: SimpleNamespace(free=size - 1))
    with pytest.raises(ValueError, match=r"set cache_dir to another disk, cache to off, or stored_size smaller"):
        cache(tmp_path).open(split, Form(16))
    monkeypatch.setattr(pixels.shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * size))
    assert cache(tmp_path, "auto", limit_gib=size / 2**30).open(split, Form(16)).stored_in is not None


def test_a_full_disk_leaves_nothing_behind(tmp_path, split, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pixels.os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        cache(tmp_path).open(split, Form(16))
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.suffix in (".u8", ".part", ".json")]


def test_a_folder_that_cannot_be_written_names_the_settings(tmp_path, split):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ValueError, match=r"cannot be written to .*set cache_dir or \$LANES_CACHE"):
        cache(tmp_path).open(split, Form(16))


def test_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LANES_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("LANES_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert default_cache_dir() == tmp_path / "x" / "lanes"


def truncated(data):
    return data[: len(data) // 2]


@pytest.mark.parametrize("data", [b"no image", b"", truncated], ids=["nonsense", "empty", "truncated"])
@pytest.mark.parametrize("mode", ["disk", "off"])
def test_a_bad_image_stops_with_file_and_row(tmp_path, data, mode):
    split = bad_split(tmp_path, 5, data=data)
    with pytest.raises(BadImageError) as told:
        cache(tmp_path, mode).open(split, Form(16)).__getitems__([4, 5])  # without a cache: at the row
    message = str(told.value)
    assert "00005.png (row 5 of split 'train' of" in message
    assert "train.parquet" in message
    assert message.endswith("repair it, or set on_bad_image to skip")
    assert "\n" not in message
    assert not list((tmp_path / "cache").rglob("*.u8*"))


@pytest.mark.parametrize("mode", ["disk", "off"])
def test_bad_images_are_skipped_and_counted(tmp_path, mode):
    split = bad_split(tmp_path, 2, 9)
    good = [row for row in range(12) if row not in (2, 9)]
    for _ in range(2):  # made, then opened
        images = cache(tmp_path, mode, "skip").open(split, Form(16))
        assert len(images) == 10
        assert images.rows.tolist() == good
        assert images.labels.tolist() == split.labels[good].tolist()
        for index, row in enumerate(good):
            wanted = decode(Image.open(BytesIO(split.read([row])[0]["bytes"])), Form(16))
            assert np.array_equal(images[index][0].numpy(), wanted)
    with pytest.raises(BadImageError, match="row 2 of split 'train'"):  # who did not ask to skip is told
        cache(tmp_path, mode).open(split, Form(16))


def test_all_bad(tmp_path):
    with pytest.raises(ValueError, match="no image of split 'train' can be decoded; the first: bad image"):
        cache(tmp_path, "disk", "skip").open(bad_split(tmp_path, *range(12)), Form(16))


def test_an_image_file_that_is_gone_is_named(tmp_path):
    write_folder(tmp_path / "set", count=8, size=16, classes=2, val_count=2)
    split = Source(str(tmp_path / "set")).split("train", key="")
    path = split.read([3])[0]["path"]
    (tmp_path / path).unlink()
    with pytest.raises(BadImageError, match=r"00003\.png \(row 3 of split 'train'.*No such file"):
        cache(tmp_path).open(split, Form(16))


def test_loader_processes_are_not_sent_the_images(tmp_path, split):
    images = cache(tmp_path).open(split, Form(16))
    before = images[3][0]
    sent = pickle.dumps(images)
    assert len(sent) < images.stored_in.stat().st_size / 2
    assert torch.equal(pickle.loads(sent)[3][0], before)


def test_statistics_are_those_of_the_pixels(tmp_path, split):
    images = cache(tmp_path).open(split, Form(16))
    found = cache(tmp_path).statistics(images)
    colors = images.__getitems__(list(range(COUNT)))[0].double().transpose(0, 1).flatten(1) / 255
    torch.testing.assert_close(torch.tensor(found.mean).double(), colors.mean(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.tensor(found.covariance), torch.cov(colors, correction=0).float())
    assert found.std == pytest.approx(colors.std(1, correction=0).tolist())


@pytest.mark.parametrize("color", [(77, 77, 77), (1, 2, 3), (200, 13, 99)])
def test_one_colour_has_no_deviation(tmp_path, color):
    """What rounding leaves is neither a deviation to divide by, nor a negative variance."""
    file = BytesIO()
    Image.new("RGB", (16, 16), color).save(file, "png")
    source = Source(str(write_rows(tmp_path / "a.parquet", [(file.getvalue(), 0)] * COUNT, ["only"])))
    images = cache(tmp_path).open(source.split("train", key=""), Form(16))
    assert cache(tmp_path).statistics(images).std == (0, 0, 0)


def test_statistics_look_at_evenly_spaced_images(tmp_path, split, monkeypatch):
    monkeypatch.setattr("lanes.data.statistics.MEASURED", 4)
    images = cache(tmp_path).open(split, Form(16))
    few = images.__getitems__([0, 10, 20, 30])[0].double() / 255
    assert cache(tmp_path).statistics(images).mean == pytest.approx(few.mean((0, 2, 3)).tolist())


def test_original_sizes(split):
    assert original_sizes(split, sample=7) == [(24, 18)] * 7
