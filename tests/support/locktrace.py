"""Which locks a migration takes on the host's tables, as another session sees them."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import psycopg
from alembic import command
from sqlalchemy import create_engine, event, pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from alembic.script import Script

    from tests.support.database import Database

MODES = [
    "AccessShareLock",
    "RowShareLock",
    "RowExclusiveLock",
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
]
"""https://www.postgresql.org/docs/current/explicit-locking.html#LOCKING-TABLES, the weakest first."""

APPLICATION = "traced migration"
HELD = """
SELECT CASE l.relation WHEN {leads_name}::regclass THEN 'leads' ELSE 'activities' END, l.mode
FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.granted AND a.application_name = %s AND l.relation IN ({leads_name}::regclass, {activities_name}::regclass)
"""


def trace(database: Database, direction: str, script: Script) -> dict[str, str]:
    """Apply or undo one revision, and return the strongest lock on leads and on activities that was seen.

    A transaction keeps its locks to its end, so they are read just before it commits. A CONCURRENTLY
    step commits many times: it is made to wait for a transaction on each table, and read meanwhile.
    """
    target = script.revision if direction == "upgrade" else str(script.down_revision or "base")
    seen: dict[str, str] = {}
    with database.connect(autocommit=True) as watcher:

        def look(*_: Any) -> None:
            for table, mode in database.query(watcher, HELD, APPLICATION):
                seen[table] = max(mode, seen.get(table, mode), key=MODES.index)

        if "autocommit_block" in Path(script.path).read_text(encoding="utf-8"):
            with in_the_way(database) as waiting, migrating(database, direction, target, look) as running:
                for _ in waiting(running):
                    look()
        else:
            with migrating(database, direction, target, look):
                pass
    return seen


@contextmanager
def in_the_way(database: Database) -> Iterator[Callable[[Thread], Iterator[None]]]:
    """A transaction on each host table; yields once while the migration waits for each, then lets it go on."""
    tables = ["{leads}", "{activities}"]
    holders = [database.connect() for _ in tables]
    for table, holder in zip(tables, holders, strict=True):
        database.query(holder, f"LOCK TABLE {table} IN ROW EXCLUSIVE MODE")

    def each(running: Thread) -> Iterator[None]:
        left = {holder.info.backend_pid: holder for holder in holders}
        while left and running.is_alive():
            for pid in blockers(database):
                if holder := left.pop(pid, None):
                    yield
                    holder.rollback()

    try:
        yield each
    finally:
        for holder in holders:
            holder.close()


def blockers(database: Database) -> list[int]:
    return database.sql(
        "SELECT unnest(pg_blocking_pids(a.pid)) FROM pg_stat_activity AS a WHERE a.application_name = %s", APPLICATION
    )


@contextmanager
def migrating(database: Database, direction: str, revision: str, look: Any) -> Iterator[Thread]:
    """Run the migration beside the block, in the thread that it yields, and end with it."""
    engine = create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(database.url, application_name=APPLICATION),
        poolclass=pool.NullPool,
    )
    event.listen(engine, "commit", look)
    config = database.config()
    config.attributes["connection"] = engine
    failed: list[BaseException] = []

    def run() -> None:
        try:
            getattr(command, direction)(config, revision)
        except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
            failed.append(error)

    thread = Thread(target=run)
    thread.start()
    try:
        yield thread
    finally:
        thread.join()
        engine.dispose()
    if failed:
        raise failed[0]
