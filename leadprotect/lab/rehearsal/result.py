"""What a rehearsal found: every transaction of the traffic, every step, and the verdict."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from leadprotect.lab.rehearsal.steps import BUILDS
from leadprotect.lab.traffic import quantile

if TYPE_CHECKING:
    from collections.abc import Iterable

    from leadprotect.lab.rehearsal.steps import Step
    from leadprotect.lab.rehearsal.watching import Sample
    from leadprotect.lab.traffic import Done

MAX_STALL_S = 0.25
VERSIONS = ("old", "new")


@dataclass(frozen=True)
class Kind:
    """All transactions of one kind; latencies in seconds."""

    version: str
    kind: str
    count: int
    p50: float
    p99: float
    longest: float
    outcomes: dict[str, int]


@dataclass(frozen=True)
class Figures:
    """What live traffic felt while the migration ran, in seconds and counts."""

    longest_stall: float
    errors: int
    metadata: float
    downgrade: float
    gate: float
    transactions: int


@dataclass
class Rehearsal:
    """Everything a report needs; times in epoch seconds.

    `budget` is the longest stall allowed and `allowed` the errors; `writer` and `reader` tell how long
    the transactions in the way lasted. All in seconds.
    """

    database: str
    server: str
    leads: int
    activities: int
    budget: float
    allowed: int
    writer: float
    reader: float
    began: float = 0.0
    ended: float = 0.0
    steps: list[Step] = field(default_factory=list)
    done: list[Done] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    looks: int = 0
    long: list[tuple[str, float, float]] = field(default_factory=list)
    gate: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def away(self) -> tuple[float, float]:
        """From the downgrade on until protection is back, a service is told that it is unavailable."""
        down = [step for step in self.steps if "downgrade" in step.command]
        back = [step for step in self.steps if down and step.began > down[0].began and "upgrade head" in step.command]
        return (down[0].began, back[0].ended if back else self.ended) if down else (self.ended, self.ended)

    def errors(self) -> list[Done]:
        """Transactions that failed, or that were told of a missing protection where it was not missing."""
        began, ended = self.away()
        return [
            one
            for one in self.done
            if one.outcome == "error" or (one.outcome == "unavailable" and not began <= one.at <= ended)
        ]

    def stalls(self, number: int) -> list[Done]:
        """The slowest transactions, the slowest first."""
        return sorted(self.done, key=lambda one: -one.seconds)[:number]

    def kinds(self) -> list[Kind]:
        """Latencies and outcomes by version and kind."""
        groups: dict[tuple[str, str], list[Done]] = {}
        for one in self.done:
            groups.setdefault((one.version, one.kind), []).append(one)
        return [_kind(version, kind, found) for (version, kind), found in sorted(groups.items(), reverse=True)]

    def figures(self) -> Figures:
        """The figures in one place."""
        ups = [r for step in self.steps if "upgrade" in step.command for r in step.revisions if r.name not in BUILDS]
        down = [r for step in self.steps if "downgrade" in step.command for r in step.revisions]
        first = {r.name: r.seconds for r in reversed(ups)}  # of the first time up
        return Figures(
            longest_stall=max((one.seconds for one in self.done), default=0.0),
            errors=len(self.errors()),
            metadata=sum(first.values()),
            downgrade=sum(r.seconds for r in down),
            gate=max(self.gate, default=0.0),
            transactions=len(self.done),
        )

    def verdict(self) -> list[str]:
        """Why it did not pass; empty when it did."""
        f = self.figures()
        found = list(self.failures)
        if f.longest_stall > self.budget:
            found.append(
                f"the longest stall was {1000 * f.longest_stall:.0f} ms, the budget is {1000 * self.budget:.0f} ms"
            )
        if f.errors > self.allowed:
            found.append(f"{f.errors} transactions failed, {self.allowed} may")
        for step in self.steps:
            found += [
                f"no transaction of the {version} version ran during {step.title}: nothing is proven"
                for version in self.versions_at(step)
                if not any(one.version == version and step.began <= one.at <= step.ended for one in self.done)
            ]
        return found

    def versions_at(self, step: Step) -> Iterable[str]:
        """Which versions run during a step: the new one is deployed after the first."""
        return VERSIONS if step is not self.steps[0] else VERSIONS[:1]


def _kind(version: str, kind: str, found: list[Done]) -> Kind:
    ordered = sorted(one.seconds for one in found)
    outcomes = Counter(one.outcome for one in found)
    return Kind(version, kind, len(found), quantile(ordered, 0.5), quantile(ordered, 0.99), ordered[-1], dict(outcomes))
