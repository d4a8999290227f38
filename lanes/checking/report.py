"""What a check found, in numbers and in words.

Shapes: R replicas, D lane devices.
"""

from dataclasses import dataclass

from torch import Tensor

from lanes.tables import table

BOUND = 1e-9
NOISE_FACTOR = 10
BOUND_AT_MOST = 1e-3  # where the plain model's own noise asks for more, nothing can be told


@dataclass(frozen=True)
class Finding:
    """What was found of one tensor.

    Attributes:
        name: of the parameter, buffer or layer.
        errors: relative error of each process's own part, [R, D].
        noise: the plain model's own, one ulp of its images apart.
    """

    name: str
    errors: Tensor
    noise: float

    def wrong(self, bound: float) -> list[tuple[int, int]]:
        """(replica, lane device) of those whose error exceeds a bound."""
        return [(int(replica), int(lane)) for replica, lane in (self.errors > bound).nonzero()]


@dataclass(frozen=True)
class CheckReport:
    """The errors of a placed model against the plain one, as all processes know them.

    Attributes:
        groups: group -> its tensors, in the order in which a fault would spread.
        replicas: R.
        lane_devices: D.
    """

    groups: dict[str, list[Finding]]
    replicas: int
    lane_devices: int

    @property
    def passed(self) -> bool:
        """Whether nothing exceeds its bound."""
        return self.fault is None

    def noise(self, group: str) -> float:
        """The plain model's own noise in a group."""
        return max(finding.noise for finding in self.groups[group])

    def bound(self, group: str) -> float:
        """What an error in a group may be."""
        return max(BOUND, NOISE_FACTOR * self.noise(group))

    def error(self, group: str) -> float:
        """The largest error in a group."""
        return max(float(finding.errors.max()) for finding in self.groups[group])

    @property
    def fault(self) -> str | None:
        """Where it went wrong first, in words; None if it did not."""
        for group, findings in self.groups.items():
            if not self.bound(group) <= BOUND_AT_MOST:
                worst = max(findings, key=lambda finding: finding.noise)
                return (
                    f"{worst.name}: {group} of the plain model itself differ by {worst.noise:.1e} where its images "
                    "differ by one ulp; it cannot be told whether the placed model equals it"
                )
            before = None
            for finding in findings:
                if wrong := finding.wrong(self.bound(group)):
                    reached = f", between {before} and {finding.name} on the way back" if before else ""
                    reached = reached if group == "output gradients" else ""
                    error = float(finding.errors.max())
                    return f"{finding.name}: {group} differ by {error:.1e} on {self._devices(wrong)}{reached}"
                before = finding.name
        return None

    def __str__(self) -> str:
        rows = [("compared", "largest error", "one-ulp noise", "allowed", "where the error is largest")]
        for group, findings in self.groups.items():
            worst = max(findings, key=lambda finding: float(finding.errors.max()))
            place = divmod(int(worst.errors.argmax()), self.lane_devices)
            where = f"{worst.name}, {self._devices([place])}" if self.error(group) else "-"
            error, noise, bound = (f"{n:.1e}" for n in (self.error(group), self.noise(group), self.bound(group)))
            rows.append((f"{group} ({len(findings)})", error, noise, bound, where))
        verdict = "PASSED: the placed model equals the plain one" if self.passed else f"FAILED: {self.fault}"
        return f"{table(rows, '<>>><')}\n{verdict}"

    def _devices(self, found: list[tuple[int, int]]) -> str:
        names = [f"lane device {d}" + (f" of replica {r}" if self.replicas > 1 else "") for r, d in found]
        return " and ".join(names) if len(names) <= 4 else f"{len(names)} devices, the first {names[0]}"
