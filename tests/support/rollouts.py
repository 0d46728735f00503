"""Rollouts that are played, not run: a guard, its gates, a migration and a database, all from one seed.

The world is known whole: whether an alert fires, when Prometheus shows nothing, when a guard is killed.
So what the guard may do is judged by the world, not by what the guard believes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from leadprotect.gates import machine
from leadprotect.gates.machine import (
    DONE,
    FAILED,
    PAUSED,
    REFUSED,
    ROLLED_BACK,
    UNKNOWN,
    Beginning,
    Do,
    Evaluated,
    Interrupted,
    Last,
    OnRollback,
    Patience,
    Phase,
    RolledBack,
    State,
    StepEnded,
    StepResult,
)
from leadprotect.gates.verdict import Answer, Evaluation, Verdict

Advance = Callable[[State, machine.Event, Patience], machine.Answer]

EVERY_S = 5.0
LONGEST_S = 6 * 3600.0
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
COMMAND = "alembic upgrade head"


@dataclass(frozen=True)
class Trouble:
    """Something that is so from `begin` to `end`: an alert that fires, missing data, a counter that began anew."""

    kind: str
    begin: float
    end: float


@dataclass
class World:
    """What is true: the troubles, the revision as a number, whether the backfill is paused, and the row of the run."""

    seed: int
    patience: Patience
    troubles: list[Trouble]
    steps: int
    deaths: list[float]
    interrupts: list[float]
    random: random.Random
    revision: int = 0
    paused: bool = False
    last: Last | None = None
    now: float = 0.0
    trace: list[tuple[float, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    codes: list[int | None] = field(default_factory=list)

    def told(self, what: str) -> None:
        self.trace.append((round(self.now, 3), what))

    def is_so(self, *kinds: str) -> bool:
        return any(one.kind in kinds and one.begin <= self.now < one.end for one in self.troubles)


def world(seed: int) -> World:
    """A schedule of everything that may happen, by its seed alone."""
    chance = random.Random(seed)  # noqa: S311 - it must be played again, not be kept secret
    troubles = []
    for kind, often in (("alert", 0.35), ("missing", 0.6), ("restart", 0.5), ("reset", 0.5), ("deadlock", 0.4)):
        while chance.random() < often:
            begin = chance.uniform(-60, 1500)
            longest = {"restart": 30, "reset": 30, "deadlock": 90, "alert": 600, "missing": 1200}[kind]
            troubles.append(Trouble(kind, begin, begin + chance.uniform(1, longest)))
    patience = Patience(
        resume_after=chance.randint(1, 4),
        bake=chance.choice([0.0, 60.0, 660.0]),
        blind=chance.choice([30.0, 600.0]),
        longest_pause=chance.choice([120.0, 3600.0]),
        flaps=chance.randint(0, 6),
        attempts=chance.randint(1, 3),
        on_rollback=chance.choice([OnRollback.DOWNGRADE] * 3 + [OnRollback.PAUSE, OnRollback.CANCEL]),
    )
    return World(
        seed, patience, troubles, chance.randint(1, 16),
        deaths=sorted(chance.uniform(0, 900) for _ in range(chance.choice([0, 0, 0, 1, 1, 2, 3]))),
        interrupts=[chance.uniform(0, 900)] if chance.random() < 0.15 else [], random=chance,
    )  # fmt: skip


def evaluation(w: World) -> Evaluation:
    """What the gates would answer now, each for itself."""
    silent = w.is_so("missing", "restart")
    data = Verdict.UNKNOWN if silent else Verdict.PROCEED
    # an alert that fired before Prometheus was restarted is not seen while it is away
    fires = Verdict.ROLLBACK if w.is_so("alert") and not w.is_so("restart") else data
    reset = Verdict.UNKNOWN if w.is_so("reset") else data
    locked = Verdict.PAUSE if w.is_so("deadlock") else Verdict.PROCEED
    named = {"p95": fires, "errors": reset, "traffic": data, "deadlocks": locked}
    answers = tuple(Answer(name, name, None, None, verdict, f"{name} says so") for name, verdict in named.items())
    return Evaluation(BEGAN + timedelta(seconds=max(w.now, 0)), answers)


@dataclass
class Guard:
    """One process: its state, what it was told, and what it has begun."""

    w: World
    advance: Advance
    begun: Beginning
    state: State = field(default_factory=State)
    ends_at: float | None = None
    stopping_since: float | None = None
    rolls_back_at: float | None = None
    heard: list[Verdict] = field(default_factory=list)
    really_fired: bool = False
    good_since: float | None = None

    def happens(self, event: machine.Event) -> None:
        before = self.state
        self.state, todo = self.advance(self.state, event, self.w.patience)
        self.w.told(f"{event} -> {self.state.phase} {[*map(str, todo)]}")
        for one in todo:
            self._do(one, before)
        if self.state.phase is not Phase.PREFLIGHT:
            self._remember()

    def evaluate(self) -> None:
        found = evaluation(self.w)
        self.heard.append(found.verdict)
        self.really_fired = self.really_fired or self.w.is_so("alert")
        if found.verdict is not Verdict.PROCEED:
            self.good_since = None
        elif self.good_since is None:
            self.good_since = self.w.now
        self.happens(Evaluated(self.w.now, found.verdict, "; ".join(found.reasons)))

    def blame(self, what: str) -> None:
        self.w.wrong.append(f"seed {self.w.seed} at {self.w.now:.1f} s: {what}")

    def _do(self, what: Do, before: State) -> None:
        w = self.w
        if what is Do.START:
            self._judge_start(before)
            self.ends_at = w.now + w.random.expovariate(1 / 20)
        elif what is Do.HOLD:
            w.paused = True
        elif what is Do.RESUME:
            if self._good() < w.patience.resume_after:
                self.blame(f"resumed after {self._good()} good evaluations")
            w.paused = False
        elif what is Do.STOP and self.ends_at is not None:
            self.ends_at = min(self.ends_at, w.now + w.random.uniform(0.1, 2))
        elif what is Do.ROLL_BACK:
            self._judge_rollback()
            self.rolls_back_at = w.now + w.random.uniform(0.5, 5)
            if w.random.random() < 0.15:
                w.deaths = sorted([*w.deaths, w.now + 0.3])

    def _judge_start(self, before: State) -> None:
        if self.heard[-1] is not Verdict.PROCEED:
            self.blame(f"a step begins while the gates say {self.heard[-1]}")
        if self.ends_at is not None:
            self.blame("two steps at once")
        if self.w.paused:
            self.blame("a step begins while the backfill is paused")
        if before.phase is Phase.HELD and self._good() < self.w.patience.resume_after:
            self.blame("it went on too early")

    def _judge_rollback(self) -> None:
        if not self.really_fired:
            self.blame("false rollback: no alert has fired while it looked")
        if self.ends_at is not None:
            self.blame("rolled back while a step runs")
        if self.w.patience.on_rollback is not OnRollback.DOWNGRADE:
            self.blame("rolled back although it was told not to")

    def _good(self) -> int:
        """How many good evaluations came last, without a break."""
        for number, verdict in enumerate(reversed(self.heard)):
            if verdict is not Verdict.PROCEED:
                return number
        return len(self.heard)

    def _remember(self) -> None:
        """The row of the run, as the next guard will find it."""
        self.w.last = Last("guard", COMMAND, self.begun.began, name(self.w.revision), self.state.told)

    # --- what its world does to it

    def step_ends(self) -> None:
        self.ends_at = None
        w = self.w
        stopped = self.state.phase is Phase.STOPPING
        if (stopped and w.random.random() < 0.8) or w.random.random() < 0.01:
            self.happens(StepEnded(w.now, StepResult.FAILED, "cancelled"))
            return
        w.revision = min(w.revision + 1, w.steps)
        last = w.revision >= w.steps
        self.happens(StepEnded(w.now, StepResult.LAST if last else StepResult.APPLIED))

    def rollback_ends(self) -> None:
        self.rolls_back_at = None
        w = self.w
        if w.random.random() < 0.3:  # the target died, a host's view depends on it
            self.happens(RolledBack(w.now, verified=False, why="no connection", final=w.random.random() < 0.3))
            return
        w.revision = number(self.begun.began)
        self.happens(RolledBack(w.now, verified=True))


def name(revision: int) -> str | None:
    return f"r{revision:02}" if revision else None


def number(revision: str | None) -> int:
    return int(revision[1:]) if revision else 0


def begin(w: World, advance: Advance) -> Guard | None:
    """A new guard; None where the last one left something that a person finishes first."""
    applied = [f"r{one:02}" for one in range(1, w.revision + 1)]
    found = machine.beginning(w.last, COMMAND, applied, name(w.revision))
    return None if found.refused else Guard(w, advance, found, State(left_held=w.paused))


def play(w: World, advance: Advance = machine.advance) -> World:
    """Play it to its end: guards follow each other until one ends by itself, or one may not begin."""
    guard = begin(w, advance)
    while guard is not None:
        killed = _play(guard)
        if not killed:
            w.codes.append(guard.state.code)
            _judge(guard)
            return w
        w.told("killed")
        w.now += w.random.uniform(1, 120)
        if guard.ends_at is not None and w.random.random() < 0.5:  # its command went on to the end of the step
            w.revision = min(w.revision + 1, w.steps)
        _judge_killed(guard)
        guard = begin(w, advance)
    w.codes.append(None)
    return w


def _play(guard: Guard) -> bool:
    """Whether it was killed on its way."""
    w, next_look = guard.w, guard.w.now
    while guard.state.phase is not Phase.ENDED:
        moments = [(next_look, "look")]
        moments += [(guard.ends_at, "step")] if guard.ends_at is not None else []
        moments += [(guard.rolls_back_at, "back")] if guard.rolls_back_at is not None else []
        moments += [(at, "killed") for at in w.deaths if at >= w.now][:1]
        moments += [(at, "interrupt") for at in w.interrupts if at >= w.now][:1]
        w.now, what = min(moments)
        if w.now > LONGEST_S:
            guard.blame("it never ends")
            return False
        if what == "killed":
            w.deaths.remove(w.now)
            return True
        if what == "look":
            guard.evaluate()
            next_look = w.now + EVERY_S
        elif what == "step":
            guard.step_ends()
        elif what == "back":
            guard.rollback_ends()
        else:
            w.interrupts.remove(w.now)
            guard.happens(Interrupted(w.now, "SIGTERM"))
    return False


def _judge(guard: Guard) -> None:
    """What must hold of every end."""
    w, code = guard.w, guard.state.code
    began = guard.state.asked_at is not None and Verdict.PROCEED in guard.heard
    if guard.ends_at is not None:
        guard.blame("it ended while a step runs")
    if code == DONE:
        if w.revision != w.steps or w.paused:
            guard.blame("done, but not everything is")
        if guard.good_since is None or w.now - guard.good_since < w.patience.bake - EVERY_S:
            guard.blame("done before it was watched long enough")
    elif code == ROLLED_BACK:
        if w.revision != number(guard.begun.began):
            guard.blame("rolled back to somewhere else")
    elif code not in (FAILED, PAUSED, REFUSED, UNKNOWN):
        guard.blame(f"exit code {code}")
    if began and code in (PAUSED, ROLLED_BACK, REFUSED) and not w.paused and guard.heard[0] is Verdict.PROCEED:
        guard.blame(f"ended with {code} and left the backfill running")
    alarmed = Verdict.ROLLBACK in guard.heard[1:] and guard.heard[0] is Verdict.PROCEED
    if alarmed and w.patience.on_rollback is OnRollback.DOWNGRADE and code not in (ROLLED_BACK, REFUSED):
        guard.blame(f"a gate said ROLLBACK, and it ended with {code}")


def _judge_killed(guard: Guard) -> None:
    if guard.state.phase is Phase.HELD and not guard.w.paused:
        guard.blame("killed while held, and the backfill runs")
