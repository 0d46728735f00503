"""Two index builds at once: both end well, or with an error that is said, whichever of them is ended in the middle."""

from __future__ import annotations

import re
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from leadprotect.migration import builds, locks
from tests.support import alembic as commands
from tests.support.alembic import started, until, wait_for
from tests.support.revisions import MIGRATE_HEAD, NAMED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.database import Database
    from tests.support.forked import Forked

pytestmark = [
    pytest.mark.profiles("pg18", "pg15"),
    pytest.mark.nightly_elsewhere("which sessions build is the same on each version"),
]

BEFORE, INDEXED = NAMED["expand_rules"], NAMED["expand_indexes"]
BUILDS = """
    FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'
    AND query LIKE 'CREATE INDEX CONCURRENTLY %%'
    """
BUILD_ON = f"SELECT pid {BUILDS} AND position(' ON ' || %s IN query) > 0 AND cardinality(pg_blocking_pids(pid)) > 0"
VALID = """
    SELECT to_regclass(path)::text FROM unnest(ARRAY['{leads_index_path}', '{activities_index_path}']) AS path
    JOIN pg_index AS i ON i.indexrelid = to_regclass(path) WHERE i.indisvalid
    """


@pytest.fixture(autouse=True)
def _none_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "PROGRAM", "tests.support.small_tables")


@contextmanager
def writing(database: Database, *tables: str) -> Iterator[psycopg.Connection[Any]]:
    """Somebody whom an index build on each of these tables waits for."""
    with psycopg.connect(database.url, application_name="nightly report") as conn:
        for table in tables:
            database.query(conn, f"LOCK TABLE {{{table}}} IN ROW EXCLUSIVE MODE")
        yield conn


@contextmanager
def under_way(database: Database, *arguments: str) -> Iterator[tuple[Forked, psycopg.Connection[Any], dict[str, int]]]:
    """An upgrade that builds both, each of which waits; and the sessions that build."""
    database.upgrade(BEFORE)
    with (
        writing(database, "leads", "activities") as writer,
        started(database, *arguments, "upgrade", INDEXED) as process,
    ):
        yield process, writer, {table: build_on(database, table) for table in ("leads", "activities")}


def build_on(database: Database, table: str) -> int:
    (name,) = database.sql(f"SELECT '{{{table}}}'")
    return int(wait_for(database, BUILD_ON, name))


def ended(process: Forked, database: Database, *, code: int) -> str:
    """What it said when it ended; no build outlives it, and there is no stack trace."""
    said = process.communicate()[1]
    assert code == min(process.wait(), 1)
    assert "Traceback" not in said
    wait_for(database, f"SELECT true WHERE NOT EXISTS (SELECT {BUILDS})")
    return str(said)


def ends_well(database: Database) -> None:
    """Run again: both stand."""
    database.upgrade(MIGRATE_HEAD)
    assert 2 == len(database.sql(VALID))


def test_both_are_built_at_once_on_the_way_up_and_down(host: Database) -> None:
    with under_way(host) as (process, writer, sessions):
        assert 2 == len({*sessions.values()})
        writer.commit()
        ended(process, host, code=0)
    assert 2 == len(host.sql(VALID))
    host.upgrade()
    host.downgrade(NAMED["contract_indexes"])
    assert [] == host.sql(VALID)
    with writing(host, "leads", "activities") as writer, started(host, "downgrade", MIGRATE_HEAD) as process:
        assert build_on(host, "leads") != build_on(host, "activities")
        writer.commit()
        ended(process, host, code=0)
    assert 2 == len(host.sql(VALID))


@pytest.mark.parametrize(
    ("table", "how"),
    [("leads", "pg_terminate_backend"), ("activities", "pg_cancel_backend")],
    ids=["leads", "activities"],
)
def test_where_one_is_ended_the_other_is_neither_left_running_nor_taken_for_done(
    host: Database, table: str, how: str
) -> None:
    with under_way(host) as (process, writer, sessions):
        host.sql(f"SELECT {how}(%s)", sessions[table])
        if table == "leads":  # the other one goes on to its end, and is kept
            writer.commit()
        said = ended(process, host, code=1)
    assert re.search("canceling statement due to user request" if "cancel" in how else "no connection", said)
    assert [BEFORE] == host.sql("SELECT version_num FROM {versions}")
    assert (1 if table == "leads" else 0) == len(host.sql(VALID))
    ends_well(host)


def test_ctrl_c_ends_both(host: Database) -> None:
    with under_way(host) as (process, _writer, _sessions):
        process.send_signal(signal.SIGINT)
        assert "interrupted; nothing is half done" in ended(process, host, code=1)
    ends_well(host)


def test_after_kill_9_the_next_upgrade_waits_for_both(host: Database) -> None:
    with under_way(host) as (process, writer, _sessions):
        process.kill()
        process.communicate()
        # the server goes on with both, in one of which the lock of the migration is held
        with started(host, "upgrade", INDEXED) as second:
            until(second, "another migration of schema leadprotect is running")
            writer.commit()
            ended(second, host, code=0)
    assert 2 == len(host.sql(VALID))


def test_whoever_is_in_the_way_of_the_second_is_named_when_the_budget_is_used_up(host: Database) -> None:
    host.upgrade(BEFORE)
    with writing(host, "leads") as writer, started(host, "-x", "lock_budget=1s", "upgrade", INDEXED) as process:
        said = ended(process, host, code=1)
        named = f"no lock within the budget of 1 s; blocked by pid {writer.info.backend_pid} (nightly report"
    assert named in said
    assert 1 == len(host.sql(VALID))
    ends_well(host)


@pytest.mark.parametrize(
    "elsewhere",
    [
        "SET max_parallel_workers = 5",
        # a listener of the host may set one for each transaction: the second build would lack its rights, or have more
        "SET ROLE pg_monitor",
        None,
    ],
    ids=["no workers", "another role", "small tables"],
)
def test_where_two_builds_gain_nothing_there_is_no_second(
    host: Database, monkeypatch: pytest.MonkeyPatch, elsewhere: str | None
) -> None:
    monkeypatch.setattr(builds, "WORTH_BYTES", 8192)
    tables = host.sql("SELECT unnest(ARRAY['{leads}', '{activities}'])")
    host.activity(host.lead("DE"), host.user(1))
    with host.connect(autocommit=True) as guard, host.engine() as engine, engine.connect() as connection:
        room = builds.second_builds(guard, connection, locks.Budget())
        assert room("SELECT 1", tables) is not None
        if elsewhere:
            guard.execute(elsewhere.encode())
        else:
            monkeypatch.setattr(builds, "WORTH_BYTES", 8193)
        assert room("SELECT 1", tables) is None
