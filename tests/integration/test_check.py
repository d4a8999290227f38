"""``lanes check`` by the command: a configuration passes; what is wrong on one lane device is named, exit code 1."""

from pathlib import Path

import torch
from torch import Tensor

from lanes.layers.placed import Placed
from lanes.models import SmallAlexNet
from tests.integration.command import CONFIG, SMALL, lanes

FEW = ("--images", 2, "--trainer.devices", 2)


class Tampered(SmallAlexNet):
    """Placed, one weight of lane device 1 is another from the first forward on."""

    tampered = False

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.conv2, Placed) and self.conv2.lane.index == 1 and not self.tampered:
            with torch.no_grad():
                self.conv2.weight.to_local()[5, 0, 0, 0] += 1e-3  # type: ignore[operator]
            self.tampered = True
        return super().forward(x)


def test_the_main_configuration_passes(tmp_path: Path) -> None:
    answer = lanes("check", "-c", CONFIG, *SMALL, *FEW, folder=tmp_path)
    assert answer.returncode == 0, answer.stderr
    shown = answer.stdout.splitlines()
    start = shown.index("mesh: 1 x 2 (replicas x lane devices), float64")
    groups = ["weights before", "outputs", "output gradients", "gradients", "parameters"]
    assert [line.split(" (")[0] for line in shown[start + 3 : -1]] == groups
    assert shown[-1] == "PASSED: the placed model equals the plain one"
    assert not list(tmp_path.iterdir()), "a check leaves nothing behind"


def test_a_tampered_network_fails(tmp_path: Path) -> None:
    net = ("--model.net", f"{__name__}.Tampered", "--model.net.init_args.num_classes", 10)
    answer = lanes("check", "-c", CONFIG, *SMALL, *FEW, *net, folder=tmp_path)
    assert answer.returncode == 1, answer.stderr
    last = answer.stdout.splitlines()[-1]
    assert last.startswith("FAILED: conv2: outputs differ by")
    assert last.endswith("on lane device 1")
    assert "Traceback" not in answer.stderr
