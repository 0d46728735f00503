"""The guard as a pure state machine: what happened goes in, what is to be done comes out.

No clock, no connection and no process here: times come with the events, in seconds of one monotonic
clock. So the same run can be played ten thousand times, and again from its seed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from leadprotect.gates.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Collection

DONE, FAILED, PAUSED, ROLLED_BACK, REFUSED, UNKNOWN = 0, 1, 10, 20, 21, 30
"""How a guard ends: its exit codes."""

ENDS = {
    DONE: "done",
    FAILED: "failed",
    PAUSED: "paused",
    ROLLED_BACK: "rolled_back",
    REFUSED: "refused",
    UNKNOWN: "unknown",
}
"""Exit code -> how its run ended, in a word."""


class Phase(StrEnum):
    """What a guard is doing."""

    PREFLIGHT = "preflight"
    RUNNING = "running"
    HELD = "held"
    BAKING = "baking"
    STOPPING = "stopping"
    ROLLING_BACK = "rolling_back"
    ENDED = "ended"


class OnRollback(StrEnum):
    """What is done when a gate says ROLLBACK."""

    DOWNGRADE = "downgrade"
    PAUSE = "pause"
    CANCEL = "cancel"


class Do(StrEnum):
    """What the machine asks for."""

    START = "start the next step"
    HOLD = "pause the backfill"
    RESUME = "resume the backfill"
    FINISH = "let the running step come to its end"
    STOP = "stop the running step"
    SWEEP = "sweep invalid indexes"
    ROLL_BACK = "roll back"


@dataclass(frozen=True)
class Patience:
    """How patient a guard is; times in seconds.

    It goes on after `resume_after` good evaluations in a row. `bake` is watched after the last step without a
    pause. `blind` is how long it may see nothing in the whole run, `longest_pause` how long one pause may last,
    `flaps` how many there may be. A rollback is tried `attempts` times.
    """

    resume_after: int = 3
    bake: float = 660.0
    blind: float = 600.0
    longest_pause: float = 3600.0
    flaps: int = 5
    attempts: int = 5
    on_rollback: OnRollback = OnRollback.DOWNGRADE


@dataclass(frozen=True)
class Evaluated:
    """The gates were asked; `at` in seconds."""

    at: float
    verdict: Verdict
    why: str = ""


class StepResult(StrEnum):
    """How a step ended: one of several, the last one, without anything to do, or not as it should."""

    APPLIED = "applied"
    LAST = "last"
    NOTHING = "nothing"
    FAILED = "failed"


@dataclass(frozen=True)
class StepEnded:
    """The running step ended by itself, or because it was stopped."""

    at: float
    step: StepResult
    why: str = ""


@dataclass(frozen=True)
class Interrupted:
    """Ctrl-C, SIGTERM, or another reason of its own to leave."""

    at: float
    why: str


@dataclass(frozen=True)
class Unstoppable:
    """The running step does not end, although it was stopped."""

    at: float
    why: str


@dataclass(frozen=True)
class RolledBack:
    """A rollback ended; `verified` is False when it stopped on the way or found something wrong.

    `final` is True where another attempt could not help.
    """

    at: float
    verified: bool
    why: str = ""
    final: bool = False


Event = Evaluated | StepEnded | Interrupted | Unstoppable | RolledBack


@dataclass(frozen=True)
class State:
    """Where a guard stands; `then` is the exit code to end with once it is stopped (None: roll back).

    `left_held`: a guard before this one left the backfill paused, so it must first be good for a while.
    `changed`: this run, or one that it goes on with, did something that is to be watched.
    """

    phase: Phase = Phase.PREFLIGHT
    verdict: Verdict = Verdict.UNKNOWN
    why: str = ""
    working: bool = False
    all_applied: bool = False
    good: int = 0
    flaps: int = 0
    blind: float = 0.0
    asked_at: float | None = None
    since: float = 0.0
    attempts: int = 0
    then: int | None = None
    code: int | None = None
    left_held: bool = False
    changed: bool = False

    @property
    def told(self) -> str:
        """What it does, or how it ended, in a word."""
        return str(self.phase) if self.code is None else ENDS[self.code]


Answer = tuple[State, tuple[Do, ...]]


def advance(state: State, event: Event, patience: Patience) -> Answer:
    """What `event` makes of `state`, and what is to be done for it, in this order."""
    if state.phase is Phase.ENDED:
        return state, ()
    match event:
        case Evaluated():
            return _evaluated(_counted(state, event), event, patience)
        case StepEnded():
            return _step_ended(state, event)
        case Interrupted():
            return _interrupted(state, event)
        case Unstoppable():
            return _unstoppable(state, event)
        case RolledBack():
            return _rolled_back(state, event, patience)


def _counted(state: State, event: Evaluated) -> State:
    """The time without an answer counts in every phase, from one evaluation to the next."""
    blind = state.blind
    if state.verdict is Verdict.UNKNOWN and state.asked_at is not None:
        blind += event.at - state.asked_at
    good = state.good + 1 if event.verdict is Verdict.PROCEED else 0
    return replace(state, verdict=event.verdict, asked_at=event.at, blind=blind, good=good)


def _evaluated(state: State, event: Evaluated, patience: Patience) -> Answer:
    match state.phase:
        case Phase.PREFLIGHT:
            return _preflight(state, event, patience)
        case Phase.STOPPING | Phase.ROLLING_BACK:
            return _while_stopping(state, event, patience)
    if event.verdict is Verdict.ROLLBACK:
        return _alarmed(state, event, patience)
    if event.verdict is not Verdict.PROCEED:
        return _hold(state, event, patience)
    if state.phase is Phase.HELD:
        return _go_on(state, event, patience)
    if state.phase is Phase.BAKING and event.at - state.since >= patience.bake:
        return _end(state, DONE, "every step is done, and the gates stayed good while it was watched")
    return state, ()


def _preflight(state: State, event: Evaluated, patience: Patience) -> Answer:
    if event.verdict is not Verdict.PROCEED:
        return _end(state, UNKNOWN, f"refused at the start, {event.verdict}: {event.why}")
    if state.left_held:
        return _go_on(
            replace(state, phase=Phase.HELD, since=event.at, why="paused by the guard before"), event, patience
        )
    return replace(state, phase=Phase.RUNNING, why="", working=True), (Do.START,)


def _while_stopping(state: State, event: Evaluated, patience: Patience) -> Answer:
    """A rollback that is under way is not taken back; one that is asked for while stopping is done."""
    leaving = state.phase is Phase.STOPPING and state.then is not None
    if leaving and event.verdict is Verdict.ROLLBACK and patience.on_rollback is OnRollback.DOWNGRADE:
        return replace(state, then=None, why=event.why), ()
    return state, ()


def _alarmed(state: State, event: Evaluated, patience: Patience) -> Answer:
    match patience.on_rollback:
        case OnRollback.DOWNGRADE:
            return _stop(state, None, event.why)
        case OnRollback.CANCEL:
            return _stop(state, PAUSED, f"not rolled back, as asked (--on-rollback cancel): {event.why}")
    why = f"not rolled back, as asked (--on-rollback pause): {event.why}"
    if not state.working:
        return _end(state, PAUSED, why, Do.HOLD)
    return replace(state, phase=Phase.STOPPING, then=PAUSED, why=why), (Do.HOLD, Do.FINISH)


def _hold(state: State, event: Evaluated, patience: Patience) -> Answer:
    if state.phase is not Phase.HELD:
        state = replace(state, phase=Phase.HELD, since=event.at, flaps=state.flaps + 1)
    state = replace(state, why=event.why)
    if event.verdict is Verdict.UNKNOWN and state.blind > patience.blind:
        return _stop(state, UNKNOWN, f"without an answer for {state.blind:.0f} s in all: {event.why}")
    if state.flaps > patience.flaps:
        return _stop(state, PAUSED, f"paused {state.flaps} times, a human is needed: {event.why}")
    if event.at - state.since > patience.longest_pause:
        return _stop(state, PAUSED, f"paused for {event.at - state.since:.0f} s: {event.why}")
    return state, (Do.HOLD,)


def _go_on(state: State, event: Evaluated, patience: Patience) -> Answer:
    if state.good < patience.resume_after:
        return state, (Do.HOLD,)
    if state.working:
        return replace(state, phase=Phase.RUNNING, why=""), (Do.RESUME,)
    if state.all_applied:
        return replace(state, phase=Phase.BAKING, since=event.at, why=""), (Do.RESUME,)
    return replace(state, phase=Phase.RUNNING, working=True, why=""), (Do.RESUME, Do.START)


def _step_ended(state: State, event: StepEnded) -> Answer:
    changed = state.changed or event.step in (StepResult.APPLIED, StepResult.LAST)
    state = replace(
        state, working=False, all_applied=event.step in (StepResult.LAST, StepResult.NOTHING), changed=changed
    )
    if state.phase is Phase.STOPPING:
        return _stopped(state)
    if event.step is StepResult.FAILED:
        return _end(state, FAILED, f"the command failed, nothing was rolled back: {event.why}")
    if event.step is StepResult.NOTHING and not changed:
        return _end(state, DONE, event.why or "there was nothing to do")
    if state.phase is Phase.HELD:
        return state, ()
    if state.all_applied:
        return replace(state, phase=Phase.BAKING, since=event.at), ()
    return replace(state, working=True), (Do.START,)


def _interrupted(state: State, event: Interrupted) -> Answer:
    if state.phase is Phase.PREFLIGHT:
        return _end(state, PAUSED, f"{event.why} before anything began")
    if state.phase is Phase.ROLLING_BACK:
        return state, ()
    if state.phase is Phase.STOPPING:
        return state, (Do.STOP,)
    return _stop(state, PAUSED, event.why)


def _unstoppable(state: State, event: Unstoppable) -> Answer:
    """What still runs must not be rolled back under its feet."""
    return _end(state, REFUSED, event.why) if state.phase is Phase.STOPPING else (state, ())


def _rolled_back(state: State, event: RolledBack, patience: Patience) -> Answer:
    if state.phase is not Phase.ROLLING_BACK:
        return state, ()
    if event.verified:
        return _end(state, ROLLED_BACK, state.why)
    if event.final or state.attempts >= patience.attempts:
        return _end(state, REFUSED, event.why)
    return replace(state, attempts=state.attempts + 1), (Do.ROLL_BACK,)


def _stop(state: State, then: int | None, why: str) -> Answer:
    """Stop what runs, and then end with `then`, or roll back."""
    state = replace(state, phase=Phase.STOPPING, then=then, why=why)
    if state.working:
        return state, (Do.HOLD, Do.STOP)
    after, more = _stopped(state)
    return after, (Do.HOLD, *more)


def _stopped(state: State) -> Answer:
    if state.then is None:
        return replace(state, phase=Phase.ROLLING_BACK, attempts=1), (Do.SWEEP, Do.ROLL_BACK)
    return _end(state, state.then, state.why, Do.SWEEP)


def _end(state: State, code: int, why: str, *more: Do) -> Answer:
    return replace(state, phase=Phase.ENDED, code=code, why=why), more


# --- one guard after another


@dataclass(frozen=True)
class Last:
    """What the last guard left: `began` and `revision` None at the base; `state` as its row has it."""

    guard: str
    command: str
    began: str | None
    revision: str | None
    state: str
    reason: str | None = None


@dataclass(frozen=True)
class Beginning:
    """Where a new guard would roll back to, what is to be said of the last one, and why it may not begin, if so."""

    began: str | None
    said: str | None = None
    refused: str | None = None


ANSWERED = ("done", "rolled_back")
"""States after which a new run is a run of its own."""


def beginning(last: Last | None, command: str, applied: Collection[str], present: str | None) -> Beginning:
    """Where a run begins that follows `last`: there, where that one did not end well and was about the same command.

    `applied` are the revisions that stand, `present` is the newest of them. A rollback that died on its way is
    finished by a person first.
    """
    if last is None or last.state in ANSWERED or present == last.began:
        return Beginning(present)
    if last.began is not None and last.began not in applied:
        return Beginning(present)
    if last.state == Phase.ROLLING_BACK:
        return _unfinished(last, present)
    if last.command != command:
        return Beginning(present)
    went_on = f"the run of {last.guard} ended {last.state} at {last.revision or 'the base'}: this one goes on with it"
    return Beginning(last.began, f"{went_on}, and would roll back to where it began, {last.began or 'the base'}")


def _unfinished(last: Last, present: str | None) -> Beginning:
    return Beginning(
        present,
        refused=f"the guard {last.guard} ended while it was rolling back to {last.began or 'the base'}, and the "
        f"database stands at {present or 'the base'}. Finish it: leadprotect rollback --to {last.began or 'base'}; or, "
        "to go on from here, once it was not heard of for a minute: leadprotect backfill resume",
    )
