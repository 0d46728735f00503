"""Who acts, in which territory: transaction-local settings that every decision reads."""

from __future__ import annotations

from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING
from uuid import UUID

from psycopg.pq import TransactionStatus

from leadprotect._arguments import check_caller, check_text
from leadprotect._sql import driver_connection, row
from leadprotect.errors import ContextMissing
from leadprotect.settings import current, ident

if TYPE_CHECKING:
    from collections.abc import Iterator

    from leadprotect._sql import AnyConnection

_DEAD = (TransactionStatus.INERROR, TransactionStatus.UNKNOWN)


@contextmanager
def acting_as(
    conn: AnyConnection, user_id: UUID | str, territory: str, correlation_id: UUID | str | None = None
) -> Iterator[None]:
    """Let `user_id` act in `territory` until the block ends; then the outer context holds again.

    The settings are local to the caller's transaction: a commit or rollback inside the block ends
    them as well. Without `correlation_id`, the id of the current OpenTelemetry trace is taken when
    that package is installed.

    Raises `ContextMissing` without a user or territory (None or ''), and on a connection in autocommit
    (nothing would last to the next statement); `InvalidRequest` for a user that is no UUID and no
    text; `ProtectionUnavailable` when leadprotect is not installed in the database.
    Source: https://www.postgresql.org/docs/current/sql-set.html (SET LOCAL).
    """
    check_caller(user_id, territory)
    correlation = str(correlation_id) if isinstance(correlation_id, UUID) else correlation_id or _trace_id()
    check_text("correlation_id", correlation)
    with declaring(conn, str(user_id), territory, correlation):
        yield


@contextmanager
def declaring(conn: AnyConnection, user_id: str, territory: str, correlation_id: str | None = None) -> Iterator[None]:
    """`acting_as` for ourselves: an auditor reads a territory without being a user in it ('')."""
    outer = declared(conn)
    _set(conn, user_id, territory, correlation_id)
    if driver_connection(conn).info.transaction_status == TransactionStatus.IDLE:
        message = "acting_as needs a transaction; this connection is in autocommit, so nothing would last"
        raise ContextMissing(message)
    try:
        yield
    finally:
        # a failed transaction takes no statement, and its rollback restores the outer context itself
        if not driver_connection(conn).closed and driver_connection(conn).info.transaction_status not in _DEAD:
            _set(conn, *outer)


def declared(conn: AnyConnection) -> tuple[str | None, str | None, str | None]:
    """User, territory and correlation id as they are set now; '' and None both mean: not set."""
    user_id, territory, correlation_id = row(conn, f"SELECT * FROM {ident(current().schema)}.context()")
    return user_id, territory, correlation_id


def _set(conn: AnyConnection, user_id: str | None, territory: str | None, correlation_id: str | None) -> None:
    statement = f"SELECT {ident(current().schema)}.set_context(%s::text, %s::text, %s::text)"
    row(conn, statement, (user_id, territory, correlation_id))


def _trace_id() -> str | None:
    if find_spec("opentelemetry") is None:
        return None
    from opentelemetry import trace  # noqa: PLC0415 - optional, and nobody pays for it who has it not

    span = trace.get_current_span().get_span_context()
    return f"{span.trace_id:032x}" if span.is_valid else None
