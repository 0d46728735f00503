"""The record of a denial that must outlive the caller's transaction."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from leadprotect.database.connection import async_connection, driver_connection, mapped_errors
from leadprotect.errors import AuditUnavailable, LeadProtectError
from leadprotect.settings import current, ident

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from leadprotect.database.connection import AnyConnection

POOL_SIZE = 2
"""Connections of our own per process and login: a denial never waits for one of the caller's pool."""

TIMEOUT_S = 5.0
IDLE_S = 60.0
_GRACE_S = 0.2  # the pool's own answer, when it has one, says more

_pools: dict[tuple[int, str], ConnectionPool[psycopg.Connection[Any]]] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class Attempt:
    """An attempt as it was declared: what the record says besides what the server knows itself.

    `login` and `role` are those of the caller's connection (session_user, and current_setting('role')):
    a service may have changed either after it connected.
    """

    lead_id: Any
    action: str
    reason: str
    note: str | None
    user_id: str | None
    territory: str | None
    correlation_id: str | None
    login: str
    role: str


def record_denial(conn: AnyConnection, attempt: Attempt) -> None:
    """Write the denial and commit it, on a connection of our own with the login of `conn`.

    PostgreSQL has no autonomous transaction, so only another session's commit outlives the
    caller's rollback. Raises `AuditUnavailable` when it can't be written within 5 seconds.
    """
    s = current()
    schema = ident(s.schema)
    statement = (
        f"SELECT {schema}.record_denial(%s::{s.lead_id_type}, %s::{schema}.lead_action, %s::text, %s::text) "
        f"FROM {schema}.set_context(%s::text, %s::text, %s::text)"
    )
    a = attempt
    values = (a.lead_id, a.action, a.reason, a.note, a.user_id, a.territory, a.correlation_id)
    pool = _pool(conn)

    def write() -> None:
        with pool.connection(timeout=TIMEOUT_S) as own, mapped_errors(), _as_caller(own, a.login, a.role):
            own.execute(statement, values)

    _within_time(conn, write)


@contextmanager
def _as_caller(own: psycopg.Connection[Any], login: str, role: str) -> Iterator[None]:
    """Take on, for one transaction, what the caller took on after he connected.

    The privilege to record may be his role's alone, and the role is recorded. Only a superuser's
    session can have another login; behind a pooler the names may differ without that.
    """
    if login == own.info.user and role == "none":
        yield
        return
    with own.transaction():
        own.execute(
            "SELECT pg_catalog.set_config('session_authorization', %s, true) FROM pg_catalog.pg_roles "
            "WHERE rolname = session_user AND rolsuper AND rolname <> %s",
            (login, login),
        )
        own.execute("SELECT pg_catalog.set_config('role', %s, true)", (role,))
        yield


def close() -> None:
    """Close this process's connections of denials; the next denial opens them anew."""
    with _lock:
        pools = list(_pools.items())
        _pools.clear()
    for (pid, _), pool in pools:
        if pid == os.getpid():
            pool.close()


def _within_time(conn: AnyConnection, write: Callable[[], None]) -> None:
    """Call `write` in a thread of its own, but never wait longer than the caller can.

    A pooler in front of the server may hold a statement back until the caller's own transaction
    ends, which waits for us. Given up, it may still be written later.
    """
    written: Future[None] = Future()
    written.set_running_or_notify_cancel()  # who gives up waiting can't cancel it any more

    def run() -> None:
        try:
            write()
        except (LeadProtectError, psycopg.Error, PoolTimeout, PoolClosed) as error:
            written.set_exception(error)
        else:
            written.set_result(None)

    threading.Thread(target=run, name="leadprotect-audit", daemon=True).start()
    try:
        _wait(conn, written)
    except TimeoutError:
        message = (
            f"the denial could not be recorded within {TIMEOUT_S:g} s, so no answer is given; "
            "behind a pooler, give it a way of its own with the setting audit_url"
        )
        raise AuditUnavailable(message) from None
    except (LeadProtectError, psycopg.Error, PoolTimeout, PoolClosed) as error:
        message = f"the denial could not be recorded ({type(error).__name__}), so no answer is given"
        raise AuditUnavailable(message) from error


def _wait(conn: AnyConnection, written: Future[None]) -> None:
    timeout = TIMEOUT_S + _GRACE_S
    own = async_connection(conn)
    if own is None:
        written.result(timeout)
    else:  # only this task waits, not the event loop below it
        own.run_async(lambda _: asyncio.wait_for(asyncio.wrap_future(written), timeout))


def _pool(conn: AnyConnection) -> ConnectionPool[psycopg.Connection[Any]]:
    info = driver_connection(conn).info
    parameters: dict[str, Any] = dict(info.get_parameters())
    if info.password:
        parameters["password"] = info.password
    way = psycopg.conninfo.conninfo_to_dict(current().audit_url)
    if "host" in way or "hostaddr" in way:
        parameters = {name: value for name, value in parameters.items() if name not in ("host", "hostaddr", "port")}
    dsn = psycopg.conninfo.make_conninfo(**(parameters | way))
    key = (os.getpid(), dsn)  # a fork must not share its parent's sockets
    with _lock:
        if key not in _pools:
            _pools[key] = ConnectionPool(
                dsn,
                min_size=0,
                max_size=POOL_SIZE,
                max_idle=IDLE_S,
                kwargs={"autocommit": True, "application_name": "leadprotect audit", "prepare_threshold": None},
                name="leadprotect-audit",
                check=ConnectionPool.check_connection,
                open=True,
            )
        return _pools[key]
