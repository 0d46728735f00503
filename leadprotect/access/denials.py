"""The record of a denial that must outlive the caller's transaction."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import psycopg

from leadprotect.access import ways
from leadprotect.database.opening import pin
from leadprotect.database.sqlstates import mapped_errors
from leadprotect.database.waiting import waiter
from leadprotect.errors import AuditUnavailable, LeadProtectError
from leadprotect.settings import current, render

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from leadprotect.database.drivers import AnyConnection
    from leadprotect.decision import Reason

TIMEOUT_S = 5.0
_GRACE_S = 0.2  # the answer of the connection itself, when it has one, says more


@dataclass(frozen=True)
class Attempt:
    """An attempt as it was declared: what the record says besides what the server knows itself.

    `login` and `role` are those of the caller's connection (session_user, and current_setting('role')):
    a service may have changed either after it connected. `ticket` is the number that was drawn for the
    denial, and the proof of it.
    """

    lead_id: Any
    action: str
    reason: Reason
    note: str | None
    user_id: str | None
    territory: str | None
    correlation_id: str | None
    login: str
    role: str
    ticket: str | None


def attempt(lead_id: Any, action: str, answer: str, note: str | None, facts: tuple[Any, ...]) -> Attempt:
    """An attempt that was answered; a denial comes with the ticket for its row."""
    reason, _, ticket = answer.partition(" ")
    user_id, territory, correlation_id, login, role = facts
    told = cast("Reason", reason)
    return Attempt(lead_id, action, told, note, user_id, territory, correlation_id, login, role, ticket or None)


def record_denials(conn: AnyConnection, attempts: Sequence[Attempt]) -> None:
    """Write denials of one caller and commit them, on a connection of our own with the login of `conn`.

    PostgreSQL has no autonomous transaction, so only another session's commit outlives the
    caller's rollback. Raises `AuditUnavailable` when they can't be written within 5 seconds: none is, then.
    """
    s = current()
    statement = render(
        "SELECT {schema}.record_denial(%s::{lead_type}, %s::{schema}.lead_action, "
        "%s::pg_catalog.text, %s::pg_catalog.text, %s::pg_catalog.text) "
        "FROM {schema}.set_context(%s::pg_catalog.text, %s::pg_catalog.text, %s::pg_catalog.text)",
        s,
    )
    every = [
        (a.lead_id, a.action, a.reason, a.note, a.ticket, a.user_id, a.territory, a.correlation_id) for a in attempts
    ]
    login, role = attempts[0].login, attempts[0].role
    caller = ways.caller(conn)
    deadline = time.monotonic() + TIMEOUT_S

    def write() -> None:
        with ways.way(caller.key).connection(caller, deadline) as (own, pinned), mapped_errors():
            if pinned and login == own.info.user and role == "none" and len(every) == 1:
                own.execute(statement, every[0])
                return
            with own.transaction():
                if not pinned:
                    pin(own, lock_timeout=0)
                _become(own, login, role)
                own.cursor().executemany(statement, every)

    _within_time(conn, write)


def _become(own: psycopg.Connection[Any], login: str, role: str) -> None:
    """Take on, for one transaction, what the caller took on after he connected.

    The privilege to record may be his role's alone, and the role is recorded. Only a superuser's
    session can have another login; behind a pooler the names may differ without that.
    """
    own.execute(
        "SELECT pg_catalog.set_config('session_authorization', %s, true) FROM pg_catalog.pg_roles "
        "WHERE rolname OPERATOR(pg_catalog.=) session_user AND rolsuper AND rolname OPERATOR(pg_catalog.<>) %s",
        (login, login),
    )
    own.execute("SELECT pg_catalog.set_config('role', %s, true)", (role,))


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
        except (LeadProtectError, psycopg.Error) as error:
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
    except AuditUnavailable:
        raise
    except (LeadProtectError, psycopg.Error) as error:
        what = f"{type(error).__name__}: {error}"
        message = f"the denial could not be recorded ({what}), so no answer is given: deny, and try again"
        raise AuditUnavailable(message) from error


def _wait(conn: AnyConnection, written: Future[None]) -> None:
    timeout = TIMEOUT_S + _GRACE_S
    wait = waiter(conn)
    if wait is None:
        written.result(timeout)
    else:  # only this task waits, not the event loop below it
        wait(lambda: asyncio.wait_for(asyncio.wrap_future(written), timeout))
