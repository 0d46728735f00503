"""Watches a whole rollout: asks the gates all the time, and lets the state machine decide what is done.

One queue brings everything that happens to one thread: evaluations, the end of a step, signals, the end of a
rollback. So nothing is decided while something else is, and a gate that hangs holds up nothing.
"""

from __future__ import annotations

import queue
import shlex
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg

from leadprotect import phases
from leadprotect.backfilling import jobs
from leadprotect.database.opening import open_connection
from leadprotect.errors import ConnectionUnusable, LeadProtectError, LockUnavailable
from leadprotect.gates import interventions, machine, runs
from leadprotect.gates.interventions import Returned, roll_back
from leadprotect.gates.machine import (
    DONE,
    ENDS,
    UNKNOWN,
    Do,
    Evaluated,
    Interrupted,
    Patience,
    Phase,
    RolledBack,
    State,
    StepEnded,
    StepResult,
    Unstoppable,
    advance,
)
from leadprotect.gates.record import Period, Record
from leadprotect.gates.rollout import Backfill, Child, Rollout, Upgrade
from leadprotect.gates.verdict import Answer, Evaluation, Verdict
from leadprotect.preflight.version_table import revision
from leadprotect.settings import Settings, url

if TYPE_CHECKING:
    from collections.abc import Callable

    from alembic.config import Config

    from leadprotect.migration.rollback import Event

T = TypeVar("T")
U = TypeVar("U")

APPLICATION = "leadprotect guard"
INTERVAL_S = 6.0  # a look costs the database five statements, a connection included

_SLOWEST_ANSWERS = 4
_LONGEST_ANSWER_S = 20.0  # one evaluation may take 15 s
_STOPS_WITHIN_S = 60.0
_CANCEL_EVERY_S = 0.5
_RETRY_S = 2.0
_ITS_GREETING = ("Context impl PostgresqlImpl", "Will assume transactional DDL")
_LOCK_TIMEOUT_MS = 5000


@dataclass(frozen=True)
class Told:
    """Something to say: `who` is guard, gates, step or rollback; `at` in UTC."""

    at: datetime
    who: str
    what: str

    @classmethod
    def now(cls, who: str, what: str) -> Told:
        """Said now."""
        return cls(datetime.now(UTC), who, what)


@dataclass(frozen=True)
class Outcome:
    """How it ended: the exit code, why, and what to run next."""

    code: int
    why: str
    following: tuple[str, ...]

    @property
    def ended(self) -> str:
        """The exit code in a word."""
        return ENDS[self.code].replace("_", " ")


@dataclass(frozen=True)
class _Ended:
    code: int
    why: str


class Guard:
    """One run of a guard over `rollout`; `ask` evaluates the gates, and is given the evaluation before.

    `tell` hears every line and `show` gets the record after everything that happened, both from this thread or
    one of its own. `run` raises `LockUnavailable` where another guard is at work.
    """

    def __init__(
        self,
        rollout: Rollout,
        settings: Settings,
        *,
        ask: Callable[[Evaluation | None], Evaluation],
        tell: Callable[[Told], None],
        show: Callable[[Record], None] = lambda _: None,
        patience: Patience | None = None,
        interval: float = INTERVAL_S,
        dry_run: bool = False,
    ) -> None:
        self.rollout, self.settings, self.patience = rollout, settings, patience or Patience()
        self._ask, self._tell, self._show = ask, tell, show
        self._interval, self._dry_run = interval, dry_run
        self._state = State()
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._began = time.monotonic()
        self._over = threading.Event()
        self._conn: psycopg.Connection[Any] | None = None
        self._child: Child | None = None
        self._revision: str | None = None
        self._owes_resume = False
        self._said: object = None
        self._would = ""
        self._pretended: str | None = None
        self._has_begun = False
        self._heard_at = self._began
        self._run = runs.GuardRun("", None)
        self.record = Record("", "", interval)

    # --- for whoever runs it

    def run(self) -> Outcome:
        """Guard it to its end."""
        command = shlex.join(self.rollout.words)
        self._conn = self._opened()
        try:
            begun = self._begin(command)
            if begun.refused:
                return self._refused(begun.refused)
            threading.Thread(target=self._keep_asking, name="leadprotect-guard-gates", daemon=True).start()
            while self._state.phase is not Phase.ENDED:
                self._happened(self._next())
            return self._outcome()
        finally:
            self._over.set()
            if self._conn is not None:
                self._conn.close()

    def interrupt(self, why: str) -> None:
        """Leave, as soon as what runs is stopped; from any thread or signal handler."""
        self._queue.put(Interrupted(time.monotonic(), why))

    # --- its beginning

    def _begin(self, command: str) -> machine.Beginning:
        conn = self._connection()
        if not self._dry_run and (holder := runs.lock(conn, self.settings)):
            raise LockUnavailable(f"another guard of schema {self.settings.schema} is at work: {holder}")
        present = revision(conn, self.settings)
        if isinstance(self.rollout, Upgrade):
            self.rollout.fix_target(present)
            applied = self.rollout.applied(present)
        else:
            applied = list(phases.through(present))
        begun = machine.beginning(runs.last(conn, self.settings), command, applied, present)
        self._revision = present
        self._run = runs.GuardRun(command, begun.began)
        self._state = State(
            left_held=bool(interventions.paused(conn, self.settings, by=interventions.REASON)),
            changed=begun.said is not None,
        )
        self.record = Record(command, self._database(conn), self._interval, dry_run=self._dry_run)
        self.record.to, self.record.revision, self.record.bake = begun.began, present, self.patience.bake
        if begun.said:
            self._say("guard", begun.said)
        if isinstance(self.rollout, Upgrade):
            left = self.rollout.pending(present)
            self._say("guard", f"the database stands at {_named(present)}, {len(left)} revisions are to be applied")
        return begun

    def _database(self, conn: psycopg.Connection[Any]) -> str:
        return f"database {conn.info.dbname} on {conn.info.host or 'this machine'}"

    def _refused(self, why: str) -> Outcome:
        self._state = State(phase=Phase.ENDED, code=UNKNOWN, why=why)
        self._say("guard", why)
        self._publish()
        return Outcome(UNKNOWN, why, ())

    # --- what happens

    def _keep_asking(self) -> None:
        before: Evaluation | None = None
        while not self._over.is_set():
            began = time.monotonic()
            before = self._asked(before)
            self._queue.put(before)
            self._over.wait(max(self._interval - (time.monotonic() - began), 0.0))

    def _asked(self, before: Evaluation | None) -> Evaluation:
        try:
            return self._ask(before)
        except Exception as error:  # noqa: BLE001 - whatever went wrong, nothing is known
            return _unknown(f"could not be asked: {type(error).__name__}: {error}")

    def _next(self) -> Any:
        longest = max(_SLOWEST_ANSWERS * self._interval, _LONGEST_ANSWER_S)
        try:
            return self._queue.get(timeout=longest)
        except queue.Empty:
            return _unknown(f"gave no answer for {time.monotonic() - self._heard_at:.0f} s")

    def _happened(self, what: Any) -> None:
        if isinstance(what, Evaluation):
            event: machine.Event = self._evaluated(what)
        elif isinstance(what, _Ended):
            event = self._step_ended(what)
        elif isinstance(what, Returned):
            self._revision = self._on(lambda conn: revision(conn, self.settings), self._revision)
            event = RolledBack(time.monotonic(), what.verified, what.why, what.final)
            self._say("rollback", ("verified: " if what.verified else "") + what.why)
        else:
            event = what
            if isinstance(what, Interrupted):
                self._say("guard", self._answer_to(what))
        before = self._state
        self._state, todo = advance(before, event, self.patience)
        if self._state.phase is not before.phase:
            self._changed(before)
        self.record.advanced(self._now(), self._state)
        for one in todo:
            self._do(one)
        if self._owes_resume and self._state.phase in (Phase.RUNNING, Phase.BAKING):
            self._resume()
        self._beat()
        self._publish()

    def _evaluated(self, found: Evaluation) -> Evaluated:
        self._heard_at = time.monotonic()
        self.record.evaluated(self._now(), found)
        why = "; ".join(found.reasons)
        says = [(answer.name, answer.verdict) for answer in found.answers if answer.verdict is not Verdict.PROCEED]
        if self._said != (found.verdict, says):  # a value that moves on is to be seen on the page
            self._said = found.verdict, says
            self._say("gates", f"{found.verdict}: {why}" if why else str(found.verdict))
        return Evaluated(self._heard_at, found.verdict, why)

    def _step_ended(self, what: _Ended) -> StepEnded:
        before = self._revision
        if self._dry_run:
            self._revision = self._pretended
        else:
            self._revision = self._on(lambda conn: revision(conn, self.settings), before)
        step = self._judged(what, before)
        self._close_step(step)
        self._child = None
        return StepEnded(time.monotonic(), step, what.why)

    def _judged(self, what: _Ended, before: str | None) -> StepResult:
        if what.code != 0:
            return StepResult.FAILED
        if isinstance(self.rollout, Backfill):
            return StepResult.LAST
        if self._revision == before:
            return StepResult.NOTHING  # the gate of contract holds what is left, and the step has said so
        return StepResult.APPLIED if self.rollout.pending(self._revision) else StepResult.LAST

    def _answer_to(self, what: Interrupted) -> str:
        if self._state.phase is Phase.ROLLING_BACK:
            return f"{what.why}: the rollback ends first"
        return f"{what.why}: leaving, with everything paused"

    def _changed(self, before: State) -> None:
        state = self._state
        why = f": {state.why}" if state.why else ""
        match state.phase:
            case Phase.HELD:
                self._say("guard", f"paused{why}")
            case Phase.BAKING:
                again = " again" if before.phase is Phase.HELD else ""
                self._say("guard", f"every step is done; watching{again} for {self.patience.bake:g} s")
            case Phase.RUNNING if before.phase is Phase.HELD:
                self._say("guard", "going on")
            case Phase.STOPPING:
                self._say("guard", f"stopping{why}")
            case Phase.ROLLING_BACK:
                self._say("guard", f"rolling back to {_named(self._run.began)}{why}")
        if before.phase is not Phase.PREFLIGHT or state.phase is Phase.ENDED:
            return
        self._has_begun = True
        if not self._dry_run:
            # whoever holds the lock of guards knows that the others are gone
            self._on(lambda conn: jobs.release_guards(conn, self.settings, silent_for=0.0), None)

    # --- what is done

    def _do(self, what: Do) -> None:
        match what:
            case Do.START:
                self._start()
            case Do.HOLD:
                self._owes_resume = False
                self._intervene("would pause the backfill", self._hold)
            case Do.RESUME:
                self._owes_resume = True
                self._resume()
            case Do.FINISH:
                if isinstance(self.rollout, Backfill) and self._child:
                    self._child.interrupt()
            case Do.STOP:
                if self._child:
                    threading.Thread(target=self._stop, args=(self._child,), daemon=True).start()
            case Do.SWEEP:
                self._intervene("would drop invalid indexes", self._sweep)
            case Do.ROLL_BACK:
                self._roll_back()

    def _intervene(self, would: str, act: Callable[[], None]) -> None:
        if not self._dry_run:
            act()
        elif self._would != would:
            self._say("guard", f"dry run: {would}")
            self._would = would

    def _start(self) -> None:
        left = self.rollout.pending(self._revision) if isinstance(self.rollout, Upgrade) else None
        if left == []:
            self._queue.put(_Ended(0, "there is nothing to do"))
            return
        words = self.rollout.step(left[0]) if isinstance(self.rollout, Upgrade) and left else self.rollout.words
        self.record.steps.append(Period(left[0] if left else shlex.join(words), self._now()))
        self._say("guard", f"{'dry run: would run' if self._dry_run else 'runs'} {shlex.join(words)}")
        if self._dry_run:
            self._pretended = left[0] if left else self._revision
            self._queue.put(_Ended(0, "dry run"))
            return
        child = Child(words, self._heard, lambda code: self._queue.put(_Ended(code, child.why)))
        self._child = child
        child.start()

    def _close_step(self, step: StepResult) -> None:
        if self.record.steps and self.record.steps[-1].end is None:
            last = self.record.steps[-1]
            last.end, last.why = self._now(), str(step)

    def _heard(self, line: str) -> None:
        if line.strip() and not any(one in line for one in _ITS_GREETING):
            self._say("step", line)

    def _hold(self) -> None:
        held = self._on(lambda conn: interventions.hold(conn, self.settings, self._state.why), None)
        if held:
            self._say("guard", f"paused the backfill of {', '.join(held)}: no slice is under way")

    def _resume(self) -> None:
        if self._dry_run:
            self._owes_resume = False
            return
        resumed = self._on(lambda conn: interventions.take_back(conn, self.settings), None)
        if resumed is not None:
            self._owes_resume = False
            if resumed:
                self._say("guard", f"resumed the backfill of {', '.join(resumed)}")

    def _stop(self, child: Child) -> None:
        """Interrupt it, and cancel what it runs in the server, until it has ended."""
        until = time.monotonic() + _STOPS_WITHIN_S
        try:
            with open_connection(self._address, application=APPLICATION) as conn:
                child.interrupt()  # once: a second one could disturb what it tidies up
                while child.running and time.monotonic() < until:
                    if isinstance(self.rollout, Upgrade):
                        interventions.cancel_ddl(conn)
                    child.wait(_CANCEL_EVERY_S)
        except (psycopg.Error, LeadProtectError) as error:
            self._say("guard", f"what runs can't be cancelled: {' '.join(str(error).split())}")
            child.interrupt()
            child.wait(until - time.monotonic())
        if child.running:
            why = f"process {child.pid} ({shlex.join(child.words)}) does not end, so nothing was rolled back"
            self._queue.put(Unstoppable(time.monotonic(), why))

    def _sweep(self) -> None:
        """What can't be dropped now, because somebody reads the table, is built anew by the next upgrade."""
        try:
            swept = interventions.sweep(self._connection(), self.settings)
        except (psycopg.Error, LeadProtectError) as error:
            self._say("guard", f"an invalid index may be left for the next upgrade: {' '.join(str(error).split())}")
            return
        if swept:
            self._say("guard", f"dropped what a cancelled build left: {', '.join(swept)}")

    def _roll_back(self) -> None:
        number = self._state.attempts
        if self._dry_run:
            self._say("guard", f"dry run: would roll back to {_named(self._run.began)}")
            self._queue.put(Returned(verified=True, why="nothing was done, as asked"))
            return
        self._beat(reason=self._state.why)
        threading.Thread(target=self._try_to_roll_back, args=(number,), name="leadprotect-guard-rollback").start()

    def _try_to_roll_back(self, number: int) -> None:
        """Before each attempt but the first, whatever stood in the way gets some time."""
        if number > 1:
            time.sleep(_RETRY_S ** (number - 1))
        to = self._run.began
        on_the_way = self._undone(to) if number > 1 else [self._revision, to]
        done = roll_back(self.settings, self._config, to=to, expected=on_the_way, tell=self._rolled)
        self._queue.put(done)

    def _undone(self, to: str | None) -> list[str | None]:
        """Where an attempt that stopped on its way may have left the database."""
        found: list[str | None] = [*phases.through(self._revision)]
        return [to, *found[found.index(to) + 1 :]] if to in found else [None, *found]

    def _rolled(self, event: Event) -> None:
        self._say("rollback", f"{event.what} ({event.seconds:.2f} s)")

    @property
    def _config(self) -> Config | None:
        return self.rollout.config if isinstance(self.rollout, Upgrade) else None

    # --- the database

    def _address(self) -> str:
        return url(self.settings)

    def _opened(self) -> psycopg.Connection[Any]:
        try:
            return open_connection(self._address, application=APPLICATION, lock_timeout=_LOCK_TIMEOUT_MS)
        except psycopg.OperationalError as error:
            raise ConnectionUnusable(f"no connection to the database: {error}") from None

    def _connection(self) -> psycopg.Connection[Any]:
        """The session that holds the lock of guards: opened again where it was lost."""
        if self._conn is None or self._conn.closed:
            self._conn = self._opened()
            if not self._dry_run and (holder := runs.lock(self._conn, self.settings)):
                self.interrupt(f"another guard has taken over: {holder}")
        return self._conn

    def _on(self, step: Callable[[psycopg.Connection[Any]], T], otherwise: U) -> T | U:
        """Do `step`; a database that does not answer is what the gates will tell, and no reason to end."""
        try:
            return step(self._connection())
        except (psycopg.Error, LeadProtectError) as error:
            self._say("guard", f"the database gives no answer: {' '.join(str(error).split())}")
            return otherwise

    def _beat(self, *, reason: str | None = None) -> None:
        """Nobody needs the heartbeat of a rollback, which moves the table away under it."""
        state = self._state
        rolling = state.phase is Phase.ROLLING_BACK and reason is None
        if self._dry_run or rolling or not self._has_begun:
            return
        ended = state.phase is Phase.ENDED
        self._on(
            lambda conn: self._run.beat(
                conn, self.settings, revision=self._revision, state=state.told, reason=state.why, ended=ended
            ),
            False,  # noqa: FBT003 - what `beat` answers
        )

    # --- what is said

    def _now(self) -> float:
        return round(time.monotonic() - self._began, 2)

    def _say(self, who: str, what: str) -> None:
        self.record.lines.append((self._now(), who, what))
        self._tell(Told.now(who, what))

    def _publish(self) -> None:
        self.record.revision, self.record.seconds = self._revision, self._now()
        if self._state.code is not None:
            self.record.following = [*self._following()]
        self._show(self.record)

    def _outcome(self) -> Outcome:
        return Outcome(self._state.code or DONE, self._state.why, tuple(self.record.following))

    def _following(self) -> tuple[str, ...]:
        """What a person runs next."""
        again = f"leadprotect guard -- {shlex.join(self.rollout.words)}"
        back = f"leadprotect rollback --to {self._run.began or 'base'}"
        paused = self._paused()
        held = f"the backfill of {', '.join(paused)} stays paused until then, or until: leadprotect backfill resume"
        found: tuple[str, ...] = ()
        match self._state.code:
            case machine.FAILED:
                found = (f"once its cause is gone, the same command goes on: {again}",)
            case machine.PAUSED | machine.UNKNOWN if not self._has_begun:
                found = ("what the gates say: leadprotect gate check",)
            case machine.PAUSED | machine.UNKNOWN:
                found = (f"the same command goes on: {again}", f"to go back instead: {back}")
            case machine.ROLLED_BACK:
                found = (f"find the cause first; then the same command begins anew: {again}",)
            case machine.REFUSED:
                found = (f"look at it, then go back by hand: {back}",)
        return (*found, held) if found and paused else found

    def _paused(self) -> list[str]:
        """The territories whose backfill waits for somebody; none where that can't be asked."""
        return self._on(lambda conn: interventions.paused(conn, self.settings), None) or []


def _unknown(why: str) -> Evaluation:
    return Evaluation(datetime.now(UTC), (Answer("gates", "", None, None, Verdict.UNKNOWN, why),))


def _named(present: str | None) -> str:
    return present or "the base"
