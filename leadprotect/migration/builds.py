"""A second index build beside that of a revision, on the session that holds the lock of the migration.

That session is idle while a revision works, is in autocommit and pinned like the others, so no further one is needed: a
host's engine gives what it gave before. It keeps its lock meanwhile, also where the build is cancelled.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psycopg

from leadprotect.database import blockers
from leadprotect.database.opening import LOCK_TIMEOUT_MS
from leadprotect.migration import locks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from sqlalchemy import Connection

    SecondBuild = Callable[[str, list[str]], AbstractContextManager[None] | None]

WORTH_BYTES = 64 * 1024 * 1024
"""A table that is smaller is indexed within a second or two: nobody waits for that."""

_POLL_S = 0.2

# each build takes so many workers and a process of its own
_ROOM = """
    SELECT least(current_setting('max_parallel_workers')::integer, current_setting('max_worker_processes')::integer)
             >= 2 * (current_setting('max_parallel_maintenance_workers')::integer + 1)
       AND current_user = %s
       AND (SELECT bool_and(%s <= coalesce(
                     (SELECT sum(pg_relation_size(part.relid)) FROM pg_partition_tree(to_regclass(host.name)) AS part),
                     pg_relation_size(to_regclass(host.name))))
            FROM unnest(%s::text[]) AS host (name))
    """


def second_builds(guard: psycopg.Connection[Any], connection: Connection, lost: locks.Budget) -> SecondBuild:
    """What a revision is given: a function of a statement and of the tables that are indexed at once.

    It answers with a block, during which the statement is carried out on `guard`, or with None where that
    would gain nothing: where the server has no workers for two builds, a table is small, or the first one is
    among the others. Nor where a listener of the host gave the revisions a role of their own.
    """

    def given(statement: str, tables: list[str]) -> AbstractContextManager[None] | None:
        if tables[0] in tables[1:]:
            return None
        role = connection.exec_driver_sql("SELECT current_user").scalar()
        room = guard.execute(_ROOM, (role, WORTH_BYTES, tables)).fetchone()
        return _built(guard, connection, lost, statement) if room and room[0] else None

    return given


@contextmanager
def _built(
    guard: psycopg.Connection[Any], connection: Connection, lost: locks.Budget, statement: str
) -> Iterator[None]:
    """Carry out `statement` on `guard` meanwhile; a block that ends with an error ends the build, too.

    While the block lasts, the build waits as long as it must: for the snapshot of the other one, most of all. From
    then on it waits as long as the budget lasts. Raises `LockUnavailable` then, and what the statement raises.
    """
    failed: list[Exception] = []

    def build() -> None:
        try:
            guard.execute(statement.encode())
        except Exception as error:  # noqa: BLE001 - whatever it is, the revision ends with it
            failed.append(error)

    guard.execute("SET lock_timeout = 0")
    thread = threading.Thread(target=build, name="leadprotect-build", daemon=True)
    thread.start()
    try:
        yield
        _await(thread, guard, connection, lost)
    finally:
        while thread.is_alive():  # again: it may not have begun when it is told to end
            with suppress(psycopg.Error):
                guard.cancel_safe()
            thread.join(_POLL_S)
        with suppress(psycopg.OperationalError):  # a session that is gone waits for nobody
            guard.execute(f"SET lock_timeout = '{LOCK_TIMEOUT_MS}ms'")
    if failed:
        raise failed[0]


def _await(
    thread: threading.Thread, guard: psycopg.Connection[Any], connection: Connection, lost: locks.Budget
) -> None:
    """Wait for the build, from the session of the other one, which has nothing left to do."""
    session: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
    with blockers.watch(session, guard.info.backend_pid) as seen:
        free = time.monotonic()
        while thread.is_alive():
            thread.join(_POLL_S)
            who = seen()
            if not who:
                free = time.monotonic()
            elif time.monotonic() - free > lost.rest:
                raise locks.unavailable(lost, who)
