"""Which locks a migration takes on tables, as another session sees them."""

from __future__ import annotations

from contextlib import contextmanager
from threading import Thread
from typing import TYPE_CHECKING, Any

import psycopg
from sqlalchemy import Engine, create_engine, event, pool

from leadprotect.database.modes import MODES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

TRACED = "traced migration"
_HELD = """
SELECT w.name, l.mode
FROM unnest(%(names)s::text[], %(tables)s::text[]) AS w (name, place)
JOIN pg_catalog.pg_locks AS l ON l.relation = pg_catalog.to_regclass(w.place)
JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
WHERE l.granted AND a.datname = pg_catalog.current_database() AND a.application_name = %(application)s
"""
_IN_THE_WAY = (
    "SELECT pg_catalog.unnest(pg_catalog.pg_blocking_pids(a.pid)) FROM pg_catalog.pg_stat_activity AS a "
    "WHERE a.datname = pg_catalog.current_database() AND a.application_name = %s"
)


def trace_locks(
    url: str, tables: Mapping[str, str], migrate: Callable[[Engine], None], *, concurrently: bool
) -> dict[str, str]:
    """Let `migrate` run, and return the strongest lock on each of `tables` that was seen: name -> quoted table.

    A transaction keeps its locks to its end, so they are read just before it commits. A CONCURRENTLY
    step commits many times: it is made to wait for a transaction on each table, and read meanwhile.
    """
    seen: dict[str, str] = {}
    asked = {"names": [*tables], "tables": [*tables.values()], "application": TRACED}
    with psycopg.connect(url, autocommit=True) as watcher:

        def look(*_: Any) -> None:
            for table, mode in watcher.execute(_HELD, asked).fetchall():
                seen[table] = max(mode, seen.get(table, mode), key=MODES.index)

        if concurrently:
            with _holding(url, watcher, tables.values()) as waiting, _beside(url, migrate, look) as running:
                for _ in waiting(running):
                    look()
        else:
            with _engine(url, look) as engine:
                migrate(engine)
    return seen


@contextmanager
def _holding(url: str, watcher: psycopg.Connection[Any], tables: Any) -> Iterator[Callable[[Thread], Iterator[None]]]:
    """A transaction on each table; yields once while the migration waits for each, then lets it go on."""
    holders = [psycopg.connect(url) for _ in tables]
    for table, holder in zip(tables, holders, strict=True):
        holder.execute(f"LOCK TABLE {table} IN ROW EXCLUSIVE MODE")

    def each(running: Thread) -> Iterator[None]:
        left = {holder.info.backend_pid: holder for holder in holders}
        while left and running.is_alive():
            for (pid,) in watcher.execute(_IN_THE_WAY, (TRACED,)).fetchall():
                if holder := left.pop(pid, None):
                    yield
                    holder.rollback()
            running.join(0.01)

    try:
        yield each
    finally:
        for holder in holders:
            holder.close()


@contextmanager
def _engine(url: str, look: Callable[..., None]) -> Iterator[Engine]:
    engine = create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(url, application_name=TRACED),
        poolclass=pool.NullPool,
    )
    event.listen(engine, "commit", look)
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def _beside(url: str, migrate: Callable[[Engine], None], look: Callable[..., None]) -> Iterator[Thread]:
    """Run the migration beside the block, in the thread that it yields, and end with it."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            with _engine(url, look) as engine:
                migrate(engine)
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's own thread
            failed.append(error)

    thread = Thread(target=run)
    thread.start()
    try:
        yield thread
    finally:
        thread.join()
    if failed:
        raise failed[0]
