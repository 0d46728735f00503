"""The row of a guard's run: where it began, what it does, and its heartbeat, for whoever comes after it.

The table comes with the revision of the gate. Before it, and after a rollback below it, there is no row;
two guards at once are kept apart by a session lock, which needs no table.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg

from leadprotect.database.catalog import one
from leadprotect.database.statements import as_role
from leadprotect.gates.machine import Last
from leadprotect.migration import locks
from leadprotect.settings import Settings, render

if TYPE_CHECKING:
    from collections.abc import Iterator

_NO_TABLE = (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedFunction)
_ENDS_WITHIN_S = 2.0
_POLL_S = 0.1


class GuardRun:
    """One run of a guard; its row is made as soon as its table is there."""

    def __init__(self, command: str, began: str | None) -> None:
        self.id = uuid4()
        self.command, self.began = command, began
        self.guard = f"{socket.gethostname()}:{os.getpid()}"

    def beat(
        self,
        conn: psycopg.Connection[Any],
        s: Settings,
        *,
        revision: str | None,
        state: str,
        reason: str,
        ended: bool = False,
    ) -> bool:
        """Say that it is alive, and what it does; whether there was a table to say it in."""
        values = (self.id, self.command, self.began, revision, self.guard, state, reason or None, ended)
        try:
            conn.execute(render("SELECT {schema}.guard_beat(%s, %s, %s, %s, %s, %s, %s, %s)", s), values)
        except _NO_TABLE:
            return False
        return True


def last(conn: psycopg.Connection[Any], s: Settings) -> Last | None:
    """The run that was begun last; None where none was, or before there is a table."""
    query = """
        SELECT guard, command, began, revision, state, reason FROM {schema}.guard_runs
        ORDER BY started_at DESC, run LIMIT 1
        """
    try:
        with _who_reads(conn, s):
            found = conn.execute(render(query, s)).fetchone()
    except _NO_TABLE:
        return None
    return Last(*found) if found else None


@contextmanager
def _who_reads(conn: psycopg.Connection[Any], s: Settings) -> Iterator[None]:
    """Row security shows the runs to operators, and to who acts as their owner, as whoever migrates may."""
    owner = s.role("owner")
    may = "SELECT pg_catalog.pg_has_role(r.oid, 'MEMBER') FROM pg_catalog.pg_roles AS r WHERE r.rolname = %s"
    with as_role(conn, owner) if one(conn, may, owner) else nullcontext():
        yield


def lock(conn: psycopg.Connection[Any], s: Settings) -> str | None:
    """Take the session lock of guards of this installation; who has it, where it is taken.

    A session that has just ended, of a guard that was killed or of this one, may hold it for a moment.
    """
    key = one(conn, "SELECT pg_catalog.hashtextextended(%s, 0)", f"leadprotect guard {s.schema}")
    until = time.monotonic() + _ENDS_WITHIN_S
    while True:
        if one(conn, "SELECT pg_catalog.pg_try_advisory_lock(%s)", key):
            return None
        if time.monotonic() >= until:
            break
        time.sleep(_POLL_S)
    return "; ".join(map(str, locks.holders(conn, key))) or "a session that is gone already"
