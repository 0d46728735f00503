"""The backfill slows down or holds for the database's sake, and always says why."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import psycopg
import pytest
from click.testing import CliRunner

from leadprotect.backfilling import jobs
from leadprotect.backfilling.run import backfill
from leadprotect.backfilling.signals import GO, SIGNALS, Asked, Limits, Pace
from leadprotect.backfilling.throttle import Throttle, next_hold
from leadprotect.cli import main
from leadprotect.errors import BackfillStopped
from tests.support.leads import old_leads, owners
from tests.support.topology import replica

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from leadprotect.backfilled import Backfilled
    from leadprotect.backfilling.progress import Progress
    from tests.support.database import Database

WAL = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint"


@contextmanager
def asked(database: Database, limits: Limits | None = None, login: str | None = None) -> Iterator[Asked]:
    with database.connect(login, autocommit=True) as conn:
        yield Asked(conn, limits or Limits(), database.settings)


def ask(
    database: Database,
    limits: Limits | None = None,
    *,
    url: str | None = None,
    gate: Callable[[], str | None] | None = None,
) -> Pace:
    throttle = Throttle(url or database.url, database.settings, ("DE", "CH"), limits=limits, gate=gate)
    try:
        return throttle.ask()
    finally:
        throttle.close()


# --- the signals


def test_a_quiet_database_lets_the_backfill_go_as_the_operator_too(expanded: Database) -> None:
    for login in (None, "operator"):
        with asked(expanded, login=login) as now:
            assert dict.fromkeys(SIGNALS, GO) == {name: signal(now) for name, signal in SIGNALS.items()}


def test_sessions_that_wait_for_locks_slow_it_down_and_then_hold_it(expanded: Database) -> None:
    lead = next(iter(old_leads(expanded, 1)))
    with expanded.connect() as holder, expanded.connect() as waiter, asked(expanded, login="operator") as now:
        for conn in (holder, waiter):
            conn.execute("SET application_name = 'service'")
        expanded.query(holder, "SELECT FROM {leads} WHERE {lead_id} = %s FOR UPDATE", lead)
        waiting = threading.Thread(
            target=expanded.query,
            args=(waiter, "SELECT FROM {leads} WHERE {lead_id} = %s FOR UPDATE", lead),
        )
        waiting.start()
        while not now.row("SELECT pid FROM pg_locks WHERE NOT granted"):
            time.sleep(0.01)
        seen = [
            SIGNALS["the waiting lock requests"](replace(now, limits=Limits(lock_waits=limit))) for limit in (8, 4, 1)
        ]
        holder.rollback()
        waiting.join()

    assert [GO, Pace(0.5, "1 sessions wait for locks"), Pace(0.0, "1 sessions wait for locks")] == seen


def test_wal_above_its_limit_slows_it_down_in_proportion(expanded: Database) -> None:
    with asked(expanded, Limits(wal_rate=1.0)) as now:
        assert GO == SIGNALS["the WAL rate"](now)  # one sample tells no rate
        old_leads(expanded, 2000)
        verdict = SIGNALS["the WAL rate"](now)
    assert 0.1 == verdict.factor
    assert "MiB of WAL a second" in (verdict.reason or "")


def test_a_vacuum_of_the_assignments_slows_it_down(expanded: Database) -> None:
    with expanded.connect() as conn, asked(expanded, login="operator") as now:
        expanded.query(conn, "LOCK TABLE {schema}.user_lead_assignments IN SHARE UPDATE EXCLUSIVE MODE")
        assert Pace(0.8, "the assignments are being vacuumed") == SIGNALS["the vacuum of the assignments"](now)


def test_the_user_s_condition_must_be_true(expanded: Database) -> None:
    for condition, factor in (("SELECT true", 1.0), ("SELECT false", 0.0), ("SELECT NULL", 0.0), ("SELECT 1", 0.0)):
        with asked(expanded, Limits(condition=condition)) as now:
            assert factor == SIGNALS["the SQL condition"](now).factor, condition


@pytest.mark.profiles("pg18")
def test_replicas_are_waited_for_and_a_lag_that_is_hidden_holds_it(expanded: Database) -> None:
    with replica(expanded.server) as standby, expanded.connect(autocommit=True) as primary:
        with psycopg.connect(standby.url(), autocommit=True) as behind:
            while primary.execute("SELECT state FROM pg_stat_replication").fetchone() != ("streaming",):
                time.sleep(0.05)
            with asked(expanded, login="operator") as now:
                hidden = SIGNALS["the replicas' lag"](now)
            behind.execute("ALTER SYSTEM SET recovery_min_apply_delay = '500ms'")
            behind.execute("SELECT pg_reload_conf()")
            lagging = GO
            while lagging.factor:  # each commit is replayed half a second late, once the setting is read
                old_leads(expanded, 1)
                with asked(expanded, Limits(replica_lag=0.2)) as now:
                    lagging = SIGNALS["the replicas' lag"](now)
                time.sleep(0.02)

    assert 0.0 == hidden.factor
    assert "GRANT pg_monitor" in (hidden.reason or "")
    assert 0.0 == lagging.factor
    assert "behind" in (lagging.reason or "")


def test_a_signal_that_can_t_be_read_holds_it(expanded: Database) -> None:
    verdict = ask(expanded, Limits(condition="SELECT no_such_column"))
    nowhere = ask(expanded, url="postgresql://postgres@/nowhere?host=/nonexistent")

    assert 0.0 == verdict.factor
    assert (verdict.reason or "").startswith("the SQL condition can't be read: column")
    assert (0.0, True) == (nowhere.factor, "can't be read" in (nowhere.reason or ""))


def test_the_condition_can_t_write(expanded: Database) -> None:
    lead = next(iter(old_leads(expanded, 1)))
    statement = expanded.text(f"DELETE FROM {{activities}} WHERE {{activity_lead_id}} = '{lead}' RETURNING true")
    verdict = ask(expanded, Limits(condition=statement))

    assert "read-only transaction" in (verdict.reason or "")
    assert [2] == expanded.sql("SELECT count(*) FROM {activities}")


def test_a_gate_that_says_pause_or_fails_holds_it(expanded: Database) -> None:
    def broken() -> str | None:
        message = "no data"
        raise RuntimeError(message)

    assert Pace(0.0, "the gate says pause: deadlocks") == ask(expanded, gate=lambda: "deadlocks")
    assert Pace(0.0, "the gate can't be read: no data") == ask(expanded, gate=broken)
    assert GO == ask(expanded, gate=lambda: None)


def test_holds_grow_from_a_second_to_five_minutes() -> None:
    holds = [0.0]
    for _ in range(11):
        holds.append(next_hold(holds[-1]))

    assert [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] == holds[1:]


def test_the_wal_limit_counts_from_the_speed_that_made_the_rate(expanded: Database) -> None:
    """A rate at the limit is what half speed was for: back at full speed it would be twice the limit."""
    with asked(expanded, Limits(wal_rate=1e12)) as now:
        SIGNALS["the WAL rate"](now)
        now.wal_factor = 0.5
        old_leads(expanded, 2000)
        (since, before), (later, last) = now.wal[-1], (time.monotonic(), now.row(WAL)[0])
        verdict = SIGNALS["the WAL rate"](replace(now, limits=Limits(wal_rate=(last - before) / (later - since))))

    assert 0.4 <= verdict.factor <= 0.7
    assert "MiB of WAL a second" in (verdict.reason or "")


# --- what a running backfill does about it


class Running(threading.Thread):
    """A backfill in a thread, with everything it told."""

    def __init__(self, database: Database, limits: Limits | None = None, batch_size: int = 50) -> None:
        super().__init__()
        self.database, self.limits, self.batch_size = database, limits, batch_size
        self.told: list[Progress] = []
        self.results: list[Backfilled] = []
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.results = backfill(
                *(self.database.url, ["DE", "CH"]),
                limits=self.limits, on_progress=self.told.append, batch_size=self.batch_size,
            )  # fmt: skip
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def until(self, reason: str) -> None:
        while not any(reason in (one.reason or "") for one in self.told):
            assert self.is_alive(), self.error
            time.sleep(0.02)


def test_a_paused_backfill_waits_and_goes_on_after_resume(expanded: Database) -> None:
    expected = old_leads(expanded, 100)
    paused = CliRunner().invoke(main, ["backfill", "pause", "DE", "--reason", "month-end closing"])
    running = Running(expanded)
    running.until("DE is paused: month-end closing")
    before = expanded.sql("SELECT count(*) FROM {schema}.user_lead_assignments")
    CliRunner().invoke(main, ["backfill", "resume"])
    running.join()

    assert "DE: paused (month-end closing), 0 of about" in paused.stdout
    assert [0] == before
    assert expected == owners(expanded)


@pytest.mark.nightly_elsewhere("by day a backfill is paused and stopped there")
def test_a_pause_holds_no_other_territory(expanded: Database) -> None:
    german, swiss = old_leads(expanded, 100), old_leads(expanded, 100, "CH")
    with expanded.connect("operator") as conn:
        jobs.pause(conn, ["DE"], reason="month-end closing")
    running = Running(expanded)
    running.until("DE is paused: month-end closing")
    while swiss != owners(expanded, "CH"):
        assert running.is_alive()
        time.sleep(0.02)
    held = expanded.sql("SELECT count(*) FROM {schema}.user_lead_assignments WHERE territory = 'DE'")
    with expanded.connect("operator") as conn:
        jobs.resume(conn, ["DE"])
    running.join()

    assert [0] == held
    assert german == owners(expanded)
    assert {1.0} == {one.factor for one in running.told if one.reason == "DE is paused: month-end closing"}


@pytest.mark.profiles("pg18")
def test_a_pause_in_the_middle_gives_the_chunk_back(expanded: Database) -> None:
    expected = old_leads(expanded, 6_000)
    swiss = old_leads(expanded, 100, "CH")
    with expanded.connect() as conn:
        expanded.query(conn, "LOCK TABLE {schema}.user_lead_assignments IN EXCLUSIVE MODE")
        running = Running(expanded, batch_size=20_000)
        running.until("every row is locked")
        CliRunner().invoke(main, ["backfill", "pause", "DE"])
        running.until("DE is paused")
        conn.rollback()
    while swiss != owners(expanded, "CH"):
        assert running.is_alive()
        time.sleep(0.02)
    leased = expanded.sql(
        "SELECT count(*) FROM {schema}.backfill_chunks WHERE finished_at IS NULL AND lease_until > clock_timestamp()"
    )
    CliRunner().invoke(main, ["backfill", "resume"])
    running.join()

    assert [0] == leased
    assert expected == owners(expanded)


@pytest.mark.profiles("pg18")
def test_a_backfill_that_is_slowed_down_says_why(expanded: Database) -> None:
    expected = old_leads(expanded, 400)
    with expanded.connect() as conn:
        expanded.query(conn, "LOCK TABLE {schema}.user_lead_assignments IN SHARE UPDATE EXCLUSIVE MODE")
        answer = CliRunner().invoke(main, ["backfill", "DE"])

    assert "slowed to 80 %: the assignments are being vacuumed" in answer.stderr
    assert expected == owners(expanded)


def test_a_stopped_backfill_ends_and_the_same_command_goes_on(expanded: Database) -> None:
    expected = old_leads(expanded, 100)
    CliRunner().invoke(main, ["backfill", "pause", "DE"])
    running = Running(expanded)
    running.until("DE is paused")
    CliRunner().invoke(main, ["backfill", "stop", "DE", "--reason", "enough for today"])
    running.join()
    with expanded.connect() as conn:
        state = [job.state for job in jobs.list_jobs(conn, ["DE"])]
        conn.commit()
    answer = CliRunner().invoke(main, ["backfill", "DE"])

    assert isinstance(running.error, BackfillStopped)
    assert "DE: enough for today" in str(running.error)
    assert ["stopped"] == state
    assert (0, expected) == (answer.exit_code, owners(expanded))


@pytest.mark.nightly_elsewhere("by day a backfill is paused and stopped there")
def test_a_stop_reaches_the_run_that_it_was_meant_for_although_another_starts_at_once(expanded: Database) -> None:
    """Requests are read once a second; the second run must not take the stop back before."""
    expected = old_leads(expanded, 100)
    CliRunner().invoke(main, ["backfill", "pause"])
    first = Running(expanded)
    first.until("is paused")
    CliRunner().invoke(main, ["backfill", "stop", "--reason", "the other machine does it"])
    second = Running(expanded)
    first.join()
    second.join()

    assert isinstance(first.error, BackfillStopped)
    assert "the other machine does it" in str(first.error)
    assert (None, expected) == (second.error, owners(expanded))


@pytest.mark.nightly_elsewhere("by day a backfill is paused and stopped there")
def test_a_condition_holds_a_running_backfill_until_it_is_true(expanded: Database) -> None:
    expected = old_leads(expanded, 100)
    expanded.sql("CREATE TABLE public.quiet AS SELECT false AS yes")
    running = Running(expanded, Limits(condition="SELECT yes FROM public.quiet"))
    running.until("the SQL condition is not true")
    before = expanded.sql("SELECT count(*) FROM {schema}.user_lead_assignments")
    expanded.sql("UPDATE public.quiet SET yes = true")
    running.join()

    assert [0] == before
    assert expected == owners(expanded)


@pytest.mark.usefixtures("expanded")
def test_requests_for_an_unknown_territory_are_refused() -> None:
    for command in ("status", "pause", "resume", "stop"):
        answer = CliRunner().invoke(main, ["backfill", command, "AT"])
        assert (1, "Error: territory 'AT' is not in the database; known are: CH, DE\n") == (
            answer.exit_code,
            answer.stderr,
        )


# --- a guard that died


def beat(database: Database, *, seconds: int, ended: bool = False) -> None:
    """The row of a guard that was last heard of so long ago."""
    database.sql(
        "SELECT {schema}.guard_beat(gen_random_uuid(), 'upgrade', NULL, NULL, 'host:1', 'running', NULL, %s)",
        ended,
    )
    database.sql("UPDATE {schema}.guard_runs SET heartbeat_at = now() - make_interval(secs => %s)", seconds)


def held(database: Database) -> Pace:
    """What a run that begins now is told first."""
    throttle = Throttle(database.url, database.settings, ("DE", "CH"))
    throttle.start()
    throttle.end()
    return throttle.now()


@pytest.mark.parametrize(("seconds", "ended", "holds"), [(61, False, True), (50, False, False), (61, True, False)])
def test_a_guard_that_was_not_heard_of_for_a_minute_holds_the_backfill(
    expanded: Database, seconds: int, *, ended: bool, holds: bool
) -> None:
    beat(expanded, seconds=seconds, ended=ended)
    verdict = held(expanded)
    assert holds == (verdict.factor == 0)
    assert holds == ("host:1 was not heard of for 6" in (verdict.reason or ""))


def test_who_resumes_the_backfill_gives_up_the_dead_guard_and_no_living_one(expanded: Database) -> None:
    beat(expanded, seconds=61)
    beat_living = "SELECT {schema}.guard_beat(gen_random_uuid(), 'other', NULL, NULL, 'host:2', 'running', NULL, false)"
    expanded.sql(beat_living)
    assert 0 == CliRunner().invoke(main, ["backfill", "resume"]).exit_code
    assert 1.0 == held(expanded).factor
    assert [("host:1", "lost"), ("host:2", "running")] == expanded.sql(
        "SELECT guard, state FROM {schema}.guard_runs ORDER BY guard"
    )
    assert [1] == expanded.sql("SELECT count(*) FROM {schema}.guard_runs WHERE ended_at IS NULL")
