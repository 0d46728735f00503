"""A backfill that is killed at any moment loses nothing and repeats nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from leadprotect.backfilling import worker
from leadprotect.backfilling.run import backfill
from leadprotect.backfilling.throttle import Throttle
from tests.support.forked import Forked
from tests.support.leads import old_leads, owners

if TYPE_CHECKING:
    from collections.abc import Iterator

    from leadprotect.backfilling.progress import Progress
    from tests.support.database import Database

LEASE = 0.5
# as soon as the server has answered to the claim, before anything else is said to it
STOPS_ITSELF = f"""
import os, signal, psycopg
from leadprotect.backfilling.run import backfill
execute = psycopg.Connection.execute
def stopping(conn, query, *arguments, **more):
    cursor = execute(conn, query, *arguments, **more)
    if "backfill_claim" in str(query):
        os.kill(os.getpid(), signal.SIGSTOP)
    return cursor
psycopg.Connection.execute = stopping
backfill(None, ["DE"], batch_size=700, lease={LEASE})
"""
# so many slices that whoever looks for the first claim is there before the last, however busy the machine is
SLICES = ("--batch-size", "100")
RUN = ("tests.support.backfilling", "100", "2", str(LEASE))


@contextmanager
def running(database: Database, *words: str) -> Iterator[Forked]:
    """A backfill in a process of its own, from its first claimed chunk on."""
    before = claimed(database)
    with Forked(words, os.environ | database.environment) as process:
        try:
            while claimed(database) == before and process.poll() is None:
                time.sleep(0.001)
            yield process
        finally:
            process.kill()


def claimed(database: Database) -> Any:
    return database.sql("SELECT coalesce(sum(token), 0) FROM {schema}.backfill_chunks")[0]


def counted(database: Database) -> tuple[int, int]:
    ((scanned, assigned),) = database.sql("SELECT sum(scanned)::int, sum(assigned)::int FROM {schema}.backfill_chunks")
    return scanned, assigned


@pytest.mark.nightly_elsewhere("by day a worker loses its lease there")
def test_kills_at_random_moments_lose_and_repeat_nothing(expanded: Database) -> None:
    expected = old_leads(expanded, 16_000)
    chance = random.Random()  # noqa: S311 - moments, no secret
    cut_short = 0
    for number in range(5):
        with running(expanded, *RUN) as process:
            time.sleep(chance.uniform(0, 0.03 * number))
            process.kill()
        if expanded.sql("SELECT ended_at IS NOT NULL FROM {schema}.backfill_jobs WHERE territory = 'DE'") == [True]:
            break
        cut_short += 1
        # in one snapshot: the server may still commit the slice of the client that is gone
        assert [True] == expanded.sql(
            "SELECT coalesce(sum(assigned), 0) = (SELECT count(*) FROM {schema}.user_lead_assignments) "
            "FROM {schema}.backfill_chunks"
        )
    else:
        backfill(expanded.url, "DE", batch_size=700, workers=2, lease=LEASE)

    assert cut_short > 0
    assert expected == owners(expanded)
    assert (16_000, 14_000) == counted(expanded)
    # an assignment that was written twice would have left a trace
    assert [0] == expanded.sql("SELECT count(*) FROM {schema}.user_lead_assignment_history")


def owners_made(database: Database) -> list[Any]:
    return database.sql("SELECT lead_id FROM {schema}.user_lead_assignments")


@pytest.mark.profiles("pg18")
def test_sessions_ended_by_the_server_are_opened_again(expanded: Database) -> None:
    expected = old_leads(expanded, 16_000)
    ended = threading.Event()
    terminated = 0

    def terminate() -> None:
        nonlocal terminated
        with expanded.connect(autocommit=True) as conn:
            while not ended.wait(0.05 if terminated else 0.001):
                terminated += len(
                    conn.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE query LIKE 'SELECT * FROM%backfill_slice%' AND datname = current_database()"
                    ).fetchall()
                )

    killer = threading.Thread(target=terminate)
    killer.start()
    try:
        (result,) = backfill(expanded.url, "DE", batch_size=700, workers=2, lease=LEASE)
    finally:
        ended.set()
        killer.join()

    assert terminated > 0
    assert expected == owners(expanded)
    assert (16_000, 14_000) == (result.scanned, result.assigned)


SESSIONS = """
    SELECT pid FROM pg_stat_activity
    WHERE application_name LIKE 'leadprotect backfill%%' AND datname = current_database()
    """


def terminate_all(database: Database) -> int:
    return sum(database.sql("SELECT pg_terminate_backend(%s, 5000)", pid)[0] for pid in database.sql(SESSIONS))


@pytest.mark.profiles("pg18")
def test_a_failover_that_ends_all_of_its_sessions_does_not_end_the_run(expanded: Database) -> None:
    expected = old_leads(expanded, 16_000)
    with running(expanded, "leadprotect", "backfill", "DE", *SLICES, "--workers", "2") as process:
        while len(expanded.sql(SESSIONS)) < 3:
            assert process.poll() is None
        assert terminate_all(expanded) >= 3
        _, said = process.communicate()

    assert 0 == process.returncode, said
    assert expected == owners(expanded)
    assert (16_000, 14_000) == counted(expanded)


@pytest.mark.profiles("pg18")
def test_the_end_of_a_run_survives_the_loss_of_its_sessions(expanded: Database) -> None:
    """While a locked lead is waited for, all workers have ended already."""
    expected = old_leads(expanded, 40)
    with expanded.connect() as holder:
        lead = next(iter(expected))
        insert = "INSERT INTO {schema}.user_lead_assignments (lead_id, territory, source) VALUES (%s, 'DE', 'release')"
        expanded.query(holder, insert, lead)
        with running(expanded, "leadprotect", "backfill", "DE") as process:
            while expanded.sql("SELECT count(*) FROM {schema}.backfill_deferred") != [1]:
                time.sleep(0.01)
            assert terminate_all(expanded) >= 2
            while not expanded.sql(SESSIONS):  # it has noticed
                assert process.poll() is None
            holder.rollback()
            _, said = process.communicate()

    assert 0 == process.returncode, said
    assert expected == owners(expanded)


@pytest.mark.profiles("pg18")
def test_a_run_that_fails_midway_does_not_say_that_nothing_was_written(expanded: Database) -> None:
    old_leads(expanded, 400)
    expanded.sql("SELECT {schema}.backfill_request('DE', 'pause', 'until its login is gone')")
    login = expanded.profile.login("operator")
    environment = os.environ | expanded.environment | {"DATABASE_URL": expanded.login_url("operator")}
    with Forked(["leadprotect", "backfill", "DE"], environment) as process:
        assert "paused" in process.stderr.readline()
        expanded.sql(f'REVOKE "{expanded.settings.role("operator")}" FROM "{login}"')
        try:
            expanded.sql("SELECT {schema}.backfill_request('DE', 'run', NULL)")
            _, said = process.communicate()
        finally:
            expanded.sql(f'GRANT "{expanded.settings.role("operator")}" TO "{login}"')

    assert 5 == process.returncode
    assert "Error: failed midway: " in said
    assert "what was done stays, go on with: leadprotect backfill DE" in said


def test_a_worker_that_lost_its_lease_writes_nothing_more(expanded: Database) -> None:
    expected = old_leads(expanded, 10)
    with expanded.connect(autocommit=True) as slow, expanded.connect(autocommit=True) as fast:
        claim = "SELECT chunk, token FROM {schema}.backfill_claim('DE', 100, %s, make_interval(secs => %s))"
        ((chunk, token),) = expanded.query(slow, claim, "slow", 0.01)
        time.sleep(0.02)
        ((taken, newer),) = expanded.query(fast, claim, "fast", 30)
        with pytest.raises(psycopg.Error) as refused:
            expanded.query(slow, "SELECT {schema}.backfill_slice('DE', %s, %s, 100)", chunk, token)
        assert [] == owners_made(expanded)
        expanded.query(fast, "SELECT {schema}.backfill_slice('DE', %s, %s, 100)", taken, newer)

    assert (chunk, token + 1, "LP410") == (taken, newer, refused.value.sqlstate)
    assert expected == owners(expanded)


def test_a_lease_that_is_not_over_is_respected(expanded: Database) -> None:
    old_leads(expanded, 10)
    claim = "SELECT chunk FROM {schema}.backfill_claim('DE', 4, %s, '30 s')"

    assert [1, 2, 3, None] == [expanded.sql(claim, f"worker {number}")[0] for number in range(4)]


@pytest.mark.profiles("pg18")
def test_a_process_stopped_right_after_its_claim_holds_nobody_beyond_its_lease(expanded: Database) -> None:
    """SIGSTOP, a laptop that sleeps, a virtual machine that is moved: alive for the server, and silent."""
    expected = old_leads(expanded, 2_000)
    with subprocess.Popen([sys.executable, "-c", STOPS_ITSELF], env=os.environ | expanded.environment) as stopped:
        try:
            os.waitpid(stopped.pid, os.WUNTRACED)
            other = threading.Thread(target=backfill, args=(expanded.url, "DE"), kwargs={"lease": LEASE})
            other.start()
            other.join(120)
            stuck = other.is_alive()
        finally:
            stopped.kill()
    other.join()

    assert not stuck
    assert expected == owners(expanded)
    assert (2_000, 1_750) == counted(expanded)


@pytest.mark.profiles("pg18")
def test_a_worker_s_session_that_is_idle_in_a_transaction_is_ended_by_the_server(
    expanded: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of ours leaves one; whatever does must not hold the others."""
    monkeypatch.setattr(worker, "_IDLE_S", 1)
    run = worker.Run(
        expanded.settings, expanded.url, ("DE",), 700, LEASE, Throttle(expanded.url, expanded.settings, ())
    )
    with run.connect() as conn, expanded.connect(autocommit=True) as other:
        conn.autocommit = False
        expanded.query(conn, "SELECT {schema}.backfill_claim('DE', 700, 'frozen', '30 s')")
        expanded.query(other, "SELECT {schema}.backfill_claim('DE', 700, 'other', '30 s')")
        with pytest.raises(psycopg.Error):
            conn.execute("SELECT 1")
        assert conn.closed


@pytest.mark.profiles("pg18")
def test_a_claim_that_waits_for_another_session_says_so(expanded: Database) -> None:
    expected = old_leads(expanded, 100)
    held = threading.Event()
    said: list[str] = []

    def tell(progress: Progress) -> None:
        said.append(progress.reason or "")
        if "holds the job of DE" in said[-1]:
            holder.rollback()

    with expanded.connect() as holder:
        arguments = {"gate": lambda: None if held.is_set() else "not yet", "on_progress": tell}
        other = threading.Thread(target=backfill, args=(expanded.url, "DE"), kwargs=arguments)
        other.start()
        while not any("not yet" in one for one in said):
            time.sleep(0.01)
        expanded.query(holder, "SELECT FROM {schema}.backfill_jobs WHERE territory = 'DE' FOR UPDATE")
        held.set()
        other.join(120)
        holder.rollback()
        other.join()

    assert "another session holds the job of DE" in said
    assert expected == owners(expanded)


@pytest.mark.profiles("pg18")
def test_workers_in_several_processes_share_the_work(expanded: Database) -> None:
    expected = old_leads(expanded, 16_000)
    words, environment = ("tests.support.backfilling", "40", "2", "60"), os.environ | expanded.environment
    claimants = "SELECT count(DISTINCT split_part(worker, ':', 2)) FROM {schema}.backfill_chunks"
    with expanded.connect() as holder:
        # neither can finish a chunk before both have claimed one
        expanded.query(holder, "LOCK TABLE {schema}.user_lead_assignments IN SHARE ROW EXCLUSIVE MODE")
        with Forked(words, environment) as first, Forked(words, environment) as second:
            while expanded.sql(claimants) != [2]:
                time.sleep(0.01)
            holder.rollback()
            assert [0, 0] == [first.wait(), second.wait()]
    workers = expanded.sql("SELECT DISTINCT split_part(worker, ':', 2) FROM {schema}.backfill_chunks")

    assert {str(first.pid), str(second.pid)} == set(workers)
    assert expected == owners(expanded)
    assert (16_000, 14_000) == counted(expanded)


def leased(database: Database) -> list[Any]:
    """Chunks that were not given back: the next run would wait for their lease."""
    return database.sql(
        "SELECT chunk FROM {schema}.backfill_chunks WHERE finished_at IS NULL AND lease_until > clock_timestamp()"
    )


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_after_the_current_slice_and_says_how_to_go_on(expanded: Database, number: int) -> None:
    expected = old_leads(expanded, 16_000)
    with running(expanded, "leadprotect", "backfill", "DE", *SLICES) as process:
        process.send_signal(number)
        _, said = process.communicate()
    assert 128 + number == process.returncode
    assert "go on with: leadprotect backfill DE" in said
    assert (len(owners_made(expanded)),) == counted(expanded)[1:]
    assert [] == leased(expanded)

    backfill(expanded.url, "DE")

    assert expected == owners(expanded)
    assert (16_000, 14_000) == counted(expanded)


@pytest.mark.profiles("pg18")
def test_ctrl_c_between_the_starts_of_two_workers_ends_both(
    expanded: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_leads(expanded, 2_000)
    monkeypatch.setattr(worker.Worker, "start", start_interrupted)

    with pytest.raises(KeyboardInterrupt):
        backfill(expanded.url, "DE", batch_size=700, workers=2)

    assert [] == [thread.name for thread in threading.enumerate() if isinstance(thread, worker.Worker)]
    assert [] == leased(expanded)
    assert (len(owners_made(expanded)),) == counted(expanded)[1:]


def start_interrupted(thread: worker.Worker) -> None:
    """As if the signal came right after the second thread began to run."""
    threading.Thread.start(thread)
    if thread.label.endswith(":2"):
        raise KeyboardInterrupt


@pytest.mark.profiles("pg18")
def test_a_chunk_is_given_back_although_its_row_is_held_for_a_moment(expanded: Database) -> None:
    old_leads(expanded, 16_000)
    with expanded.connect() as holder, running(expanded, "leadprotect", "backfill", "DE") as process:
        held = expanded.query(holder, "SELECT chunk FROM {schema}.backfill_chunks WHERE finished_at IS NULL FOR UPDATE")
        assert len(held) == 1
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(worker.STATEMENT_TIMEOUT_MS / 1000 * 3)
        holder.rollback()
        assert process.wait() == 130

    assert [] == leased(expanded)
