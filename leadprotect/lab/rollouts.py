"""A rollout over many servers, simulated: how long it takes, and whom a bad release reaches, with a canary and without.

Nothing is measured here. A number drawn belongs to a seed, so the same seed tells the same story; what a step takes
on a server is reckoned from its leads and from rates that were measured.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, replace
from math import ceil
from statistics import median
from typing import TYPE_CHECKING

from leadprotect.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RELEASES = {"good": 0.0, "bad on three in ten": 0.3, "bad on all": 1.0}
"""A kind of release -> the share of servers whose hosts have what it does not bear."""

_SPREAD = 0.25
"""How far machines differ: the logarithm's deviation of what a step takes."""

_SIZES = 1.0
"""How far territories differ in size, as the logarithm's deviation: two in three within 2.7 times the middle one."""


@dataclass(frozen=True)
class Rollout:
    """What is rolled out, and how; times in seconds.

    `workers` servers are under way at once. `canary` of them, drawn by lot, come first, and the others after these
    have stood for `bake`; 0: all at once. A server that does not bear the release shows that `notice` after contract:
    then no other one begins contract, and it and all who have it go back. With the chance `lost` a server fails
    somewhere on its way, for `repair` on average, and then does what is left.
    """

    servers: int = 100
    leads: int = 1_000_000_000
    workers: int = 8
    canary: int = 0
    bake: float = 660.0
    notice: float = 600.0
    lost: float = 0.05
    repair: float = 1800.0
    seconds_per_million: float = 75.0
    undo: float = 30.0
    share_bad: float = 0.0


@dataclass(frozen=True)
class SimulatedRollout:
    """One run: `finished` in seconds from its begin, when every server has the release, or none has it any more.

    `harmed` servers had contract of a release that they do not bear, `leads` stand on these; `lead_hours` is for
    how long. `reached` servers had contract at all.
    """

    finished: float
    went_back: bool
    reached: int
    harmed: int
    leads: int
    lead_hours: float


@dataclass(frozen=True)
class Summary:
    """Many runs of one kind: medians, and what nineteen of twenty stay below; `most_harmed` is the worst of them."""

    release: str
    canary: int
    runs: int
    went_back: int
    finished_s: float
    finished_p95_s: float
    harmed: float
    harmed_p95: float
    most_harmed: int
    leads: float
    leads_p95: float
    lead_hours: float


@dataclass(frozen=True)
class _Server:
    leads: int
    takes: float
    bad: bool


def simulate(plan: Rollout, *, seed: str) -> SimulatedRollout:
    """One rollout. Servers, failures and the canary are those of the seed, whatever the canary is asked to do.

    Raises `InvalidRequest` for what no rollout can be.
    """
    _check(plan)
    servers = _drawn(plan, random.Random(f"{seed} servers"))  # noqa: S311 - a simulation
    order = random.Random(f"{seed} order").sample(range(plan.servers), plan.servers)  # noqa: S311 - a simulation
    first, rest = order[: plan.canary], order[plan.canary :]
    done: dict[int, float] = {}
    _run(plan, servers, first, 0.0, done, None)
    begin = max(done.values(), default=0.0) + plan.bake if first else 0.0
    noticed = _noticed(plan, servers, done)
    if noticed is None or noticed > begin:
        _run(plan, servers, rest, begin, done, noticed)
        noticed = _noticed(plan, servers, done)
    return _outcome(plan, servers, done, noticed)


def worlds(
    plan: Rollout, *, canaries: Sequence[int], seed: int, runs: int
) -> dict[tuple[str, int], list[SimulatedRollout]]:
    """Each kind of release with each number of canaries, over the same `runs` worlds."""
    return {
        (name, canary): run_all(replace(plan, share_bad=share, canary=canary), seed=seed, runs=runs)
        for name, share in RELEASES.items()
        for canary in canaries
    }


def summaries(found: Mapping[tuple[str, int], list[SimulatedRollout]]) -> list[Summary]:
    """What to say of each."""
    return [_summary(name, canary, outcomes) for (name, canary), outcomes in found.items()]


def run_all(plan: Rollout, *, seed: int, runs: int) -> list[SimulatedRollout]:
    """The outcomes of `runs` worlds."""
    return [simulate(plan, seed=f"{seed} {run}") for run in range(runs)]


def _check(plan: Rollout) -> None:
    if plan.servers < 1 or plan.workers < 1 or not 0 <= plan.canary <= plan.servers:
        raise InvalidRequest("a rollout has servers and workers, and no more canaries than servers; give one of each")
    if not 0 <= plan.lost < 1 or min(plan.bake, plan.notice, plan.repair, plan.undo, plan.leads) < 0:
        raise InvalidRequest("lost is a chance below 1, and no time and no number of leads is negative; give such")


def _drawn(plan: Rollout, lot: random.Random) -> list[_Server]:
    weights = [lot.lognormvariate(0, _SIZES) for _ in range(plan.servers)]
    whole = sum(weights)
    found = []
    for weight in weights:
        leads = round(plan.leads * weight / whole)
        takes = leads / 1e6 * plan.seconds_per_million * lot.lognormvariate(0, _SPREAD)
        fails, repair, trait = lot.random() < plan.lost, lot.expovariate(1.0), lot.random()
        found.append(_Server(leads, takes + (repair * plan.repair if fails else 0.0), trait < plan.share_bad))
    return found


def _run(
    plan: Rollout, servers: list[_Server], order: list[int], begin: float, done: dict[int, float], stop: float | None
) -> None:
    """Add to `done` when each server has contract; none has it after `stop`, or after one of these shows a fault."""
    free = [begin] * plan.workers
    for number in order:
        ready = heapq.heappop(free)
        ends = ready + servers[number].takes
        heapq.heappush(free, ends)
        if servers[number].bad:
            stop = min(ends + plan.notice, stop if stop is not None else ends + plan.notice)
        done[number] = ends
    for number in order:
        if stop is not None and done[number] > stop:
            del done[number]


def _noticed(plan: Rollout, servers: list[_Server], done: dict[int, float]) -> float | None:
    """When the first fault shows."""
    return min((ends + plan.notice for number, ends in done.items() if servers[number].bad), default=None)


def _outcome(plan: Rollout, servers: list[_Server], done: dict[int, float], noticed: float | None) -> SimulatedRollout:
    harmed = {number: ends for number, ends in done.items() if servers[number].bad}
    if noticed is None:
        return SimulatedRollout(
            max(done.values()), went_back=False, reached=len(done), harmed=0, leads=0, lead_hours=0.0
        )
    # each goes back when the first fault shows: undoing contract is metadata, and nobody waits for another
    over = noticed + plan.undo
    hours = sum((over - ends) * servers[number].leads for number, ends in harmed.items()) / 3600
    behind = sum(servers[number].leads for number in harmed)
    return SimulatedRollout(over, went_back=True, reached=len(done), harmed=len(harmed), leads=behind, lead_hours=hours)


def _summary(release: str, canary: int, found: list[SimulatedRollout]) -> Summary:
    def p95(values: list[float]) -> float:
        return sorted(values)[ceil(0.95 * len(values)) - 1]

    finished = [one.finished for one in found]
    harmed: list[float] = [one.harmed for one in found]
    leads: list[float] = [one.leads for one in found]
    return Summary(
        release,
        canary,
        len(found),
        sum(one.went_back for one in found),
        median(finished),
        p95(finished),
        median(harmed),
        p95(harmed),
        max(one.harmed for one in found),
        median(leads),
        p95(leads),
        median(one.lead_hours for one in found),
    )
