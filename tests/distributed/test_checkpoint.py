"""Checkpoints: written on one layout, read on any other and by the plain model; training goes on as if undisturbed."""

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

import lanes
from lanes.checkpoint import DamagedError, check_checkpoint, is_checkpoint, load_checkpoint, save_checkpoint
from lanes.mesh import DATA_AXIS, axis
from tests import networks
from tests.parity import loss_of, relative_error, whole
from tests.ranks import Ranks

BOUND = 1e-10
FILES = {"model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}
MESHES = {"1x1": (1, 1), "1x2": (2, 2), "1x4": (4, 4), "2x1": (2, 1), "2x2": (4, 2)}  # data x lane: ranks, lane devices
STATE = {"step": 2, "best": 0.25, "history": (1, [2.5, None]), "by_epoch": {0: "a", 1: "b"}, "flag": True}

Tensors = dict[str, Tensor]


@contextmanager
def strict() -> Iterator[None]:
    """Warnings of our own code are errors, also in the processes of ranks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="lanes")
        yield


def build(seed: int = 0, **arguments: Any) -> nn.Module:
    """Every kind of placed layer, dropout off, so that one replica or two make the same step."""
    torch.manual_seed(seed)
    net = networks.Mixed(**arguments).double()
    for module in net.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    return net


def make_optimizer(kind: str, net: nn.Module) -> Optimizer:
    if kind == "AdamW":
        return AdamW(net.parameters(), lr=1e-3, weight_decay=0.05)
    decayed = [p for p in net.parameters() if p.dim() > 1]
    others = [p for p in net.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": others, "lr": 0.02}]
    return torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True)


def batch_of(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    images = torch.randn(8, 3, 16, 16, dtype=torch.float64, generator=generator)
    return images, torch.randint(0, 10, (8,), generator=generator)


def train(net: nn.Module, optimizer: Optimizer, steps: range, replicas: int = 1, replica: int = 0) -> None:
    for step in steps:
        images, labels = (t.chunk(replicas)[replica] for t in batch_of(step))
        optimizer.zero_grad()
        loss_of(net(images), labels).backward()
        optimizer.step()


def snapshot(net: nn.Module, *optimizers: Optimizer) -> tuple[Tensors, Tensors]:
    """The model's and the optimizers' tensors, whole; all processes must call it."""
    names = {id(p): name for name, p in net.named_parameters()}
    momenta = {
        f"{names[id(p)]}.{key}": whole(value)
        for optimizer in optimizers
        for p, values in optimizer.state.items()
        for key, value in values.items()
        if isinstance(value, Tensor)
    }
    return {name: whole(t) for name, t in net.state_dict().items()}, momenta


def same(ours: Tensors, theirs: Tensors) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.shape == theirs[name].shape, name
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


def settings_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    return [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]


def placed(lane_devices: int, seed: int = 0) -> tuple[nn.Module, int, int]:
    mesh = lanes.init_mesh(lane_devices)
    net = build(seed)
    plan = lanes.plan(net, batch_of(0)[0][:2], lane_devices=lane_devices)
    lanes.place(net, plan, mesh, sync_batch_norm=True)
    data = axis(mesh, DATA_AXIS)
    return net, data.size, data.index


def write(path: str, kind: str, lane_devices: int) -> tuple[Tensors, Tensors, list[dict[str, Any]]]:
    """Train two steps on this mesh and save."""
    with strict():
        net, replicas, replica = placed(lane_devices)
        optimizer = make_optimizer(kind, net)
        train(net, optimizer, range(2), replicas, replica)
        save_checkpoint(path, net, [optimizer], STATE)
        assert is_checkpoint(path), "whole on every process when the call returns"
        return *snapshot(net, optimizer), settings_of(optimizer)


def resume(path: str, kind: str, lane_devices: int) -> tuple[Tensors, Tensors, list, dict, Tensors, Tensors]:
    """Load into a model of other weights, then train three steps more."""
    with strict():
        net, replicas, replica = placed(lane_devices, seed=99)
        optimizer = make_optimizer(kind, net)
        train(net, optimizer, range(7, 8), replicas, replica)  # the optimizer's state must be overwritten
        for group in optimizer.param_groups:
            group["lr"] = 0.5
        state = load_checkpoint(path, net, [optimizer])
        loaded, settings = snapshot(net, optimizer), settings_of(optimizer)
        train(net, optimizer, range(2, 5), replicas, replica)
        return *loaded, settings, state, *snapshot(net, optimizer)


@pytest.fixture(scope="module", params=["SGD", "AdamW"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def saved(ranks: Ranks, kind: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensors, Tensors, list]:
    """A checkpoint that a 1 x 2 mesh wrote, and what it held."""
    path = tmp_path_factory.mktemp("checkpoints") / "step=2.ckpt"
    return path, *ranks(write, 2, str(path), kind, 2)[0]


@pytest.fixture(scope="module")
def undisturbed(kind: str) -> tuple[Tensors, Tensors]:
    """The plain model after five steps on one device."""
    net = build()
    optimizer = make_optimizer(kind, net)
    train(net, optimizer, range(5))
    return snapshot(net, optimizer)


def test_the_folder_holds_files_in_plain_names_and_shapes(saved: tuple) -> None:
    path, tensors, momenta, _ = saved
    assert {file.name for file in path.iterdir()} == FILES
    assert {file.name for file in path.parent.iterdir()} == {path.name}
    plain = build(1).state_dict()
    written = load_file(path / "model.safetensors")
    assert {name: t.shape for name, t in written.items()} == {name: t.shape for name, t in plain.items()}
    assert {name: t.dtype for name, t in written.items()} == {name: t.dtype for name, t in plain.items()}
    same(written, tensors)
    same(load_file(path / "optimizer.safetensors"), momenta)
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["format"] == "lanes-checkpoint/2"
    assert set(manifest["versions"]) == {"lanes", "torch", "lightning"}
    assert manifest["layout"] == {"replicas": 1, "lane_devices": 2}
    assert set(manifest["files"]) == FILES - {"manifest.json"}


def test_the_plain_model_reads_it_with_safetensors_alone(saved: tuple) -> None:
    path, tensors, *_ = saved
    net = build(1)
    net.load_state_dict(load_file(path / "model.safetensors"))
    same(dict(net.state_dict()), tensors)
    assert net.bn1.num_batches_tracked == 2
    assert (net.bn1.running_var != 1).all()


def test_the_plain_model_goes_on(saved: tuple, undisturbed: tuple, kind: str) -> None:
    path, tensors, momenta, settings = saved
    net = build(1)
    optimizer = make_optimizer(kind, net)
    assert load_checkpoint(path, net, [optimizer]) == STATE
    ours, our_momenta = snapshot(net, optimizer)
    same(ours, tensors)
    same(our_momenta, momenta)
    assert settings_of(optimizer) == settings
    train(net, optimizer, range(2, 5))
    for ours, theirs in zip(snapshot(net, optimizer), undisturbed, strict=True):
        assert relative_error(ours, theirs) <= BOUND


@pytest.mark.parametrize("mesh", MESHES)
def test_every_mesh_goes_on(ranks: Ranks, saved: tuple, undisturbed: tuple, kind: str, mesh: str) -> None:
    path, tensors, momenta, settings = saved
    world, lane_devices = MESHES[mesh]
    for answer in ranks(resume, world, str(path), kind, lane_devices):
        loaded, loaded_momenta, loaded_settings, state, after, after_momenta = answer
        same(loaded, tensors)
        same(loaded_momenta, momenta)
        assert loaded_settings == settings
        assert state == STATE
        assert isinstance(state["history"], tuple)
        assert relative_error(after, undisturbed[0]) <= BOUND
        assert relative_error(after_momenta, undisturbed[1]) <= BOUND


@pytest.mark.parametrize("mesh", ["1x1", "1x4", "2x2"])
def test_every_mesh_writes(ranks: Ranks, tmp_path: Path, mesh: str) -> None:
    world, lane_devices = MESHES[mesh]
    path = tmp_path / "deep" / "last.ckpt"
    tensors, momenta, _ = ranks(write, world, str(path), "SGD", lane_devices)[0]
    assert {file.name for file in path.iterdir()} == FILES
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    same(load_file(path / "model.safetensors"), tensors)
    same(load_file(path / "optimizer.safetensors"), momenta)


def write_channels_last(path: str) -> tuple[Tensors, Tensors]:
    with strict():
        net, _, _ = placed(2)
        optimizer = make_optimizer("SGD", net)
        images, labels = batch_of(0)
        loss_of(net(images.to(memory_format=torch.channels_last)), labels).backward()
        optimizer.step()
        save_checkpoint(path, net, [optimizer])
        return snapshot(net, optimizer)


def test_images_in_channels_last(ranks: Ranks, tmp_path: Path) -> None:
    tensors, momenta = ranks(write_channels_last, 2, str(tmp_path / "one"))[0]
    same(load_file(tmp_path / "one" / "model.safetensors"), tensors)
    same(load_file(tmp_path / "one" / "optimizer.safetensors"), momenta)


def overwrite(path: str) -> Tensors:
    """Save three times under one name, the last without an optimizer; remains of a run that was killed lie about."""
    with strict():
        net, _, _ = placed(2)
        optimizer = make_optimizer("SGD", net)
        save_checkpoint(path, net, [optimizer], {"number": 1})
        train(net, optimizer, range(1))
        save_checkpoint(path, net, [optimizer], {"number": 2})
        train(net, optimizer, range(1, 2))
        save_checkpoint(path, net, state={"number": 3})
        return snapshot(net)[0]


def test_overwriting_keeps_one_whole_folder(ranks: Ranks, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    for remains in (".last.ckpt.partial", ".last.ckpt.old"):
        (tmp_path / remains).mkdir()
        (tmp_path / remains / "junk.safetensors").write_text("junk")
    tensors = ranks(overwrite, 2, str(path))[0]
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert {file.name for file in path.iterdir()} == FILES - {"optimizer.safetensors"}
    same(load_file(path / "model.safetensors"), tensors)
    net = build(1)
    assert load_checkpoint(path, net) == {"number": 3}
    same(dict(net.state_dict()), tensors)


def write_unwritable(path: str) -> str:
    net, _, _ = placed(2)
    with pytest.raises(TypeError) as error:
        save_checkpoint(path, net, state={"metrics": {"best": [object()]}})
    return str(error.value)


def test_a_state_that_cannot_be_written_leaves_nothing(ranks: Ranks, tmp_path: Path) -> None:
    for message in ranks(write_unwritable, 2, str(tmp_path / "last.ckpt")):
        assert "state.metrics.best[0]" in message
    assert not list(tmp_path.iterdir())


# ---- One process without a mesh


def plain_checkpoint(path: Path, **arguments: Any) -> nn.Module:
    net = build(**arguments)
    optimizer = make_optimizer("AdamW", net)
    train(net, optimizer, range(1))
    save_checkpoint(path, net, [optimizer], {"step": 1})
    return net


def test_plain_to_plain(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = plain_checkpoint(tmp_path / "one")
        other = build(1)
        assert load_checkpoint(tmp_path / "one", other) == {"step": 1}
    same(dict(other.state_dict()), dict(net.state_dict()))


def test_before_the_first_step_and_with_two_optimizers(tmp_path: Path) -> None:
    net, other = build(), build(1)
    optimizers, others = (
        [torch.optim.SGD(n.conv1.parameters(), lr=lr, momentum=0.9), AdamW(n.head.parameters(), lr=2 * lr)]
        for n, lr in ((net, 0.1), (other, 0.7))
    )
    save_checkpoint(tmp_path / "zero", net, optimizers)
    assert load_checkpoint(tmp_path / "zero", other, others) == {}
    assert [o.param_groups[0]["lr"] for o in others] == [0.1, 0.2]
    loss_of(net(batch_of(0)[0]), batch_of(0)[1]).backward()
    for optimizer in optimizers:
        optimizer.step()
    save_checkpoint(tmp_path / "one", net, optimizers)
    load_checkpoint(tmp_path / "one", other, others)
    for ours, theirs in zip(snapshot(other, *others), snapshot(net, *optimizers), strict=True):
        same(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_layouts_and_data_types(tmp_path: Path, dtype: torch.dtype) -> None:
    net = build().to(dtype=dtype, memory_format=torch.channels_last)
    save_checkpoint(tmp_path / "one", net)
    same(load_file(tmp_path / "one" / "model.safetensors"), dict(net.state_dict()))
    other = build(1).to(dtype=dtype, memory_format=torch.channels_last)
    load_checkpoint(tmp_path / "one", other)
    same(dict(other.state_dict()), dict(net.state_dict()))
    contiguous = build(1).to(dtype=dtype)
    load_checkpoint(tmp_path / "one", contiguous)
    same(dict(contiguous.state_dict()), dict(net.state_dict()))


def refused(path: Path, net: nn.Module, optimizers: list[Optimizer], *words: str) -> None:
    """Loading raises with these words and leaves the model as it was."""
    before = {name: t.clone() for name, t in net.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape(str(path))) as error:
        load_checkpoint(path, net, optimizers)
    for word in words:
        assert word in str(error.value)
    same(dict(net.state_dict()), before)


def test_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "nowhere", tmp_path / "empty"):
        assert not is_checkpoint(path)
        for call in (load_checkpoint, check_checkpoint):
            with pytest.raises(FileNotFoundError, match=path.name):
                call(path, build())


def test_another_architecture(tmp_path: Path) -> None:
    path = tmp_path / "one"
    plain_checkpoint(path)
    missing = build()
    missing.extra = nn.Linear(2, 2)
    refused(path, missing, [], "no 'extra.weight'", "another architecture")
    refused(path, build(classes=7), [], "'head.weight' is [10, 32]", "[7, 32]")
    fewer = build()
    del fewer.fc7
    refused(path, fewer, [], "it has 'fc7.weight', which the model has not")
    for net in (missing, fewer):
        with pytest.raises(ValueError, match="another architecture"):
            check_checkpoint(path, net)
    check_checkpoint(path, build(3))
    with torch.device("meta"):
        check_checkpoint(path, networks.Mixed())


def test_wrong_optimizers(tmp_path: Path) -> None:
    path = tmp_path / "one"
    plain_checkpoint(path)
    net = build(1)
    two = [torch.optim.SGD(net.head.parameters(), lr=1.0), torch.optim.SGD(net.conv1.parameters(), lr=1.0)]
    refused(path, net, two, "1 optimizers, not 2")
    refused(path, net, [make_optimizer("SGD", net)], "written with AdamW, the optimizer is SGD")
    parameters = list(net.parameters())
    refused(path, net, [AdamW([{"params": parameters[:3]}, {"params": parameters[3:]}])], "1 groups in another order")


def test_an_optimizer_over_other_parameters_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "one"
    plain_checkpoint(path)
    net = build(1)
    refused(path, net, [AdamW(net.head.parameters())], "conv1.weight")


def test_another_format(tmp_path: Path) -> None:
    path = tmp_path / "one"
    plain_checkpoint(path)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"format": "lanes-checkpoint/9"}))
    refused(path, build(1), [], "'lanes-checkpoint/9'", "'lanes-checkpoint/2'", "update lanes")


def load_refused(path: str) -> str:
    net, _, _ = placed(2)
    with pytest.raises(ValueError, match="architecture") as error:
        load_checkpoint(path, net)
    return str(error.value)


def load_damaged(path: str) -> str:
    net, _, _ = placed(2)
    with pytest.raises(DamagedError) as error:
        load_checkpoint(path, net)
    return str(error.value)


def test_every_rank_refuses_what_the_first_finds_damaged(ranks: Ranks, tmp_path: Path) -> None:
    plain_checkpoint(tmp_path / "one")
    plain_checkpoint(tmp_path / "two")
    damage(tmp_path / "two" / "optimizer.safetensors")
    for message in ranks(load_damaged, 2, str(tmp_path / "two")):
        assert "optimizer.safetensors is not what was written" in message
        assert str(tmp_path / "one") in message


def write_where_nothing_can_be_written(path: str) -> str:
    net, _, _ = placed(2)
    with pytest.raises(OSError, match="could not be written") as error:
        save_checkpoint(path, net)
    return str(error.value)


def test_every_rank_hears_that_the_first_cannot_write(ranks: Ranks, tmp_path: Path) -> None:
    """Else the others would wait for it."""
    (tmp_path / "file").touch()
    for message in ranks(write_where_nothing_can_be_written, 2, str(tmp_path / "file" / "one")):
        assert "Not a directory" in message


def damage(file: Path) -> None:
    """One bit is another."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_every_rank_refuses(ranks: Ranks, tmp_path: Path) -> None:
    plain_checkpoint(tmp_path / "one", classes=12)
    for message in ranks(load_refused, 2, str(tmp_path / "one")):
        assert "'head.weight' is [12, 32] in it and [10, 32] in the model" in message
