"""Images as a data module: splits, shuffling, augmentation and views on the device, the card, early mistakes."""

from io import BytesIO
from types import SimpleNamespace

import pytest
import torch
from jsonargparse import ArgumentParser
from kornia.augmentation import RandomCrop, RandomHorizontalFlip
from lightning import LightningDataModule
from PIL import Image
from torch import nn
from torch.utils.data import DistributedSampler, RandomSampler

from lanes.data.mixing import MixUp
from lanes.data.views import ten_views
from lanes.training import Images, images
from tests.images import class_names, patches, write_folder, write_parquet, write_rows

SMALL = {"count": 40, "size": (24, 20), "classes": 4, "val_count": 10}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_parquet(tmp_path_factory.mktemp("set"), **SMALL)


@pytest.fixture(autouse=True)
def folders(tmp_path_factory, monkeypatch):
    """Nothing is written outside of the tests' folders."""
    base = tmp_path_factory.getbasetemp()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", base / "tables")
    monkeypatch.setenv("LANES_CACHE", str(base / "lanes"))


@pytest.fixture
def make(folder):
    return lambda **settings: Images(str(folder), **({"batch_size": 8, "image_size": 16} | settings))


def as_if(data, *, training):
    data.trainer = SimpleNamespace(training=training, num_devices=1)
    return data


def test_sets_and_loaders(make):
    data = make()
    data.prepare_data()
    data.setup("fit")
    assert data.image_shape == (3, 16, 16)
    assert (data.num_classes, data.class_names) == (4, tuple(class_names(4)))
    assert (len(data.train_set), len(data.val_set)) == (40, 10)
    assert data.test_set is data.val_set
    train = data.train_dataloader()
    assert isinstance(train.sampler, RandomSampler)
    assert train.num_workers == 0
    batches = list(train)
    assert [tuple(pixels.shape) for pixels, _ in batches] == [(8, 3, 16, 16)] * 5
    assert batches[0][0].dtype == torch.uint8
    assert torch.cat([labels for _, labels in batches]).bincount().tolist() == [10] * 4
    assert batches[0][1].tolist() != sorted(batches[0][1].tolist())
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert torch.equal(torch.cat([labels for _, labels in loader]), data.val_set.labels)


def test_the_shuffle_follows_the_random_stream(make):
    """Lane devices of a replica share the stream, hence the batches; replicas share the images by a sampler."""
    first, again = make(), make(cache="off", num_workers=0)
    for data in (first, again):
        torch.manual_seed(3)
        data.order = torch.cat([pixels for pixels, _ in data.train_dataloader()])
    assert torch.equal(first.order, again.order)
    loader = first.train_dataloader()
    sampler = DistributedSampler(loader.dataset, num_replicas=2, rank=1, shuffle=False)
    half = torch.utils.data.DataLoader(loader.dataset, batch_size=8, sampler=sampler, collate_fn=loader.collate_fn)
    assert torch.equal(next(iter(half))[1], first.train_set.labels[1:16:2])


def test_loader_processes_give_the_same(make):
    data, other = make(), make(cache="off", num_workers=1)
    assert other.val_set.stored_in is None
    pairs = list(zip(data.val_dataloader(), other.val_dataloader(), strict=True))
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)
    assert len(pairs) == 2


def test_how_many_loader_processes(make, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(12))
    assert make(cache="off").val_dataloader().num_workers == 8
    assert as_if(make(cache="off"), training=True).val_dataloader().num_workers == 8
    shared = make(cache="off")
    shared.trainer = SimpleNamespace(num_devices=4)
    assert shared.val_dataloader().num_workers == 2
    assert make(cache="off", num_workers=3).val_dataloader().num_workers == 3
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert make().val_dataloader().num_workers == 0
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert make().val_dataloader().num_workers == 4


def test_evaluation_crops_and_normalises(make):
    data = make(stored_size=20, augment=[RandomCrop((16, 16))])
    batch = next(iter(data.val_dataloader()))
    assert batch[0].shape == (8, 3, 20, 20)
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    seen, labels = as_if(data, training=False).on_after_batch_transfer(batch, 0)
    torch.testing.assert_close(seen, (batch[0][..., 2:18, 2:18] / 255 - mean) / std)
    assert torch.equal(labels, batch[1])
    ten = make(stored_size=20, augment=[RandomCrop((16, 16))], views=10)
    seen, labels = as_if(ten, training=False).on_after_batch_transfer(batch, 0)
    assert seen.shape == (8, 10, 3, 16, 16)
    torch.testing.assert_close(seen, (ten_views(batch[0] / 255, 16) - mean) / std)
    assert labels.shape == (8,)


def test_normalised_training_pixels_have_mean_0_and_deviation_1(make):
    data = as_if(make(), training=False)
    seen, _ = data.on_after_batch_transfer(data.train_set.__getitems__(list(range(40))), 0)
    torch.testing.assert_close(seen.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)


def test_training_augments_from_the_random_stream(make):
    data = as_if(make(stored_size=20, augment=[RandomCrop((16, 16)), RandomHorizontalFlip()]), training=True)
    batch = data.train_set.__getitems__(list(range(8)))
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(data.on_after_batch_transfer(batch, 0)[0])
    assert results[0].shape == (8, 3, 16, 16)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_mixing_in_training_only(make):
    data = make(mixing=MixUp())
    batch = data.train_set.__getitems__([0, 11, 22, 33])
    targets = as_if(data, training=True).on_after_batch_transfer(batch, 0)[1]
    assert targets.shape == (4, 4)
    torch.testing.assert_close(targets.sum(1), torch.ones(4))
    assert as_if(data, training=False).on_after_batch_transfer(batch, 0)[1].tolist() == [0, 1, 2, 3]


class Told(nn.Module):
    """Remembers the statistics that it is told."""

    def __init__(self):
        super().__init__()
        self.told = []

    def measure(self, mean, covariance):
        self.told.append((mean, covariance))

    def forward(self, pixels):
        assert self.told, "used before it was told"
        return pixels


def test_augmentations_are_told_the_statistics_once(make):
    told = Told()
    data = make(augment=[told])
    data.prepare_data()
    as_if(data, training=True)
    for _ in range(2):
        data.on_after_batch_transfer(data.train_set.__getitems__([0, 1]), 0)
    ((mean, covariance),) = told.told
    torch.testing.assert_close(mean, torch.tensor(data.mean))
    torch.testing.assert_close(covariance.diagonal().sqrt(), torch.tensor(data.std))


def test_a_checkpoint_brings_its_normalisation(make):
    trained, other = make(), make(num_train=9)
    assert other.mean != trained.mean
    other.load_state_dict(trained.state_dict())
    assert (other.mean, other.std) == (trained.mean, trained.std)
    batch = trained.val_set.__getitems__([0, 1])
    ours, theirs = (as_if(data, training=False).on_after_batch_transfer(batch, 0)[0] for data in (trained, other))
    assert torch.equal(ours, theirs)
    given = make(num_train=9, mean=[0.5] * 3, std=[0.25] * 3)
    given.load_state_dict(trained.state_dict())
    assert (given.mean, given.std) == ((0.5,) * 3, (0.25,) * 3), "what the configuration gives, counts"


def test_given_normalisation_needs_no_measuring(make, monkeypatch):
    monkeypatch.setattr("lanes.data.pixels.measure", lambda _: pytest.fail("measured"))
    data = make(mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.1], num_train=39)
    data.prepare_data()
    assert (data.mean, data.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    seen, _ = as_if(data, training=False).on_after_batch_transfer((torch.zeros(1, 3, 16, 16, dtype=torch.uint8), 0), 0)
    torch.testing.assert_close(seen[0, :, 0, 0], torch.tensor([-2.5, -2.0, -3.0]))


def test_what_the_network_cannot_read_is_refused_before_training(make):
    state = torch.get_rng_state()
    with pytest.raises(
        ValueError, match=r"stored with 3 x 20 x 20 .* leave .* 3 x 20 x 20, the network reads 3 x 16 x 16"
    ):
        make(stored_size=20).prepare_data()
    with pytest.raises(ValueError, match=r"with 3 x 12 x 12 \(RandomCrop to 3 x 12 x 12\)"):
        make(augment=[RandomCrop((12, 12))]).prepare_data()
    make(stored_size=20, augment=[RandomCrop((16, 16))], mixing=MixUp()).prepare_data()
    assert torch.equal(torch.get_rng_state(), state)

    class Odd(nn.Module):
        def forward(self, pixels, labels, num_classes):
            return pixels, labels

    with pytest.raises(ValueError, match=r"mixing gives targets of shape \(2,\) for 2 images; expected \[2, 4\]"):
        make(mixing=Odd()).prepare_data()


def test_grey_images_and_colour_ones_as_grey(tmp_path, make):
    write_folder(tmp_path / "grey", **SMALL, mode="L")
    grey = Images(str(tmp_path / "grey"), 8, image_size=16, color="grey")
    color = Images(str(tmp_path / "grey"), 8, image_size=16)
    assert (grey.image_shape, color.image_shape) == ((1, 16, 16), (3, 16, 16))
    (one, _), (three, _) = grey.train_set[5], color.train_set[5]
    assert torch.equal(one.expand(3, 16, 16), three)
    assert len(grey.mean) == len(grey.std) == 1
    assert make(color="grey").train_set[5][0].shape == (1, 16, 16)


def test_limits_take_images_evenly(make):
    data = make(num_train=12, num_val=5)
    assert (len(data.train_set), len(data.val_set)) == (12, 5)
    assert data.train_set.labels.bincount().tolist() == [3] * 4


def test_only_a_training_split(tmp_path):
    file = write_rows(tmp_path / "a.parquet", patches(count=40, size=16, classes=2), class_names(2))
    with pytest.raises(ValueError, match=r"no split for validation \(it has train\): set val_share, e\.g\. to 0\.1"):
        Images(str(file), 8, image_size=16).prepare_data()
    data = Images(str(file), 8, image_size=16, train_split="train[:75%]", val_split="train[75%:]")
    assert (len(data.train_set), len(data.val_set)) == (30, 10)


def test_a_share_of_every_class_is_held_out(tmp_path):
    folder = write_folder(tmp_path / "images", count=40, size=16, classes=4, val_count=4)
    for file in (folder / "validation").rglob("*.png"):
        file.unlink()
    (again, data) = (Images(str(folder), 8, image_size=16, train_split="train", val_share=0.2) for _ in range(2))
    data.prepare_data()
    assert data.train_set.labels.bincount().tolist() == [8] * 4
    assert data.val_set.labels.bincount().tolist() == [2] * 4
    assert not set(data.train_set.split.rows) & set(data.val_set.split.rows)
    assert (again.val_set.split.rows == data.val_set.split.rows).all()
    assert "share images" not in data.data_card()
    for wrong in ({"val_share": 1.5}, {"val_share": 0.1, "val_split": "train"}):
        with pytest.raises(ValueError, match="val_share="):
            Images(str(folder), 8, image_size=16, **wrong)


def test_classes_without_a_training_image_are_refused(tmp_path):
    folder = write_folder(tmp_path / "images", count=40, size=16, classes=4, val_count=4)
    with pytest.raises(ValueError, match=r"no training image is of class '2-coffee' \(nor of 1 others\)"):
        Images(str(folder), 8, image_size=16, train_split="train[:50%]").prepare_data()


def test_a_test_split_without_labels(tmp_path):
    write_parquet(tmp_path, **SMALL)
    rows = [(data, -1) for data, _ in patches(count=6, size=16, classes=1)]
    write_rows(tmp_path / "test-00000-of-00001.parquet", rows, class_names(4))
    data = Images(str(tmp_path), 8, image_size=16)
    assert data.test_set is data.val_set
    assert "the split 'test' has no labels" in data.data_card()
    for key in ("val_split", "test_split"):
        with pytest.raises(
            ValueError, match=rf"{key}: 6 of 6 images of split 'test' .* have no label; use another split"
        ):
            Images(str(tmp_path), 8, image_size=16, **{key: "test"}).prepare_data()
    write_rows(tmp_path / "test-00000-of-00001.parquet", patches(count=6, size=16, classes=4), class_names(4))
    data = Images(str(tmp_path), 8, image_size=16)
    assert len(data.test_set) == 6
    assert "  test:   6 of 'test', 1..2 per class" in data.data_card()


def test_bad_images(tmp_path):
    write_parquet(tmp_path, **SMALL)
    rows = patches(count=40, size=16, classes=4)
    rows[7] = (rows[7][0][:100], rows[7][1])
    write_rows(tmp_path / "train-00000-of-00001.parquet", rows, class_names(4))
    with pytest.raises(ValueError, match=r"bad image: 00007\.png \(row 7 of split 'train'.*: Truncated File Read"):
        Images(str(tmp_path), 8, image_size=16).prepare_data()
    data = Images(str(tmp_path), 8, image_size=16, on_bad_image="skip")
    data.prepare_data()
    assert len(data.train_set) == 39
    assert "  bad:    skipped 1 of train, 0 of val" in data.data_card()


def test_the_card(make):
    data = make(stored_size=20, augment=[RandomCrop((16, 16))], mixing=MixUp(), views=10)
    card = data.data_card()
    for words in (
        "Images: 4 classes (0-astronaut, 1-cat, 2-coffee, 3-galaxies)",
        f"source: {data.source}",
        "40 of 'train', 10..10 per class",
        "10 of 'validation', 2..3 per class (also test)",
        "24 x 20 (of 40 looked at); stored with 20 x 20 in rgb, the network reads 16 x 16",
        "measured",
        "RandomCrop, MixUp in training; 10 view(s) in evaluation",
        "cache:  0 MiB in ",
    ):
        assert words in card
    assert "bad:" not in card
    assert "given" in make(mean=[0, 0, 0], std=[1, 1, 1]).data_card()
    assert "decoded for every batch" in make(cache="off").data_card()
    assert "share images" not in make(train_split="train[:70%]", val_split="train[70%:]").data_card()
    assert "share images" in make(val_split="train[70%:]").data_card()


def test_construction_is_cheap_and_knows_the_shape(make, monkeypatch):
    monkeypatch.setattr(images, "Source", lambda *_, **__: pytest.fail("opened"))
    assert make(image_size=224, stored_size=256).image_shape == (3, 224, 224)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 4}, "image_size=4 is too small: use 8"),
        ({"batch_size": 0}, "batch_size=0 is too small"),
        ({"stored_size": 12}, "stored_size=12 is too small: use 16"),
        ({"stored_size": 0}, "stored_size=0 is too small"),
        ({"views": 5}, "views=5 is not known: use 1"),
        ({"num_workers": -1}, "num_workers=-1 is too small"),
        ({"num_train": 7}, "num_train=7 is too small: use 8"),
        ({"num_val": 0}, "num_val=0 is too small"),
        ({"mean": [0.5]}, "mean has 1 numbers, images in rgb have 3 channels"),
        ({"std": [1, 0, 1]}, "has a number that is not above 0"),
        ({"color": "gray"}, "color='gray' is not known: use 'rgb' or 'grey'"),
        ({"cache": "on"}, "cache='on' is not known"),
        ({"on_bad_image": "ignore"}, "on_bad_image='ignore' is not known"),
        ({"source": "./nowhere"}, "no file or folder './nowhere'"),
    ],
)
def test_wrong_settings_are_refused_at_once(folder, settings, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message.replace("[", r"\[")):
        Images(**({"source": str(folder), "batch_size": 8, "image_size": 16} | settings))


def test_a_cache_in_the_source_is_refused(make, folder):
    with pytest.raises(ValueError, match="lies in the source"):
        make(cache_dir=str(folder / "cache"))


def test_a_batch_larger_than_the_training_set(make):
    with pytest.raises(ValueError, match="batch_size=41 is more than the 40 training images"):
        make(batch_size=41).prepare_data()


def test_one_colour_tells_nothing_apart(tmp_path):
    black = BytesIO()
    Image.new("RGB", (8, 8)).save(black, "png")
    file = write_rows(tmp_path / "a.parquet", [(black.getvalue(), 0)] * 8, ["only"])
    data = Images(str(file), 8, image_size=8, val_split="train")
    with pytest.raises(ValueError, match="all training images are of one colour"):
        data.prepare_data()


def test_it_is_built_from_a_configuration(folder):
    parser = ArgumentParser()
    parser.add_subclass_arguments(LightningDataModule, "data")
    crop = {"class_path": "kornia.augmentation.RandomCrop", "init_args": {"size": [16, 16], "padding": 4}}
    settings = {
        "source": str(folder),
        "image_size": 16,
        "augment": [crop, {"class_path": "kornia.augmentation.RandomHorizontalFlip"}],
        "mixing": {"class_path": "lanes.data.mixing.MixUp"},
        "cache_limit_gib": 1,
        "mean": [0.5, 0.5, 0.5],
        "batch_size": 4,
    }
    config = parser.parse_object({"data": {"class_path": "lanes.training.Images", "init_args": settings}})
    data = parser.instantiate(config).data
    assert isinstance(data, Images)
    assert [type(change) for change in data.augment] == [RandomCrop, RandomHorizontalFlip]
    data.prepare_data()
    batch = data.train_set.__getitems__([0, 1, 2, 3])
    assert as_if(data, training=True).on_after_batch_transfer(batch, 0)[0].shape == (4, 3, 16, 16)
