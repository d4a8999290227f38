"""Memory: each of two lane devices holds half of the 2012 network, its gradients and its momentum, and needs less.

Bytes are exact and counted in the test's processes; peaks are those of fresh processes, as the kernel counts them, less
what was resident after the imports.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import lanes
from lanes.layers import local
from lanes.models import AlexNet
from tests.parity import loss_of, make_optimizer
from tests.ranks import Ranks

ROOT = Path(__file__).parents[2]
PARAMETERS = 60_965_224
FC8_BIAS = 1000  # added once, after the lanes' parts of the logits are summed: both devices hold it
BATCH = 16
MIB = 2**20
STATUS = Path("/proc/self/status")


def place_alexnet(lane_devices: int) -> tuple[Any, Any]:
    """AlexNet on this process's mesh, made layer by layer, and its optimizer."""
    mesh = lanes.init_mesh(lane_devices)
    torch.manual_seed(0)
    with torch.device("meta"):
        net = AlexNet(num_classes=1000, lanes=2)
        plan = lanes.plan(net, torch.empty(2, 3, 224, 224), lane_devices=lane_devices)
    net = lanes.place(net, plan, mesh)
    return net, make_optimizer(net, 0.01)


def step(net: Any, optimizer: Any, batch: int) -> None:
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    loss_of(net(images), torch.arange(batch)).backward()
    optimizer.step()


def held(lane_devices: int) -> dict[str, int]:
    """Bytes of this process, by kind, and numbers of elements."""
    net, optimizer = place_alexnet(lane_devices)
    step(net, optimizer, 2)
    parameters = list(net.parameters())
    kinds = {
        "parameters": parameters,
        "gradients": [p.grad for p in parameters],
        "momentum": [optimizer.state[p]["momentum_buffer"] for p in parameters],
    }
    sizes = {kind: sum(local(t).untyped_storage().nbytes() for t in tensors) for kind, tensors in kinds.items()}
    return {**sizes, "whole": sum(p.numel() for p in parameters)}


def test_each_of_two_devices_holds_half(ranks: Ranks, measured: Callable[[str], None]) -> None:
    half = 4 * ((PARAMETERS - FC8_BIAS) // 2 + FC8_BIAS)  # bytes of float32
    assert (PARAMETERS - FC8_BIAS) % 2 == 0
    for sizes in ranks(held, 2, 2):
        assert sizes == {"parameters": half, "gradients": half, "momentum": half, "whole": PARAMETERS}
    measured(f"AlexNet on 2 lane devices: parameters, gradients and momentum {half / MIB:.1f} MiB each, on each device")


def test_one_device_holds_all(ranks: Ranks) -> None:
    (sizes,) = ranks(held, 1, 1)
    assert sizes == {"parameters": 4 * PARAMETERS, "gradients": 4 * PARAMETERS, "momentum": 4 * PARAMETERS} | {
        "whole": PARAMETERS
    }


def resident(which: str) -> float:
    """This process's resident memory in MiB: "VmRSS" now, "VmHWM" at most since `forget_peak`."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(which + ":"))
    return int(line.split()[1]) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main(rank: int, world: int, store: str) -> None:
    """One of the fresh processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    forget_peak()
    base = resident("VmRSS")
    net, optimizer = place_alexnet(world)
    placing = resident("VmHWM") - base
    forget_peak()
    for _ in range(2):
        step(net, optimizer, BATCH)
    print(json.dumps({"placing": placing, "training": resident("VmHWM") - base}))
    dist.destroy_process_group()


def peaks(world: int, folder: Path) -> list[dict[str, float]]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.distributed.test_memory"]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(world), str(folder / f"store{world}")],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        said = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes)
    return [json.loads(text.splitlines()[-1]) for text in said]


@pytest.mark.skipif(not STATUS.exists(), reason="needs Linux's account of resident memory")
def test_peak_memory(measured: Callable[[str], None], tmp_path: Path) -> None:
    (one,) = peaks(1, tmp_path)
    two = peaks(2, tmp_path)
    for name in ("placing", "training"):
        worst = max(peak[name] for peak in two)
        measured(
            f"AlexNet, peak while {name}, {BATCH} images: {one[name]:.0f} MiB on one lane device, "
            f"{worst:.0f} MiB on each of two ({worst / one[name]:.2f}x)"
        )
    # Placing is printed only: a layer is whole on the host when it is checked and cut, on any number of devices.
    # Half of the weights, gradients, momentum and activations; the image, gathered maps and kernels' scratch are whole.
    for peak in two:
        assert peak["training"] <= 0.65 * one["training"]


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
