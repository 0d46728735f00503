"""The lock of a migration: kept whatever a login's presets are, checked before each stamp, its holder named."""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from alembic.util import CommandError

from leadprotect.database import opening
from leadprotect.migration import locks
from tests.support.alembic import alembic, started, until, waiting
from tests.support.revisions import HEAD, MIGRATE_HEAD, NAMED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.database import Database

pytestmark = [
    pytest.mark.profiles("pg18", "pg15"),
    pytest.mark.nightly_elsewhere("a lock of a session is the same on each version"),
]

BEFORE = NAMED["expand_rules"]
ADVISORY = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted"


@contextmanager
def writer(database: Database) -> Iterator[psycopg.Connection[Any]]:
    """Somebody whom an index build waits for."""
    with database.connect() as conn:
        database.query(conn, "LOCK TABLE {leads} IN ROW EXCLUSIVE MODE")
        yield conn


@contextmanager
def preset(database: Database, value: str) -> Iterator[None]:
    """A preset of the database: what a DBA set for its services."""
    database.sql(f'ALTER DATABASE "{database.name}" SET {value}')
    yield
    with psycopg.connect(database.server.url(), autocommit=True) as conn:
        conn.execute(f'ALTER DATABASE "{database.name}" RESET ALL')


def key(database: Database) -> int:
    s = database.settings
    name = f"leadprotect {s.version_table_schema}.{s.version_table} {s.schema}"
    found: int = database.sql("SELECT hashtextextended(%s, 0)", name)[0]
    return found


def versions(database: Database) -> list[str]:
    return database.sql("SELECT version_num FROM {versions}")


@pytest.mark.parametrize("value", ["idle_session_timeout = '500ms'", "idle_in_transaction_session_timeout = '200ms'"])
def test_an_idle_timeout_takes_no_lock_from_a_migration_that_waits(host: Database, value: str) -> None:
    host.upgrade(BEFORE)
    with preset(host, value), psycopg.connect(host.url) as conn:
        conn.execute("SET idle_in_transaction_session_timeout = 0; SET idle_session_timeout = 0")
        host.query(conn, "LOCK TABLE {leads} IN ROW EXCLUSIVE MODE")
        with started(host, "upgrade", MIGRATE_HEAD) as first:
            waiting(host)
            threading.Event().wait(1.2)
            with started(host, "upgrade", MIGRATE_HEAD) as second:
                until(second, "another migration of schema leadprotect is running")
                conn.rollback()
                ended = [process.communicate()[1] for process in (first, second)]
        assert [(0, True), (0, False)] == [
            (process.returncode, "Running upgrade" in said)
            for process, said in zip((first, second), ended, strict=True)
        ]
    assert [MIGRATE_HEAD] == versions(host)


def test_without_the_pin_an_idle_timeout_takes_it(host: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the same preset ends the session that holds the lock, and the migration says so."""
    host.upgrade(BEFORE)
    monkeypatch.setitem(opening.PINNED, "idle_session_timeout", "300ms")
    with writer(host) as conn:
        threading.Timer(1.5, conn.rollback).start()
        with pytest.raises(CommandError, match=r"no connection to the database|held the lock of this migration"):
            host.upgrade(MIGRATE_HEAD)
    assert [BEFORE] == versions(host)


def test_a_migration_that_lost_its_lock_stops_before_it_stamps(host: Database) -> None:
    host.upgrade(NAMED["expand_indexes"])
    with host.connect() as reader:
        host.query(reader, "LOCK TABLE {leads} IN SHARE MODE")
        with started(host, "upgrade", MIGRATE_HEAD) as process:
            until(process, "trying again")
            host.sql(f"SELECT pg_terminate_backend(pid) FROM ({ADVISORY}) AS holder")
            reader.rollback()
            said = process.communicate()[1]
    assert process.returncode != 0
    assert "the session that held the lock of this migration has ended" in said
    assert "run the same command again" in said
    assert "Traceback" not in said
    assert [NAMED["expand_indexes"]] == versions(host)
    host.upgrade()
    assert [HEAD] == versions(host)


def test_without_the_check_it_would_stamp_beside_another(host: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: nothing else stops a migration whose lock somebody else has by now."""
    monkeypatch.setattr(locks, "_check_held", lambda *_: None)
    host.upgrade(NAMED["expand_indexes"])
    with host.connect() as reader:
        host.query(reader, "LOCK TABLE {leads} IN SHARE MODE")
        ended = threading.Event()

        def end() -> None:
            waiting(host)
            host.sql(f"SELECT pg_terminate_backend(pid) FROM ({ADVISORY}) AS holder")
            reader.rollback()
            ended.set()

        thread = threading.Thread(target=end)
        thread.start()
        host.upgrade(NAMED["expand_lead_triggers"])
        thread.join()
    assert ended.is_set()
    assert [NAMED["expand_lead_triggers"]] == versions(host)


def test_whoever_holds_the_lock_is_named_and_waited_for_no_longer_than_asked(host: Database) -> None:
    """An advisory lock is anybody's to take; it must not hold a deploy for ever, and never unnamed."""
    host.sql("CREATE ROLE lp_stranger LOGIN")
    try:
        with psycopg.connect(host.server.url(host.name, "lp_stranger"), application_name="somebody's job") as conn:
            conn.execute("SELECT pg_advisory_lock(%s)", (key(host),))
            done = alembic(host, "-x", "lock_wait=1s", "upgrade", "head")
            pid = conn.info.backend_pid
    finally:
        host.sql("DROP ROLE lp_stranger")
    assert done.returncode != 0
    who = rf"pid {pid} \(somebody's job, login lp_stranger, connected since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC\)"
    assert re.search(rf"is held by no migration of ours: {who}", done.stderr)
    assert f"SELECT pg_terminate_backend({pid});" in done.stderr
    assert "-x lock_wait=30min" in done.stderr
    assert "Traceback" not in done.stderr
    assert host.revision() is None


def test_another_migration_is_told_from_a_stranger(host: Database) -> None:
    host.upgrade(BEFORE)
    with writer(host) as conn:
        with started(host, "upgrade", "head") as first:
            waiting(host)
            second = alembic(host, "-x", "lock_wait=1s", "upgrade", "head")
            conn.rollback()
            first.communicate()
    assert second.returncode != 0
    assert re.search(
        r"another migration of schema leadprotect is running; waiting for it: pid \d+ \(leadprotect migration, login "
        r"postgres, connected since",
        second.stderr,
    )
    assert "1 s are over" in second.stderr
    assert [HEAD] == versions(host)


@pytest.mark.parametrize("text", ["", "soon", "-1s", "1y"])
def test_a_wait_that_is_none_is_refused(host: Database, text: str) -> None:
    with pytest.raises(CommandError, match=f"-x lock_wait: '{text}' is not a duration; write 250ms"):
        host.upgrade("head", lock_wait=text)
