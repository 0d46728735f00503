"""Who acts, in which territory: transaction-local settings that every decision reads."""

from __future__ import annotations

import itertools
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import exc

from leadprotect.access.arguments import check_caller, check_text
from leadprotect.database.connection import driver_connection, owed, row
from leadprotect.errors import ConnectionUnusable, ContextMissing
from leadprotect.settings import current, ident

if TYPE_CHECKING:
    from collections.abc import Iterator

    from leadprotect.database.connection import AnyConnection

    _Driver = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]

_BLOCK_NOW = "pg_catalog.current_setting('leadprotect.block', true)"
_blocks = itertools.count(1)
_DEAD = (TransactionStatus.INERROR, TransactionStatus.UNKNOWN)


@contextmanager
def acting_as(
    conn: AnyConnection, user_id: UUID | str, territory: str, correlation_id: UUID | str | None = None
) -> Iterator[None]:
    """Let `user_id` act in `territory` until the block ends; then the outer context holds again.

    The settings are local to the caller's transaction: a commit or rollback inside the block ends
    them as well. Where a savepoint of the block is rolled back only after the block, the outer
    context comes back with the next call of leadprotect; SQL in between still has the inner one.
    Without `correlation_id`, the id of the current OpenTelemetry trace is taken.

    Raises `ContextMissing` without a user or territory (None or ''), and on a connection in autocommit
    (nothing would last to the next statement); `InvalidRequest` for a user that is no UUID and no
    text; `ProtectionUnavailable` when leadprotect is not installed in the database.
    Source: https://www.postgresql.org/docs/current/sql-set.html (SET LOCAL).
    """
    check_caller(user_id, territory)
    correlation = str(correlation_id) if isinstance(correlation_id, UUID) else correlation_id or trace_id()
    check_text("correlation_id", correlation)
    with declaring(conn, str(user_id), territory, correlation):
        yield


@contextmanager
def declaring(conn: AnyConnection, user_id: str, territory: str, correlation_id: str | None = None) -> Iterator[None]:
    """`acting_as` for ourselves: an auditor reads a territory without being a user in it ('')."""
    statement = f"SELECT context.*, {_BLOCK_NOW} FROM {ident(current().schema)}.context() AS context"
    *outer, outer_block = row(conn, statement)
    block = str(next(_blocks))
    row(conn, _setting(), (user_id, territory, correlation_id, block))
    driver = driver_connection(conn)
    if driver.info.transaction_status == TransactionStatus.IDLE:
        message = "acting_as needs a transaction; this connection is in autocommit, so nothing would last"
        raise ContextMissing(message)
    try:
        yield
    finally:
        _restore(conn, driver, (*outer, outer_block or ""), block)


def _restore(conn: AnyConnection, driver: _Driver, outer: tuple[str | None, ...], block: str) -> None:
    """Set the context as it was outside of `block`, or owe it where the transaction takes no statement.

    A rollback to a savepoint from inside the block leaves the block's context, any other takes it
    away: so what is owed asks first which block's context stands.
    """
    if driver.closed:
        return
    if driver.info.transaction_status not in _DEAD:
        owed.pop(driver, None)
        try:
            row(conn, _setting(), outer)
        except ConnectionUnusable as error:
            if isinstance(error.__cause__, (exc.DBAPIError, psycopg.Error)):
                raise
        else:
            return
    owed.setdefault(driver, []).append((f"{_setting()} WHERE {_BLOCK_NOW} = %s", (*outer, block)))


def declared(conn: AnyConnection) -> tuple[str | None, str | None, str | None]:
    """User, territory and correlation id as they are set now; '' and None both mean: not set."""
    user_id, territory, correlation_id = row(conn, f"SELECT * FROM {ident(current().schema)}.context()")
    return user_id, territory, correlation_id


def _setting() -> str:
    context = f"{ident(current().schema)}.set_context(%s::text, %s::text, %s::text)"
    return f"SELECT {context}, pg_catalog.set_config('leadprotect.block', %s, true)"


def trace_id() -> str | None:
    """The id of the current OpenTelemetry trace; who has one active has imported the package."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    span = trace.get_current_span().get_span_context()
    return f"{span.trace_id:032x}" if span.is_valid else None
