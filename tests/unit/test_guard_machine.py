"""The guard as a state machine: each rule by hand, and ten thousand rollouts from their seeds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from leadprotect.gates.machine import (
    DONE,
    FAILED,
    PAUSED,
    REFUSED,
    ROLLED_BACK,
    UNKNOWN,
    Answer,
    Beginning,
    Do,
    Evaluated,
    Event,
    Interrupted,
    Last,
    OnRollback,
    Patience,
    Phase,
    RolledBack,
    State,
    StepEnded,
    StepResult,
    Unstoppable,
    advance,
    beginning,
)
from leadprotect.gates.verdict import Verdict
from tests.support.profiles import NIGHTLY
from tests.support.rollouts import Advance, play, world

PLAYED = 10_000 if NIGHTLY else 1_000
QUICK = Patience(resume_after=2, bake=10.0, blind=20.0, longest_pause=60.0, flaps=2, attempts=2)


class Played:
    """A guard that is told one thing after another, a second apart."""

    def __init__(self, patience: Patience = QUICK) -> None:
        self.patience, self.state, self.now = patience, State(), 0.0

    def on(self, event: Event) -> tuple[Do, ...]:
        self.state, todo = advance(self.state, event, self.patience)
        return todo

    def say(self, *verdicts: str, after: float = 1.0) -> tuple[Do, ...]:
        todo: tuple[Do, ...] = ()
        for verdict in verdicts:
            self.now += after
            todo = self.on(Evaluated(self.now, Verdict[verdict], f"{verdict} because"))
        return todo

    def step(self, how: StepResult = StepResult.APPLIED) -> tuple[Do, ...]:
        return self.on(StepEnded(self.now, how, "said so"))

    @property
    def end(self) -> tuple[Phase, int | None]:
        return self.state.phase, self.state.code

    @property
    def phase(self) -> Phase:
        return self.state.phase


def running(patience: Patience = QUICK) -> Played:
    guard = Played(patience)
    guard.say("PROCEED")
    return guard


@pytest.mark.parametrize("verdict", ["PAUSE", "ROLLBACK", "UNKNOWN"])
def test_nothing_begins_unless_the_gates_are_good_at_the_start(verdict: str) -> None:
    guard = Played()
    assert () == guard.say(verdict)
    assert (Phase.ENDED, UNKNOWN) == guard.end
    assert f"refused at the start, {verdict}: {verdict} because" == guard.state.why


def test_steps_follow_each_other_and_the_end_is_watched() -> None:
    guard = Played()
    assert (Do.START,) == guard.say("PROCEED")
    assert (Do.START,) == guard.step()
    assert () == guard.step(StepResult.LAST)
    guard.say("PROCEED", after=9)
    assert Phase.BAKING is guard.phase
    guard.say("PROCEED")
    assert (Phase.ENDED, DONE) == guard.end


def test_where_nothing_is_to_be_done_nothing_is_watched() -> None:
    guard = running()
    guard.step(StepResult.NOTHING)
    assert (Phase.ENDED, DONE) == guard.end


def test_what_the_guard_before_did_is_watched_where_nothing_is_left_to_do() -> None:
    guard = Played()
    guard.state = State(changed=True)
    guard.say("PROCEED")
    guard.step(StepResult.NOTHING)
    assert Phase.BAKING is guard.phase


def test_what_a_guard_before_left_paused_goes_on_after_it_was_good_for_a_while() -> None:
    guard = Played()
    guard.state = State(left_held=True)
    assert (Do.HOLD,) == guard.say("PROCEED")
    assert (Do.RESUME, Do.START) == guard.say("PROCEED")


@pytest.mark.parametrize("verdict", ["PAUSE", "UNKNOWN"])
def test_a_pause_lets_the_running_step_end_and_begins_no_other(verdict: str) -> None:
    guard = running()
    assert (Do.HOLD,) == guard.say(verdict)
    assert () == guard.step()
    assert (Do.HOLD,) == guard.say("PROCEED")
    assert (Do.RESUME, Do.START) == guard.say("PROCEED")


def test_one_good_answer_between_two_bad_ones_resumes_nothing() -> None:
    guard = running()
    guard.say("PAUSE")
    assert [(Do.HOLD,)] * 5 == [guard.say(one) for one in ("PROCEED", "PAUSE", "PROCEED", "PAUSE", "PROCEED")]


def test_a_pause_while_it_is_watched_begins_the_watch_anew() -> None:
    guard = running()
    guard.step(StepResult.LAST)
    guard.say("PROCEED", "PAUSE", "PROCEED", "PROCEED", after=5)
    assert Phase.BAKING is guard.phase
    guard.say("PROCEED", after=9)
    assert Phase.BAKING is guard.phase
    guard.say("PROCEED")
    assert (Phase.ENDED, DONE) == guard.end


@pytest.mark.parametrize("before", [(), ("PAUSE",), ("UNKNOWN",)])
def test_a_rollback_stops_the_step_sweeps_and_goes_back(before: tuple[str, ...]) -> None:
    guard = running()
    guard.say(*before)
    assert (Do.HOLD, Do.STOP) == guard.say("ROLLBACK")
    assert (Do.SWEEP, Do.ROLL_BACK) == guard.step(StepResult.FAILED)
    assert () == guard.say("PROCEED", "UNKNOWN")  # what has begun is not taken back
    guard.on(RolledBack(guard.now, verified=True))
    assert (Phase.ENDED, ROLLED_BACK) == guard.end
    assert "ROLLBACK because" == guard.state.why


def test_a_rollback_while_it_is_watched_needs_no_stop() -> None:
    guard = running()
    guard.step(StepResult.LAST)
    assert (Do.HOLD, Do.SWEEP, Do.ROLL_BACK) == guard.say("ROLLBACK")


def test_a_rollback_is_tried_again_and_then_left_to_a_person() -> None:
    guard = running()
    guard.step(StepResult.LAST)
    guard.say("ROLLBACK")
    assert (Do.ROLL_BACK,) == guard.on(RolledBack(guard.now, verified=False, why="no connection"))
    assert () == guard.on(RolledBack(guard.now, verified=False, why="no connection"))
    assert (Phase.ENDED, REFUSED, "no connection") == (*guard.end, guard.state.why)


def test_a_rollback_that_is_refused_for_good_is_not_tried_again() -> None:
    guard = running()
    guard.step(StepResult.LAST)
    guard.say("ROLLBACK")
    assert () == guard.on(RolledBack(guard.now, verified=False, why="a view depends on it", final=True))
    assert (Phase.ENDED, REFUSED) == guard.end


def test_what_does_not_end_is_not_rolled_back_under_its_feet() -> None:
    guard = running()
    guard.say("ROLLBACK")
    assert () == guard.on(Unstoppable(guard.now, "process 7 does not end"))
    assert (Phase.ENDED, REFUSED) == guard.end


@pytest.mark.parametrize(
    ("how", "todo"), [(OnRollback.PAUSE, (Do.HOLD, Do.FINISH)), (OnRollback.CANCEL, (Do.HOLD, Do.STOP))]
)
def test_who_asked_for_no_rollback_gets_none(how: OnRollback, todo: tuple[Do, ...]) -> None:
    guard = running(replace(QUICK, on_rollback=how))
    assert todo == guard.say("ROLLBACK")
    assert (Do.SWEEP,) == guard.step()
    assert (Phase.ENDED, PAUSED) == guard.end
    assert f"not rolled back, as asked (--on-rollback {how}): ROLLBACK because" == guard.state.why


def test_who_sees_nothing_for_too_long_ends_as_unknown_and_never_goes_back() -> None:
    guard = running()
    guard.step(StepResult.LAST)
    guard.say("UNKNOWN", after=5)
    todo = [one for _ in range(5) for one in guard.say("UNKNOWN", after=5)]
    assert (Phase.ENDED, UNKNOWN) == guard.end
    assert {Do.HOLD, Do.SWEEP} == {*todo}


def test_blindness_is_counted_over_the_whole_run() -> None:
    guard = running(replace(QUICK, flaps=100, longest_pause=1e6))
    for _ in range(10):
        guard.say("UNKNOWN", "UNKNOWN", "PROCEED", "PROCEED", after=3)
    assert (Phase.STOPPING, UNKNOWN) == (guard.state.phase, guard.state.then)


def test_one_that_is_paused_again_and_again_stays_so() -> None:
    guard = running()
    guard.step(StepResult.LAST)
    guard.say(*["PAUSE", "PROCEED", "PROCEED"] * 3)
    assert (Phase.ENDED, PAUSED) == guard.end
    assert "paused 3 times, a human is needed: PAUSE because" == guard.state.why


def test_a_pause_does_not_last_for_ever() -> None:
    guard = running()
    guard.step(StepResult.LAST)
    guard.say("PAUSE", "PAUSE", after=61)
    assert (Phase.ENDED, PAUSED) == guard.end


def test_a_command_that_fails_is_no_reason_to_go_back() -> None:
    guard = running()
    assert () == guard.step(StepResult.FAILED)
    assert (Phase.ENDED, FAILED) == guard.end


def test_ctrl_c_leaves_it_paused_after_what_runs_was_stopped() -> None:
    guard = running()
    assert (Do.HOLD, Do.STOP) == guard.on(Interrupted(guard.now, "SIGTERM"))
    assert (Do.STOP,) == guard.on(Interrupted(guard.now, "SIGTERM"))
    assert (Do.SWEEP,) == guard.step(StepResult.FAILED)
    assert (Phase.ENDED, PAUSED, "SIGTERM") == (*guard.end, guard.state.why)


def test_ctrl_c_does_not_stop_a_rollback() -> None:
    guard = running()
    guard.step(StepResult.LAST)
    guard.say("ROLLBACK")
    assert () == guard.on(Interrupted(guard.now, "SIGINT"))
    assert Phase.ROLLING_BACK is guard.phase


def test_an_alarm_while_it_is_leaving_is_heard() -> None:
    guard = running()
    guard.on(Interrupted(guard.now, "SIGTERM"))
    guard.say("ROLLBACK")
    assert (Do.SWEEP, Do.ROLL_BACK) == guard.step(StepResult.FAILED)


def test_what_comes_after_the_end_changes_nothing() -> None:
    guard = running()
    guard.step(StepResult.FAILED)
    ended = guard.state
    guard.say("ROLLBACK")
    guard.on(Interrupted(guard.now, "SIGTERM"))
    assert ended == guard.state


# --- one guard after another

LOST = Last("host:1", "alembic upgrade head", "r02", "r05", "running")


@pytest.mark.parametrize(
    ("last", "began"),
    [
        (None, "r05"),
        (LOST, "r02"),
        (replace(LOST, state="paused"), "r02"),
        (replace(LOST, state="unknown"), "r02"),
        (replace(LOST, began=None), None),
        (replace(LOST, state="done"), "r05"),
        (replace(LOST, state="rolled_back"), "r05"),
        (replace(LOST, command="alembic upgrade r05"), "r05"),
        (replace(LOST, began="r09"), "r05"),
        (replace(LOST, began="r05", state="rolling_back"), "r05"),
    ],
)
def test_the_next_guard_goes_back_to_where_the_last_one_began(last: Last | None, began: str | None) -> None:
    found = beginning(last, "alembic upgrade head", ["r01", "r02", "r03", "r04", "r05"], "r05")
    assert (began, None) == (found.began, found.refused)
    assert (began == "r05") == (found.said is None)


def test_a_rollback_that_died_is_finished_by_a_person() -> None:
    found = beginning(replace(LOST, state="rolling_back"), "anything", ["r01", "r02", "r03"], "r03")
    assert isinstance(found, Beginning)
    assert "Finish it: leadprotect rollback --to r02;" in (found.refused or "")


# --- ten thousand rollouts


def wrong(advance: Advance, seeds: range) -> list[str]:
    return [one for seed in seeds for one in play(world(seed), advance).wrong]


def test_no_rollout_of_ten_thousand_does_what_it_must_not() -> None:
    played = [play(world(seed)) for seed in range(PLAYED)]
    assert [] == [one for w in played for one in w.wrong]
    ended = Counter(w.codes[-1] for w in played)
    # rich enough: each end is met, and so is a guard that may not begin
    assert {DONE, FAILED, PAUSED, ROLLED_BACK, REFUSED, UNKNOWN, None} == {*ended}
    assert min(ended.values()) > PLAYED / 1000
    assert sum("killed" in {what for _, what in w.trace} for w in played) > PLAYED / 10


def test_the_same_seed_is_the_same_run() -> None:
    for seed in range(50):
        first, second = play(world(seed)), play(world(seed))
        assert (first.trace, first.codes) == (second.trace, second.codes)
    assert play(world(1)).trace != play(world(2)).trace


def blind_is_an_alarm(state: State, event: Event, patience: Patience) -> Answer:
    if isinstance(event, Evaluated) and event.verdict is Verdict.UNKNOWN and state.phase is not Phase.PREFLIGHT:
        event = replace(event, verdict=Verdict.ROLLBACK)
    return advance(state, event, patience)


def blind_is_good(state: State, event: Event, patience: Patience) -> Answer:
    if isinstance(event, Evaluated) and event.verdict is Verdict.UNKNOWN:
        event = replace(event, verdict=Verdict.PROCEED)
    return advance(state, event, patience)


def hasty(state: State, event: Event, patience: Patience) -> Answer:
    return advance(state, event, replace(patience, resume_after=1))


def not_watched(state: State, event: Event, patience: Patience) -> Answer:
    return advance(state, event, replace(patience, bake=0.0))


def deaf(state: State, event: Event, patience: Patience) -> Answer:
    if isinstance(event, Evaluated) and event.verdict is Verdict.ROLLBACK and state.phase is Phase.BAKING:
        return state, ()
    return advance(state, event, patience)


def without_a_hold(state: State, event: Event, patience: Patience) -> Answer:
    after, todo = advance(state, event, patience)
    return after, tuple(one for one in todo if one is not Do.HOLD)


def without_a_stop(state: State, event: Event, patience: Patience) -> Answer:
    after, todo = advance(state, event, patience)
    if Do.STOP in todo:
        return replace(after, phase=Phase.ROLLING_BACK), (Do.ROLL_BACK,)
    return after, todo


@pytest.mark.parametrize(
    "broken", [blind_is_an_alarm, blind_is_good, hasty, not_watched, deaf, without_a_hold, without_a_stop]
)
def test_the_simulation_finds_a_guard_that_is_broken(broken: Advance) -> None:
    assert wrong(broken, range(150))
