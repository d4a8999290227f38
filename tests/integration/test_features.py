"""``lanes features``: what is written equals what a forward hook of the plain network sees, on any layout."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lanes as package
from lanes.models import SmallAlexNet
from lanes.training import Photographs
from lanes.training.features import FeatureWriter
from tests.integration.command import CONFIG, lanes
from tests.integration.test_replicas import classifier, make_trainer, photos
from tests.networks import mixed_2d
from tests.ranks import Ranks

IMAGES = 13  # divides neither over batches nor replicas


class Tenfold(TensorDataset):
    """Ten views of each image."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image, label = super().__getitem__(index)
        return torch.stack([image.roll(view, -1) for view in range(10)]), label


def images_of(views: int) -> TensorDataset:
    data = photos(IMAGES)
    return Tenfold(*data.tensors) if views > 1 else data


def dump(layer: str, lane_devices: int, folder: str, views: int, part_bytes: int) -> None:
    writer = FeatureWriter(layer, Path(folder), part_bytes=part_bytes, about={"split": "val"})
    trainer = make_trainer(lane_devices, callbacks=[writer])
    trainer.predict(classifier(mixed_2d), DataLoader(images_of(views), batch_size=4), return_predictions=False)


def seen(net: nn.Module, layer: str, images: Tensor) -> Tensor:
    """The outputs of a layer of a plain network."""
    outputs: list[Tensor] = []
    net.get_submodule(layer).register_forward_hook(lambda *call: outputs.append(call[2].clone()))
    with torch.no_grad():
        net.eval()(images)
    return outputs[0]


def together(folder: Path) -> dict[str, Tensor]:
    """All files, in the order of the images."""
    files = [load_file(file) for file in sorted(folder.glob("*.safetensors"))]
    whole = {key: torch.cat([file[key] for file in files]) for key in files[0]}
    order = whole["index"].argsort()
    return {key: tensor[order] for key, tensor in whole.items()}


@pytest.mark.parametrize(
    ("layer", "mesh", "views"),
    [
        ("conv2", "1x1", 1),
        ("conv2", "1x2", 1),  # laned
        ("wide", "2x2", 1),  # summed where it is laned
        ("head", "1x2", 1),  # whole
        ("conv2", "2x1", 10),
    ],
)
def test_equals_the_plain_networks(ranks: Ranks, tmp_path: Path, layer: str, mesh: str, views: int) -> None:
    replicas, lane_devices = map(int, mesh.split("x"))
    (tmp_path / f"features-{layer}-replica7-00000.safetensors").write_text("of an earlier layout")
    ranks(dump, replicas * lane_devices, layer, lane_devices, str(tmp_path), views, 1 << 30)
    assert len(list(tmp_path.iterdir())) == replicas, "one file for each replica, nothing left over"
    found = together(tmp_path)
    data = [images_of(views)[i] for i in range(IMAGES)]
    images, labels = (torch.stack([pair[k] for pair in data]) for k in (0, 1))
    torch.manual_seed(0)
    wanted = seen(mixed_2d(), layer, images.flatten(0, 1) if views > 1 else images)
    wanted = wanted.unflatten(0, (IMAGES, views)) if views > 1 else wanted
    assert found["index"].tolist() == list(range(IMAGES))
    assert torch.equal(found["labels"], labels)
    assert found["features"].dtype == torch.float32
    torch.testing.assert_close(found["features"], wanted, rtol=1e-5, atol=1e-5)


def test_files_are_bounded(ranks: Ranks, tmp_path: Path) -> None:
    image_bytes = 4 * 10 + 8 + 8
    ranks(dump, 1, "head", 1, str(tmp_path), 1, 5 * image_bytes + 1)
    parts = [load_file(file) for file in sorted(tmp_path.iterdir())]
    assert [len(part["labels"]) for part in parts] == [5, 5, 3]
    assert together(tmp_path)["index"].tolist() == list(range(IMAGES))
    with safe_open(next(tmp_path.iterdir()), framework="pt") as file:
        assert file.metadata() == {"layer": "head", "split": "val"}


def test_the_command(tmp_path: Path) -> None:
    """Two lane devices; the checkpoint is a plain network's, the images are the training ones, as in evaluation."""
    torch.manual_seed(3)
    net = SmallAlexNet(10, 2)
    state = {"pytorch-lightning_version": lightning.__version__}
    package.save_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt", net, state=state)
    small = ("--data.init_args.num_train", 24, "--data.init_args.num_val", 20, "--data.init_args.batch_size", 8)
    arguments = ("run/checkpoints/last.ckpt", "--layer", "conv3", "--split", "train")
    answer = lanes("features", "-c", CONFIG, *small, *arguments, folder=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1] == "features: run/features/features-conv3-replica*.safetensors"
    found = together(tmp_path / "run" / "features")
    data = Photographs(8, num_train=24, num_val=20)
    images: Any = data.train_set
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (data.mean, data.std))
    assert torch.equal(found["labels"], images.labels)
    wanted = seen(net, "conv3", (images.images / 255 - mean) / std)
    torch.testing.assert_close(found["features"], wanted, rtol=1e-4, atol=1e-5)


def test_an_unknown_layer() -> None:
    plan = package.plan(partial(SmallAlexNet, 10, 2)(), torch.empty(2, 3, 64, 64), lane_devices=2)
    with pytest.raises(ValueError, match=r"no layer 'conv33'; did you mean 'conv3'\?; it has conv1, relu1"):
        FeatureWriter("conv33", Path()).check(plan)
