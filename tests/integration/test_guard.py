"""The guard with its hands on a real database: what it stops, sweeps, undoes, resumes, and leaves to a person."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import psycopg
import pytest

from leadprotect.backfilling import jobs
from leadprotect.gates import interventions, rollout, runs
from leadprotect.gates.guard import Guard
from leadprotect.gates.machine import Patience
from leadprotect.gates.verdict import Verdict
from tests.migrations.test_preflight import deploying_as, refused
from tests.support.alembic import wait_for, waiting
from tests.support.database import Database
from tests.support.leads import old_leads
from tests.support.revisions import HEAD, MIGRATE_HEAD, NAMED
from tests.support.scripted import evaluation, guarding

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.profiles("pg18")

NEXT = NAMED["contract_indexes"]
UP = ("alembic", "upgrade", NEXT)
LONG = ("--interval", "1s", "--bake", "10min", "--resume-after", "1")


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The file that says what the gates say."""
    return tmp_path / "verdict"


def last_run(database: Database) -> tuple[str, str | None, bool]:
    """How the newest run stands: its state, where it began, and whether it has ended."""
    found: list[tuple[str, str | None, bool]] = database.sql(
        "SELECT state, began, ended_at IS NOT NULL FROM {schema}.guard_runs ORDER BY started_at DESC LIMIT 1"
    )
    return found[0]


def invalid(database: Database) -> list[str]:
    return database.sql("SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid")


def test_ddl_in_flight_is_cancelled_and_its_leftover_is_swept_later(host: Database, script: Path) -> None:
    begin = NAMED["expand_rules"]
    host.upgrade(begin)
    with host.connect() as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        host.query(reader, "SELECT FROM {leads}")  # an index build waits for whoever holds a snapshot
        with guarding(host, script, "alembic", "upgrade", NAMED["expand_indexes"], options=LONG) as guard:
            wait_for(host, "SELECT 1 FROM pg_stat_progress_create_index WHERE phase LIKE 'waiting%'")
            bystander = host.connect()
            bystander.execute("SET application_name = 'somebody else'")
            guard.gates("ROLLBACK")
            assert 20 == guard.ended(), guard.said
            assert bystander.execute("SELECT 1").fetchone() == (1,)
            bystander.close()
    assert begin == host.revision()
    # whoever holds up the build holds up the sweep as well
    assert ["ix_leadprotect_leads"] == invalid(host)
    assert "an invalid index may be left for the next upgrade" in guard.said
    with host.connect(autocommit=True) as conn:
        assert ["ix_leadprotect_leads"] == interventions.sweep(conn, host.settings)
        assert [] == interventions.sweep(conn, host.settings)
    assert [] == invalid(host)


def test_who_asked_to_pause_instead_gets_no_rollback(expanded: Database, script: Path) -> None:
    with guarding(expanded, script, *UP, options=(*LONG, "--on-rollback", "pause")) as guard:
        guard.until("every step is done")
        guard.gates("ROLLBACK")
        assert 10 == guard.ended(), guard.said
    assert NEXT == expanded.revision()
    assert f"to go back instead: leadprotect rollback --to {MIGRATE_HEAD}" in guard.said
    assert ("paused", MIGRATE_HEAD, True) == last_run(expanded)


def test_a_dry_run_says_what_it_would_do_and_does_nothing(expanded: Database, script: Path) -> None:
    with guarding(expanded, script, *UP, options=(*LONG, "--dry-run")) as guard:
        guard.until("every step is done")
        guard.gates("PAUSE")
        guard.until("dry run: would pause the backfill")
        guard.gates("ROLLBACK")
        assert 20 == guard.ended(), guard.said
    assert f"dry run: would run alembic upgrade {NEXT}" in guard.said
    assert f"dry run: would roll back to {MIGRATE_HEAD}" in guard.said
    assert MIGRATE_HEAD == expanded.revision()
    assert [0] == expanded.sql("SELECT count(*) FROM {schema}.guard_runs")


@pytest.mark.parametrize("verdict", ["PAUSE", "ROLLBACK", "UNKNOWN"])
def test_nothing_begins_while_the_gates_are_not_good(expanded: Database, script: Path, verdict: str) -> None:
    with guarding(expanded, script, *UP, verdict=verdict) as guard:
        assert 30 == guard.ended(), guard.said
    assert f"refused at the start, {verdict}: scripted: the file says {verdict}" in guard.said
    assert MIGRATE_HEAD == expanded.revision()


def test_a_second_guard_is_turned_away_and_told_who_is_there(expanded: Database, script: Path) -> None:
    with guarding(expanded, script, *UP, options=LONG) as first:
        first.until("every step is done")
        with guarding(expanded, script, *UP) as second:
            assert 11 == second.ended(), second.said
        assert "another guard of schema leadprotect is at work: pid " in second.said
        assert first.process.poll() is None


def test_the_lock_of_a_guard_that_has_just_ended_is_waited_for(
    expanded: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = expanded.settings
    with expanded.connect() as ended, expanded.connect(autocommit=True) as conn, ThreadPoolExecutor() as pool:
        assert runs.lock(ended, s) is None
        monkeypatch.setattr(runs, "_ENDS_WITHIN_S", 0.0)
        assert "pid " in str(runs.lock(conn, s))
        monkeypatch.setattr(runs, "_ENDS_WITHIN_S", 60.0)
        waiting = pool.submit(runs.lock, conn, s)
        ended.close()
        assert waiting.result() is None


def test_a_command_that_fails_is_not_rolled_back(expanded: Database, script: Path) -> None:
    with guarding(expanded, script, "alembic", "-x", "lock_budget=nonsense", "upgrade", NEXT) as guard:
        assert 1 == guard.ended(), guard.said
    assert "lock_budget: 'nonsense' is not a duration" in guard.said
    assert ("failed", MIGRATE_HEAD, True) == last_run(expanded)


def test_a_gate_of_contract_that_is_closed_is_no_failure(expanded: Database, script: Path) -> None:
    old_leads(expanded, 3)  # they have activities, and no owner yet
    with guarding(expanded, script, *UP) as guard:
        assert 0 == guard.ended(), guard.said
    assert MIGRATE_HEAD == expanded.revision()
    assert "its gate is closed" in guard.said


def test_ctrl_c_leaves_it_paused_and_the_same_command_goes_on(expanded: Database, script: Path) -> None:
    with guarding(expanded, script, *UP, options=LONG) as guard:
        guard.until("every step is done")
        guard.process.terminate()
        assert 10 == guard.ended(), guard.said
    assert "SIGTERM: leaving, with everything paused" in guard.said
    assert ("paused", MIGRATE_HEAD, True) == last_run(expanded)
    with guarding(expanded, script, *UP) as again:
        assert 0 == again.ended(), again.said
    assert f"would roll back to where it began, {MIGRATE_HEAD}" in again.said


# --- the backfill


def test_a_backfill_is_paused_with_its_acknowledgement_resumed_and_ended(expanded: Database, script: Path) -> None:
    old_leads(expanded, 3)
    expanded.sql("CREATE TABLE crm.not_yet ()")
    waits = "SELECT to_regclass('crm.not_yet') IS NULL"
    with guarding(
        expanded, script, "leadprotect", "backfill", "DE", "CH", "--hold-unless", waits, options=LONG
    ) as guard:
        guard.until("the SQL condition is not true")
        guard.gates("PAUSE")
        guard.until("paused the backfill of CH, DE: no slice is under way")
        guard.gates("PROCEED")
        guard.until("resumed the backfill of CH, DE")
        guard.gates("ROLLBACK")
        assert 20 == guard.ended(), guard.said
    with expanded.connect() as conn:
        assert ["paused", "paused"] == [job.state for job in jobs.list_jobs(conn, settings=expanded.settings)]
    assert "the backfill of CH, DE stays paused until then" in guard.said
    assert [] == expanded.sql("SELECT FROM pg_stat_activity WHERE application_name = 'leadprotect backfill'")
    assert MIGRATE_HEAD == expanded.revision()


def test_a_pause_of_somebody_else_is_not_taken_back(expanded: Database, script: Path) -> None:
    with expanded.connect(autocommit=True) as conn:
        jobs.pause(conn, ["CH"], reason="the DBA asked", settings=expanded.settings)
        jobs.pause(conn, ["DE"], reason="leadprotect guard: an earlier run", settings=expanded.settings)
        with guarding(expanded, script, *UP) as guard:
            guard.until("resumed the backfill of DE")
        states = {job.territory: job.state for job in jobs.list_jobs(conn, settings=expanded.settings)}
    assert "paused" == states["CH"]
    assert "paused" != states["DE"]


# --- logins that are no superusers


def test_an_operator_guards_a_backfill(expanded: Database, script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old_leads(expanded, 3)
    monkeypatch.setattr(Database, "url", expanded.login_url("operator"))
    with guarding(expanded, script, "leadprotect", "backfill", "DE", "CH") as guard:
        assert 0 == guard.ended(), guard.said
    monkeypatch.undo()
    assert ("done", MIGRATE_HEAD, True) == last_run(expanded)


def test_a_login_that_deploys_sees_what_the_guard_before_it_left(
    make_database: Callable[..., Database], script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = make_database("host")
    database = replace(database, overrides={"schema": f"s {database.name}"})  # roles are shared: it needs its own
    monkeypatch.setenv("LEADPROTECT_SCHEMA", database.settings.schema)
    with deploying_as(database, "NOCREATEROLE", monkeypatch) as login:
        with refused(database, "may not create the schema") as statements:
            pass
        for statement in statements:
            database.sql(statement)
        database.upgrade(MIGRATE_HEAD)
        with monkeypatch.context() as patch:
            patch.setattr(Database, "url", database.server.url(database.name, login))
            with guarding(database, script, *UP, options=LONG) as guard:
                guard.until("every step is done")
                guard.kill()
            with guarding(database, script, *UP, options=LONG) as again:
                again.until(f"would roll back to where it began, {MIGRATE_HEAD}")
                again.until("every step is done")
                again.gates("ROLLBACK")
                assert 20 == again.ended(), again.said
        assert ("rolled_back", MIGRATE_HEAD, True) == last_run(database)
        database.downgrade()


# --- a guard that is killed, at each state


def test_a_guard_killed_while_it_is_watched_is_followed_by_one_that_goes_back_as_far(
    expanded: Database, script: Path
) -> None:
    with guarding(expanded, script, *UP, options=LONG) as guard:
        wait_for(expanded, "SELECT 1 FROM {schema}.guard_runs WHERE state = 'baking'")
        guard.kill()
    assert ("baking", MIGRATE_HEAD, False) == last_run(expanded)
    with guarding(expanded, script, *UP, options=LONG) as again:
        again.until("every step is done")
        assert [1] == expanded.sql("SELECT count(*) FROM {schema}.guard_runs WHERE ended_at IS NULL")
        again.gates("ROLLBACK")
        assert 20 == again.ended(), again.said
    assert MIGRATE_HEAD == expanded.revision()


def test_a_guard_killed_while_a_step_runs_leaves_a_whole_step(expanded: Database, script: Path) -> None:
    with expanded.connect() as writer:
        expanded.query(writer, "LOCK TABLE {leads} IN ROW EXCLUSIVE MODE")
        with guarding(expanded, script, *UP, options=LONG) as guard:
            waiting(expanded)
            guard.kill()
    assert ("running", MIGRATE_HEAD, False) == last_run(expanded)
    with guarding(expanded, script, *UP) as again:
        assert 0 == again.ended(), again.said
    assert NEXT == expanded.revision()


def test_a_guard_killed_while_it_is_paused_leaves_it_paused(expanded: Database, script: Path) -> None:
    with guarding(expanded, script, *UP, options=LONG) as guard:
        guard.until("every step is done")
        guard.gates("PAUSE")
        guard.until("guard     paused")
        wait_for(expanded, "SELECT 1 FROM {schema}.guard_runs WHERE state = 'held'")
        guard.kill()
    assert ("held", MIGRATE_HEAD, False) == last_run(expanded)
    with guarding(expanded, script, *UP) as again:
        assert 0 == again.ended(), again.said


def test_a_rollback_that_was_killed_is_finished_by_a_person_and_then_all_is_well(
    expanded: Database, script: Path
) -> None:
    with guarding(expanded, script, *UP, options=LONG) as guard:
        guard.until("every step is done")
        with expanded.connect() as writer:
            expanded.query(writer, "LOCK TABLE {leads} IN ROW EXCLUSIVE MODE")
            guard.gates("ROLLBACK")
            wait_for(expanded, "SELECT 1 FROM {schema}.guard_runs WHERE state = 'rolling_back'")
            waiting(expanded)
            guard.kill()
    with guarding(expanded, script, *UP) as again:
        assert 30 == again.ended(), again.said
    assert f"Finish it: leadprotect rollback --to {MIGRATE_HEAD};" in again.said
    expanded.downgrade(MIGRATE_HEAD)
    with guarding(expanded, script, *UP) as after:
        assert 0 == after.ended(), after.said


def test_a_target_that_dies_during_the_rollback_is_waited_for(expanded: Database, script: Path) -> None:
    with guarding(expanded, script, *UP, options=LONG) as guard:
        guard.until("every step is done")
        with expanded.connect() as writer:
            expanded.query(writer, "LOCK TABLE {leads} IN ROW EXCLUSIVE MODE")
            guard.gates("ROLLBACK")
            waiting(expanded)
        admit(expanded, allowed=False)
        guard.until("rollback  no connection")
        admit(expanded, allowed=True)
        assert 20 == guard.ended(), guard.said
    assert MIGRATE_HEAD == expanded.revision()


def admit(database: Database, *, allowed: bool) -> None:
    """Let sessions into the database, or end those there are and let none in: as a server that is down."""
    with psycopg.connect(database.server.url("postgres"), autocommit=True) as conn:
        conn.execute(f'ALTER DATABASE "{database.name}" ALLOW_CONNECTIONS {allowed}'.encode())
        if not allowed:
            # all at once: who is ended first lets go what the next one waits for
            conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (database.name,))
            while conn.execute("SELECT 1 FROM pg_stat_activity WHERE datname = %s", (database.name,)).fetchone():
                time.sleep(0.01)


def test_a_target_that_stays_dead_is_left_to_a_person_and_its_state_is_kept(expanded: Database, script: Path) -> None:
    said: list[str] = []
    says = [Verdict.PROCEED]
    guard = Guard(
        rollout.read_command(UP), expanded.settings, ask=lambda _: evaluation(says[0]), interval=0.2,
        tell=lambda told: said.append(told.what), patience=Patience(bake=600, attempts=2),
    )  # fmt: skip
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(guard.run)
        wait_for(expanded, "SELECT 1 FROM {schema}.guard_runs WHERE state = 'baking'")
        with expanded.connect() as writer:
            expanded.query(writer, "LOCK TABLE {leads} IN ROW EXCLUSIVE MODE")
            says[0] = Verdict.ROLLBACK
            waiting(expanded)
        admit(expanded, allowed=False)
        outcome = running.result(60)
        admit(expanded, allowed=True)
    assert 21 == outcome.code, said
    assert "no connection to the database" in outcome.why
    assert (f"look at it, then go back by hand: leadprotect rollback --to {MIGRATE_HEAD}",) == outcome.following
    assert ("rolling_back", MIGRATE_HEAD, False) == last_run(expanded)
    with guarding(expanded, script, *UP) as again:
        assert 30 == again.ended(), again.said


def test_what_somebody_else_migrated_meanwhile_is_not_undone(expanded: Database, script: Path) -> None:
    with guarding(expanded, script, *UP, options=LONG) as guard:
        guard.until("every step is done")
        expanded.upgrade()
        guard.gates("ROLLBACK")
        assert 21 == guard.ended(), guard.said
    assert HEAD == expanded.revision()
    assert f"somebody else migrated it meanwhile: {HEAD}" in guard.said
    assert f"go back by hand: leadprotect rollback --to {MIGRATE_HEAD}" in guard.said


def test_what_a_host_built_on_ours_is_not_dropped(expanded: Database, script: Path) -> None:
    with guarding(expanded, script, "alembic", "upgrade", "head", options=LONG) as guard:
        guard.until("every step is done")
        expanded.sql("CREATE VIEW crm.reports AS SELECT * FROM {schema}.host_row_security")
        guard.gates("ROLLBACK")
        assert 21 == guard.ended(), guard.said
    assert HEAD == expanded.revision()
    assert "crm.reports" in guard.said


def test_a_guard_killed_while_it_stops_a_step_leaves_nothing_half_done(host: Database, script: Path) -> None:
    begin, build = NAMED["expand_rules"], NAMED["expand_indexes"]
    host.upgrade(begin)
    with host.connect() as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        host.query(reader, "SELECT FROM {leads}")
        with guarding(host, script, "alembic", "upgrade", build, options=LONG) as guard:
            wait_for(host, "SELECT 1 FROM pg_stat_progress_create_index WHERE phase LIKE 'waiting%'")
            guard.gates("ROLLBACK")
            guard.until("guard     stopping")
            guard.kill()
    with guarding(host, script, "alembic", "upgrade", build) as again:
        assert 0 == again.ended(), again.said
    assert build == host.revision()
    assert [] == invalid(host)
