"""Opens every connection that is ours, and pins what a role, a database or another user of it could turn against us."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg

from leadprotect.errors import PreflightError
from leadprotect.settings.quoting import ident

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    Address = str | Callable[[], str]

PINNED = {
    # names, operators and functions mean what the server's own catalog says: whoever may create in a
    # schema of the path could else put his own before them, and a DBA would run it
    "search_path": "pg_catalog",
    # a client of SQL_ASCII gets bytes instead of text, and no comparison with a text holds
    "client_encoding": "UTF8",
    # limits of a login are for its services: a migration that loses a session loses its lock
    "statement_timeout": "0",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    # off makes an error of each row that is hidden: whoever may see less than all would see nothing
    "row_security": "on",
    # a snapshot from before a lock says what was true before it
    "default_transaction_isolation": "read committed",
    # quotes mean what settings.literal writes; names in answers are written as the catalog has them
    "standard_conforming_strings": "on",
    "quote_all_identifiers": "off",
    # the driver reads times in this style only
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
}
"""Setting -> value, on every connection of ours.

Left as they are: default_transaction_read_only, which somebody set to keep a login from writing; the time zone,
in which "today" and an operator's own condition are meant; and what only says where and how fast (tablespaces,
memory, synchronous_commit).
"""

LOCK_TIMEOUT_MS = 60_000
"""A lock that is not to be had must not make a command wait for ever, unseen."""

POOLED = (
    "database_url leads to a transaction pooler (PgBouncer or the like), and this needs sessions of its own: "
    "set DATABASE_URL to the server itself, or to a pool in session mode"
)

_SINCE = {
    "createrole_self_grant": (160000, ""),  # else who migrates becomes a member of each role that he makes, a service
    "transaction_timeout": (170000, "0"),
}
"""Setting -> (the first server that knows it, value), pinned like the others."""
_PROBES = 20
_PID = "pg_catalog.pg_backend_pid()"


def open_connection(
    address: Address = "",
    *,
    application: str,
    autocommit: bool = True,
    lock_timeout: int = LOCK_TIMEOUT_MS,
    **parameters: Any,
) -> psycopg.Connection[Any]:
    """A pinned session of our own; `address` is what libpq reads, or a function that is asked for it each time.

    `lock_timeout` in milliseconds, `parameters` as psycopg takes them. Raises `psycopg.OperationalError`
    where nothing answers, which never names the password, and what `pin_session` raises.
    """

    def another() -> psycopg.Connection[Any]:
        conninfo = address() if callable(address) else address
        return psycopg.connect(conninfo, autocommit=True, application_name=application, **parameters)

    conn = another()
    try:
        pin_session(conn, another, lock_timeout=lock_timeout)
        conn.autocommit = autocommit
    except BaseException:
        conn.close()
        raise
    return conn


def pin_session(
    conn: psycopg.Connection[Any],
    another: Callable[[], AbstractContextManager[psycopg.Connection[Any]]],
    *,
    lock_timeout: int = LOCK_TIMEOUT_MS,
    more: dict[str, str] | None = None,
) -> int:
    """Pin a session that is ours alone, in one round trip; returns the id of the server's process.

    `conn` is in autocommit, and `another` opens one like it.

    Behind a pooler of transactions the session is anybody's: a setting of ours would be the next
    client's, and a session lock, too. Raises `PreflightError` there, before anything is set.
    """
    if pin(conn, lock_timeout=lock_timeout, more=more):
        return conn.info.backend_pid
    with another() as other:
        pairs = [(_backend(conn), _backend(other)) for _ in range(_PROBES)]
    if len({mine for mine, _ in pairs}) > 1 or any(mine == theirs for mine, theirs in pairs):
        raise PreflightError([POOLED])
    pid = pairs[0][0]
    pin(conn, lock_timeout=lock_timeout, pid=pid, more=more)
    return pid


def pin(
    conn: psycopg.Connection[Any],
    *,
    lock_timeout: int = LOCK_TIMEOUT_MS,
    pid: int | None = None,
    more: dict[str, str] | None = None,
) -> bool:
    """Pin the session if it is that of process `pid` (by default the one that answered when `conn` was made).

    Any other belongs to a pooler and is pinned for this transaction alone; returns whether it lasts.
    """
    mine = conn.info.backend_pid if pid is None else pid
    values = PINNED | {"lock_timeout": f"{lock_timeout}ms"} | (more or {})
    values |= {name: value for name, (since, value) in _SINCE.items() if conn.info.server_version >= since}
    foreign = f"{_PID} OPERATOR(pg_catalog.<>) {mine}"
    settings = ", ".join(f"pg_catalog.set_config('{name}', '{value}', {foreign})" for name, value in values.items())
    try:
        found = conn.execute(f"SELECT {_PID}, {settings}, {_ORIGIN.format(foreign=foreign)}", prepare=False).fetchone()
    except psycopg.errors.InsufficientPrivilege:
        raise PreflightError(
            [_REPLICA], [f"ALTER ROLE {ident(conn.info.user)} RESET session_replication_role;"]
        ) from None
    return found is not None and found[0] == mine


# only a superuser may set it, so it is touched only where somebody did
_ORIGIN = (
    "CASE WHEN pg_catalog.current_setting('session_replication_role') OPERATOR(pg_catalog.<>) 'origin' "
    "THEN pg_catalog.set_config('session_replication_role', 'origin', {foreign}) END"
)
_REPLICA = (
    "the sessions of this login or database begin with another session_replication_role than origin, "
    "so triggers would not run, and this login may not change that"
)


def _backend(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute(f"SELECT {_PID}", prepare=False).fetchone()
    return int(row[0]) if row else 0
