"""The default data: no pixel shared between training and validation, the same patches everywhere, quick batches."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DistributedSampler, RandomSampler

from lanes.data import augment
from lanes.training import photographs
from lanes.training.photographs import CELL, MAX_SIDE, MIN_SIDE, PHOTOGRAPHS, Photographs, held_out_cells

SMALL = {"batch_size": 16, "num_train": 403, "num_val": 205, "image_size": 16}


@pytest.fixture(scope="module")
def data() -> Photographs:
    return Photographs(**SMALL)


@pytest.fixture(scope="module")
def pictures():
    return [photograph.load() for photograph in PHOTOGRAPHS]


def _inside(box, cell) -> bool:
    return cell[0] <= box[0] and cell[1] <= box[1] and box[2] <= cell[2] and box[3] <= cell[3]


def test_cells_are_spread_and_every_photograph_has_a_whole_one(pictures):
    for picture in pictures:
        cells = held_out_cells(*picture.size)
        assert any(box[2] - box[0] == box[3] - box[1] == CELL for box in cells)
        columns, rows = (-(-side // CELL) for side in picture.size)
        assert abs(len(cells) - columns * rows / 4) <= 1
        assert len({box[0] for box in cells}) >= min(rows, 4, columns) - 1  # diagonals, not columns
        assert len({box[1] for box in cells}) >= rows - 1


def test_no_pixel_is_shared(data, pictures):
    for label, picture in enumerate(pictures):
        width, height = picture.size
        cells = held_out_cells(width, height)
        read = {}
        for name, patches in (("train", data.train_set), ("val", data.val_set)):
            read[name] = np.zeros((height, width), dtype=bool)
            for left, top, right, bottom in patches.boxes[patches.labels == label].tolist():
                assert 0 <= left < right <= width
                assert 0 <= top < bottom <= height
                assert MIN_SIDE <= right - left == bottom - top <= MAX_SIDE
                read[name][top:bottom, left:right] = True
        held = np.zeros((height, width), dtype=bool)
        for left, top, right, bottom in cells:
            held[top:bottom, left:right] = True
        assert not (read["train"] & held).any()
        assert not (read["train"] & read["val"]).any()
        for box in data.val_set.boxes[data.val_set.labels == label].tolist():
            assert sum(_inside(box, cell) for cell in cells) == 1


def test_patches_depend_on_no_pixel_outside_their_boxes(data, pictures):
    for patches in (data.train_set, data.val_set):
        for index in range(0, 40, 3):
            picture, box = pictures[int(patches.labels[index])], patches.boxes[index].tolist()
            blackened = photographs.Image.new("RGB", picture.size)
            blackened.paste(picture.crop(box), box)
            again = photographs.Patches(
                [blackened], lambda *_, box=box: np.array([box]), count=1, image_size=16, seed=[0]
            )
            assert torch.equal(again.images[0], patches.images[index])


def test_the_whole_training_area_is_used(pictures):
    width, height = pictures[0].size
    boxes = photographs.training_boxes(width, height, 4000, np.random.default_rng(0))
    read = np.zeros((height, width), dtype=bool)
    for left, top, right, bottom in boxes:
        read[top:bottom, left:right] = True
    for left, top, right, bottom in held_out_cells(width, height):
        read[top:bottom, left:right] = True
    assert read.mean() > 0.95  # corners that only few boxes can reach may stay unseen


def test_shapes_dtypes_and_balance(data):
    for patches, count in ((data.train_set, 403), (data.val_set, 205)):
        assert len(patches) == count
        assert patches.images.shape == (count, 3, 16, 16)
        assert patches.images.dtype == torch.uint8
        assert patches.labels.dtype == torch.int64
        numbers = patches.labels.bincount()
        assert len(numbers) == data.num_classes == len(data.class_names)
        assert numbers.max() - numbers.min() <= 1
    assert data.image_shape == (3, 16, 16)


def test_patches_are_decided_by_the_seed_alone(data):
    np.random.seed(3)  # the global generators must not matter
    torch.manual_seed(3)
    again, other = Photographs(**SMALL), Photographs(**SMALL, seed=1)
    for name in ("train_set", "val_set"):
        assert torch.equal(getattr(data, name).images, getattr(again, name).images)
        assert torch.equal(getattr(data, name).boxes, getattr(again, name).boxes)
        assert not torch.equal(getattr(data, name).boxes, getattr(other, name).boxes)


def test_setup_happens_once(data):
    data.setup("fit")
    first = data.train_set
    data.setup("validate")
    assert data.train_set is first


def test_mean_and_std_are_those_of_the_training_pixels(data):
    """Near those of many patches (which see pixels at the rims of a photograph less often); the same for any number."""
    pixels = Photographs(num_train=2000, num_val=10).train_set.images.double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=0.03)
    assert data.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=0.03)
    other = Photographs(num_train=64, num_val=10, seed=5)
    assert (other.mean, other.std) == (data.mean, data.std)


def test_loaders(data):
    train, val = data.train_dataloader(), data.val_dataloader()
    assert isinstance(train.sampler, RandomSampler)
    assert {len(labels) for _, labels in train} == {16}
    assert len(train) == 403 // 16
    images, _ = next(iter(train))
    assert images.dtype == torch.uint8
    assert images.shape == (16, 3, 16, 16)
    for loader in (val, data.test_dataloader(), data.predict_dataloader()):
        batches = list(loader)
        assert torch.equal(torch.cat([labels for _, labels in batches]), data.val_set.labels)
        assert torch.equal(torch.cat([images for images, _ in batches]), data.val_set.images)
    image, label = data.val_set[7]
    assert torch.equal(image, data.val_set.images[7])
    assert label == 7


def test_worker_processes_give_the_same_batches(data):
    other = Photographs(**SMALL, num_workers=1)
    assert torch.equal(next(iter(other.val_dataloader()))[0], next(iter(data.val_dataloader()))[0])


def test_augments_in_training_only(data, monkeypatch):
    batch = data.val_set[:16]
    plain, labels = data.on_after_batch_transfer(batch, 0)
    assert torch.equal(labels, batch[1])
    mean, std = (torch.tensor(value)[:, None, None] for value in (data.mean, data.std))
    assert torch.equal(plain, augment.normalize(augment.to_unit(batch[0]), mean, std))
    monkeypatch.setattr(data, "trainer", SimpleNamespace(training=False))
    assert torch.equal(data.on_after_batch_transfer(batch, 0)[0], plain)
    monkeypatch.setattr(data, "trainer", SimpleNamespace(training=True))
    torch.manual_seed(5)
    first = data.on_after_batch_transfer(batch, 0)[0]
    assert not torch.equal(first, plain)
    torch.manual_seed(5)
    assert torch.equal(data.on_after_batch_transfer(batch, 0)[0], first)


class _Probe(LightningModule):
    """Records what arrives in the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[torch.dtype, torch.Size]] = []

    def training_step(self, batch, _):
        self.seen.append((batch[0].dtype, batch[0].shape))
        return self.weight * batch[0].mean()

    validation_step = training_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_on_it_and_may_swap_the_sampler(tmp_path):
    probe, data = _Probe(), Photographs(**SMALL)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(max_steps=2, accelerator="cpu", default_root_dir=tmp_path, **quiet, enable_model_summary=False).fit(
        probe, data
    )
    assert set(probe.seen) == {(torch.float32, torch.Size([16, 3, 16, 16]))}
    loader = data.train_dataloader()
    sampler = DistributedSampler(loader.dataset, num_replicas=2, rank=1, shuffle=False)
    halves = torch.utils.data.DataLoader(loader.dataset, batch_size=16, sampler=sampler, collate_fn=loader.collate_fn)
    assert torch.equal(next(iter(halves))[1], data.train_set.labels[1:32:2])


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [
        ("batch_size", 0, 1),
        ("image_size", 4, 8),
        ("num_train", 63, 64),
        ("num_val", 9, 10),
        ("seed", -1, 0),
        ("num_workers", -1, 0),
    ],
)
def test_numbers_out_of_range_are_refused(name, value, least):
    with pytest.raises(ValueError, match=f"{name}={value} is too small: use {least} or more"):
        Photographs(**{name: value})


def test_missing_packages_and_files_name_the_remedy(monkeypatch):
    monkeypatch.setattr(photographs, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "lanes\[photographs\]"'):
        Photographs()
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match=r"missing from the package 'skimage'"):
        photographs.Photograph("none", "skimage", "data/none.png").path()


def test_data_card_tells_classes_numbers_and_split(data):
    card = data.data_card()
    for word in ("10 classes", "astronaut", "403", "205", "16 x 16", "held out", "no download"):
        assert word in card
