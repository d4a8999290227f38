"""Random networks on random meshes: each is placed and equals the plain model, or is refused for a reason that holds.

A case that fails prints its seed and its program; ``LANES_SEEDS=17:18`` in the environment runs seed 17 alone, and
other seeds than the committed ones in the same way.
"""

import copy
import functools
import os
import random
import re
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from unittest import mock

import pytest
import torch
from torch import Tensor

import lanes
from lanes import Plan, PlanError
from lanes.mesh import DATA_AXIS, LANE_AXIS, axis
from lanes.planning import lane_devices_of
from lanes.rules.kinds import LAYERS
from lanes.ways import WAYS
from tests.distributed.test_traffic import strict
from tests.parity import Outcome, Recipe, loss_of, of_replicas, relative_error, run_plain, whole
from tests.random_networks import Case, RandomNetwork, draw
from tests.random_refusals import REASONS
from tests.ranks import Ranks

FIRST, LAST = map(int, os.environ.get("LANES_SEEDS", "0:280").split(":"))
COMMITTED = "LANES_SEEDS" not in os.environ
TOGETHER = 25  # cases that share a process group
RECIPE = Recipe(steps=2, clip=float("inf"))
BOUND, TELLING = 1e-9, 1e-6
pytestmark = pytest.mark.timeout(900)  # all cases run in the first test


@dataclass
class Result:
    """What became of a case on one process.

    Attributes:
        seed: of the case.
        text: the network's program.
        failure: a traceback.
        refused: the planner's words.
        plan: how the network was placed.
        sent: bytes sent in a training step, forward and backward.
        calls: collectives in it, by name.
        errors: by group, against the plain model; where this process compared them.
        noise: the plain model's own, one ulp of the images apart; where an error is not small.
    """

    seed: int
    text: str = ""
    failure: str = ""
    refused: str = ""
    plan: Plan | None = None
    sent: tuple[int, int] = (0, 0)
    calls: tuple[Counter[str], ...] = ()
    errors: dict[str, float] = field(default_factory=dict)
    noise: dict[str, float] = field(default_factory=dict)


def numbers(case: Case) -> tuple[Tensor, Tensor]:
    """Images and labels."""
    generator = torch.Generator().manual_seed(case.seed)
    images = torch.randn(case.shape, dtype=torch.float64, generator=generator)
    return images, torch.randint(0, 10, case.shape[:1], generator=generator)


def network(seed: int) -> RandomNetwork:
    torch.manual_seed(0)
    return draw(seed).build().double()


def planned(net: RandomNetwork) -> Plan:
    """The plan, some dense layers of which are overridden."""
    example, lane_devices = numbers(net.case)[0].requires_grad_(), net.case.lane_devices
    plan, rng = lanes.plan(net, example, lane_devices=lane_devices), random.Random(f"override {net.case.seed}")
    override = {}
    for name, layer in plan.layers.items():
        if layer.way in ("gather", "scatter_sum"):
            override[name] = rng.choice(("gather", "scatter_sum"))
        elif layer.way == "leave_sum" and len(net.get_submodule(name).weight) % lane_devices == 0:
            override[name] = "gather+leave"
    override = {name: way for name, way in override.items() if rng.random() < 0.25}
    return lanes.plan(net, example, lane_devices=lane_devices, override=override)


def train_placed(net: RandomNetwork, plan: Plan, result: Result) -> Outcome:
    """Train a placed copy, counting what it sends; then evaluate it beside the plain network with the same numbers."""
    images, labels = numbers(net.case)
    mesh = lanes.init_mesh(net.case.lane_devices)
    lane, data = axis(mesh, LANE_AXIS), axis(mesh, DATA_AXIS)
    placed = lanes.place(copy.deepcopy(net), plan, mesh)
    # On DTensors an optimizer takes longer than all else here: it looks up each operation for each new shape.
    own = [parameter.to_local().detach() for parameter in placed.parameters()]
    optimizer = torch.optim.SGD(own, lr=RECIPE.lr, momentum=0.9, weight_decay=5e-4)
    part, targets = images.chunk(data.size)[data.index], labels.chunk(data.size)[data.index]
    lanes.seed_replica(mesh, 1)
    outcome = Outcome()
    for step in range(RECIPE.steps):
        read = part.clone().requires_grad_()
        with lanes.Traffic(lane) as forward:
            outputs = placed(read)
        with lanes.Traffic(lane) as backward:
            loss_of(outputs, targets).backward()
        if step == 0:
            result.sent = forward.sent_bytes.total(), backward.sent_bytes.total()
            result.calls = forward.calls, backward.calls
            outcome.groups["outputs"] = of_replicas(outputs, data)
            outcome.groups["input gradients"] = of_replicas(read.grad, data)
            outcome.groups["gradients"] = {n: whole(p.grad) for n, p in placed.named_parameters()}
        for mine, parameter in zip(own, placed.parameters(), strict=True):
            mine.grad, parameter.grad = parameter.grad.to_local(), None
        optimizer.step()
    lanes.average_statistics(placed, mesh)
    outcome.groups["parameters"] = {n: whole(p) for n, p in placed.named_parameters()}
    buffers = {n: whole(b) for n, b in placed.named_buffers()}
    if buffers:
        outcome.groups["statistics"] = {n: b.double() for n, b in buffers.items()}
    plain = copy.deepcopy(net)
    plain.load_state_dict(outcome.groups["parameters"] | buffers)
    with torch.no_grad():
        result.errors["evaluation"] = relative_error({"": placed.eval()(images)}, {"": plain.eval()(images)})
    return outcome


def compare(result: Result, net: RandomNetwork, outcome: Outcome) -> None:
    """Train the plain network, and where it differs by more than a little, also on images one ulp apart."""
    images, labels = numbers(net.case)
    train = functools.partial(run_plain, functools.partial(copy.deepcopy, net))
    replicas = net.case.world // net.case.lane_devices
    plain = train(images, labels, replicas, RECIPE)
    result.errors |= outcome.errors_against(plain)
    if max(result.errors.values()) > BOUND / 100:
        result.noise = train(images * (1 + 2**-52), labels, replicas, RECIPE).errors_against(plain)


@strict()
def run_cases(seeds: list[int]) -> list[Result]:
    """Run cases one after the other, up to the first that fails; then compare, each process its share."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    results: list[Result] = []
    trained: list[tuple[Result, RandomNetwork, Outcome]] = []
    # A mesh for each network would take longer than the network.
    with mock.patch.object(lanes, "init_mesh", functools.cache(lanes.init_mesh)):
        for seed in seeds:
            net, result = network(seed), Result(seed)
            result.text = str(net)
            results.append(result)
            try:
                result.plan = planned(net)
                trained.append((result, net, train_placed(net, result.plan, result)))
            except PlanError as error:
                result.refused = str(error)
            except Exception:
                result.failure = traceback.format_exc()
                break
    for result, net, outcome in trained[rank::world]:
        compare(result, net, outcome)
    return results


@pytest.fixture(scope="module")
def cases(ranks: Ranks) -> dict[int, list[Result]]:
    """What became of each seed, on each process."""
    by_mesh: dict[tuple[int, int], list[int]] = {}  # one at a time: DTensor keeps equal meshes of earlier groups
    for case in map(draw, range(FIRST, LAST)):
        by_mesh.setdefault((case.world, case.lane_devices), []).append(case.seed)
    found: dict[int, list[Result]] = {}
    for (world, _), seeds in by_mesh.items():
        while seeds:
            everyone = ranks(run_cases, world, seeds[:TOGETHER], timeout_s=300)
            found |= {here[0].seed: list(here) for here in zip(*everyone, strict=True)}
            del seeds[: len(everyone[0])]
    return found


def test_none_fails(cases: dict[int, list[Result]]) -> None:
    failed = [(one.failure, one.text) for here in cases.values() for one in here if one.failure]
    assert not failed, f"{len(failed)} fail, the first:\n" + "\n".join(failed[0])


# ---- Those that are placed


def placed(cases: dict[int, list[Result]]) -> list[tuple[Plan, list[Result]]]:
    return [(here[0].plan, here) for here in cases.values() if here[0].plan is not None and not here[0].failure]


def test_placed_networks_equal_the_plain_ones(cases: dict[int, list[Result]], measured: Callable[[str], None]) -> None:
    worst: dict[str, tuple[float, str]] = {}
    blurred = []
    for _, here in placed(cases):
        one = next(one for one in here if len(one.errors) > 1)
        for group, error in one.errors.items():
            noise = one.noise.get(group, 0.0)
            assert error <= max(BOUND, 10 * noise), f"{group} differ by {error:.1e}, noise {noise:.1e}\n{one.text}"
            beside = f"{noise:.1e}" if one.noise else "not measured for so little"
            worst[group] = max(worst.get(group, (0.0, "")), (error, f"{beside} (seed {one.seed})"))
        blurred += [one.seed] if 10 * max(one.noise.values(), default=0.0) > TELLING else []
    for group, (error, beside) in worst.items():
        measured(f"random networks, worst {group:16} error {error:.1e}   one-ulp noise of the plain model {beside}")
    assert len(blurred) <= len(cases) / 50, f"networks too ill-conditioned to tell: {blurred}"


def test_they_send_what_the_plan_says(cases: dict[int, list[Result]]) -> None:
    """Re-ordering loads devices unequally, and the plan counts the busiest; all else is equal."""
    for plan, here in placed(cases):
        case = draw(here[0].seed)
        images, layers = case.shape[0] * case.lane_devices // case.world, plan.layers.values()
        forward = images * sum(layer.sent_forward_bytes for layer in layers)
        backward = images * sum(layer.sent_backward_bytes for layer in layers)
        announced = forward, backward + sum(layer.sent_step_bytes for layer in layers)
        reorders = any(layer.order for layer in layers)
        for one in here:
            assert one.calls == here[0].calls, f"processes differ in their collectives\n{one.text}"
            for sent, said, calls in zip(one.sent, announced, one.calls, strict=True):
                rounded = calls.total()  # three devices: each collective of Traffic rounds down to bytes
                assert sent <= said + 1e-6, f"sent {sent}, the plan says {said}\n{one.text}\n{plan}"
                assert reorders or sent >= said - rounded, f"sent {sent}, the plan says {said}\n{one.text}\n{plan}"


# ---- Those that are refused


def numbers_that_work(net: RandomNetwork) -> list[int]:
    """The numbers of lane devices over which a network can be placed; one at least, but for two reasons."""
    try:
        return lane_devices_of(net, numbers(net.case)[0].requires_grad_())
    except PlanError as error:
        if re.search(r"InstanceNorm\dd cannot|the model's output is laned", str(error)):
            return []
        raise


def test_refusals_hold(cases: dict[int, list[Result]], measured: Callable[[str], None]) -> None:
    counts: Counter[str] = Counter()
    for here in cases.values():
        refused = here[0].refused
        if not refused:
            continue
        net = network(here[0].seed)
        assert all(one.refused == refused for one in here)
        holds = {
            reason: check(net, found)
            for reason, (words, check) in REASONS.items()
            if (found := re.search(words, refused))
        }
        assert list(holds.values()) == [True], f"{refused}\n{net}"
        counts.update(holds)
        named = re.search(r"use ([\d, or]+) lane devices?$", refused)
        works = [int(number) for number in re.findall(r"\d+", named[1])] if named else []
        assert works == numbers_that_work(net), f"{refused}\n{net}"
    for reason, count in counts.most_common():
        measured(f"random networks refused for {reason}: {count}")
    if COMMITTED:
        assert counts.total() >= 30
        assert len(counts) >= len(REASONS) - 1


# ---- The test is not empty


@pytest.mark.skipif(not COMMITTED, reason="seeds of one's own")
def test_coverage(cases: dict[int, list[Result]], measured: Callable[[str], None]) -> None:
    plans = [plan for plan, _ in placed(cases) if plan.lane_devices > 1]
    ways: Counter[str] = Counter(way for plan in plans for way in {layer.way for layer in plan.layers.values()})
    kinds: Counter[str] = Counter(kind for plan in plans for kind in {layer.type for layer in plan.layers.values()})
    features: Counter[str] = Counter()
    for plan in plans:
        layers = plan.layers.values()
        features["a gathering shared"] += any(layer.shares for layer in layers)
        features["an order paid"] += any(layer.order and layer.way not in ("passes on", "gather") for layer in layers)
        features["an order for nothing"] += any(layer.order and layer.way == "gather" for layer in layers)
        features["an order paid by a dropout"] += any(layer.order for layer in layers if "Dropout" in layer.type)
        features["several parts and a shuffle"] += any("+" in layer.order and "," in layer.order for layer in layers)
    for title, counts in (("ways", ways), ("layers", kinds), ("crossings", features)):
        measured(f"random networks placed with {title}: {', '.join(f'{n} {c}' for n, c in counts.most_common())}")
    measured(f"random networks: {len(plans)} placed on several lane devices, {len(placed(cases))} in all")
    assert len(placed(cases)) >= 200
    assert not {way for way in WAYS if ways[way] < 3}
    assert not {kind.__name__ for kind in LAYERS if kinds[kind.__name__] < 2}
    assert not {name for name, count in features.items() if count < 3}
