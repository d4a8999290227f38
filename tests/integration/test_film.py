"""The film of the filters that a training leaves, also one that was resumed in another folder."""

from functools import partial
from pathlib import Path

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch.utils.data import DataLoader

from lanes.pictures.animation import find_frames, picture_name
from lanes.training import Classifier, FilterPictures
from tests.integration.test_recipes import Small
from tests.integration.test_replicas import make_trainer, photos
from tests.ranks import Ranks

IMAGES, BATCH = 16, 8
STEPS = IMAGES // BATCH


def fit(folder: str, epochs: int, resume: str | None) -> int:
    torch.manual_seed(0)
    callbacks = [
        FilterPictures(view="grey", scale="filter"),
        ModelCheckpoint(Path(folder) / "checkpoints", save_last=True),
    ]
    options = {"max_epochs": epochs, "default_root_dir": folder, "callbacks": callbacks, "enable_checkpointing": True}
    trainer = make_trainer(2, **options)
    module = Classifier(Small, image_shape=(3, 16, 16), optimizer=partial(torch.optim.SGD, lr=0.05))
    trainer.fit(module, DataLoader(photos(IMAGES), BATCH), ckpt_path=resume)
    return trainer.global_step


def test_the_film_of_a_resumed_training_shows_both_parts(tmp_path: Path, ranks: Ranks) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    assert ranks(fit, 2, str(first), 3, None)[0] == 3 * STEPS
    with Image.open(first / "filters-conv1.gif") as film:
        assert film.n_frames == 4  # before training, and after each epoch

    # What lies beyond the step from which it goes on is not of its course.
    checkpoint = first / "checkpoints" / "last.ckpt"
    later = picture_name("conv1", 0, 3 * STEPS + 1), picture_name("conv1", 1, 3 * STEPS + 1)
    for name in later:
        (first / "filters" / name).write_bytes(b"of a course that was given up")
    assert ranks(fit, 2, str(second), 5, str(checkpoint))[0] == 5 * STEPS
    frames = find_frames(second / "filters", "conv1")
    assert list(frames) == [epoch * STEPS for epoch in range(6)]
    for step in range(0, 3 * STEPS + 1, STEPS):
        for lane, path in enumerate(frames[step]):
            assert path.read_bytes() == (first / "filters" / picture_name("conv1", lane, step)).read_bytes()
    with Image.open(second / "filters-conv1.gif") as film:
        assert film.n_frames == 6
