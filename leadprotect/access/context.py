"""Who acts, in which territory: transaction-local settings that every decision reads."""

from __future__ import annotations

import itertools
import sys
import threading
import weakref
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
from psycopg.pq import TransactionStatus

from leadprotect.access.arguments import check_caller, check_text
from leadprotect.database.connection import driver_connection, mapped_errors, of_driver, owed, row, rows
from leadprotect.errors import ConnectionUnusable, ContextMissing, ContextOutOfOrder
from leadprotect.settings import current, render

if TYPE_CHECKING:
    from collections.abc import Iterator

    from leadprotect.database.connection import AnyConnection

    _Driver = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]

_BLOCK_NOW = "pg_catalog.current_setting('leadprotect.block', true)"
_blocks = itertools.count(1)
# a statement that is still under way takes no other
_DEAD = (TransactionStatus.INERROR, TransactionStatus.UNKNOWN, TransactionStatus.ACTIVE)
_OUT_OF_ORDER = (
    "blocks of acting_as on one connection ended out of order, or on another thread than they began on, so none of "
    "them has a context any more: a connection belongs to one task or thread at a time; give each its own"
)


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
    text; `ContextOutOfOrder` where blocks of one connection end in another order than they were entered, or
    on another thread; `ProtectionUnavailable` when leadprotect is not installed in the database.
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
    require_order(conn)
    statement = f"SELECT context.*, {_BLOCK_NOW} FROM {render('{schema}', current())}.context() AS context"
    *outer, outer_block = row(conn, statement)
    driver = driver_connection(conn)
    block = _began(driver, outer_block or "")
    try:
        row(conn, _setting(), (user_id, territory, correlation_id, block.id))
        if driver.info.transaction_status == TransactionStatus.IDLE:
            message = "acting_as needs a transaction; this connection is in autocommit, so nothing would last"
            raise ContextMissing(message)
        yield
    finally:
        _ended(conn, driver, block, (*outer, outer_block or ""))


@dataclass(eq=False)
class _Block:
    """A block that was entered on `thread`, inside those of `around`; `lost` when its context was taken away."""

    id: str
    driver: weakref.ref[_Driver]
    around: tuple[_Block, ...]
    thread: int = field(default_factory=threading.get_ident)
    lost: bool = False


_standing: weakref.WeakKeyDictionary[_Driver, list[_Block]] = weakref.WeakKeyDictionary()
"""Driver's connection -> the blocks that stand on it, the innermost last."""

_entered: ContextVar[tuple[_Block, ...]] = ContextVar("leadprotect_entered", default=())
"""The blocks of this task or thread, the innermost last; a task that it starts is inside them, too."""


def require_order(conn: AnyConnection) -> None:
    """Raise `ContextOutOfOrder` where the context that stands on `conn` is another task's or thread's."""
    if not _standing and not _entered.get():
        return
    with mapped_errors():
        driver = driver_connection(conn)
    standing = _standing.get(driver, [])
    mine = next((block for block in reversed(_entered.get()) if block.driver() is driver), None)
    if mine is None:
        # one that was never entered here: a thread of its own has no part in it
        foreign = bool(standing) and standing[-1].thread != threading.get_ident()
    elif mine in standing:
        foreign = standing[-1] is not mine
        if foreign:
            _empty(conn, driver)
    else:
        foreign = mine.lost or not _within(mine, standing)
    if foreign:
        raise ContextOutOfOrder(_OUT_OF_ORDER)


def _within(block: _Block, standing: list[_Block]) -> bool:
    """Whether all that stands after the end of `block`'s transaction stood around it."""
    return all(other in block.around for other in standing)


def _began(driver: _Driver, outer: str) -> _Block:
    standing = _standing.setdefault(driver, [])
    # the context of a block ends with its transaction; what the server knows no more does not stand
    while standing and standing[-1].id != outer:
        standing.pop()
    block = _Block(str(next(_blocks)), weakref.ref(driver), tuple(standing))
    standing.append(block)
    _entered.set((*_entered.get(), block))
    return block


def _ended(conn: AnyConnection, driver: _Driver, block: _Block, outer: tuple[str | None, ...]) -> None:
    _entered.set(tuple(other for other in _entered.get() if other is not block))
    standing = _standing.get(driver, [])
    if block not in standing:  # its transaction ended before
        in_order = not block.lost and _within(block, standing)
    else:
        in_order = standing[-1] is block and block.thread == threading.get_ident()
        if in_order:
            standing.pop()
            _settle(conn, driver, outer, [block])
        else:
            _empty(conn, driver)
    if not _standing.get(driver):
        _standing.pop(driver, None)
    if not in_order:
        raise ContextOutOfOrder(_OUT_OF_ORDER)


def _empty(conn: AnyConnection, driver: _Driver) -> None:
    """No context at all is the only one that is nobody else's."""
    blocks = _standing.pop(driver, [])
    for block in blocks:
        block.lost = True
    if blocks:
        _settle(conn, driver, ("", "", "", ""), blocks)


def _settle(conn: AnyConnection, driver: _Driver, context: tuple[str | None, ...], blocks: list[_Block]) -> None:
    """Set the context where one of `blocks` stands, or owe it where the transaction takes no statement.

    A rollback to a savepoint from inside the block leaves the block's context, any other takes it
    away, and a connection that went back to its pool has somebody else's: so the statement asks first.
    """
    if driver.closed or _over(conn, driver):
        return
    statement = f"{_setting()} WHERE {_BLOCK_NOW} OPERATOR(pg_catalog.=) ANY (%s::pg_catalog.text[])"
    values = (*context, [block.id for block in blocks])
    if driver.info.transaction_status not in _DEAD:
        owed.pop(driver, None)
        try:
            rows(conn, statement, values)
        except ConnectionUnusable as error:
            if of_driver(error.__cause__):
                raise
        else:
            return
    owed.setdefault(driver, []).append((statement, values))


def _over(conn: AnyConnection, driver: _Driver) -> bool:
    """Whether the transaction is over in which the context was set: then it is, too."""
    if isinstance(conn, psycopg.Connection):
        return driver.info.transaction_status == TransactionStatus.IDLE
    return not conn.in_transaction()


def declared(conn: AnyConnection) -> tuple[str | None, str | None, str | None]:
    """User, territory and correlation id as they are set now; '' and None both mean: not set."""
    user_id, territory, correlation_id = row(conn, render("SELECT * FROM {schema}.context()", current()))
    return user_id, territory, correlation_id


def _setting() -> str:
    return render(
        "SELECT {schema}.set_context(%s::pg_catalog.text, %s::pg_catalog.text, %s::pg_catalog.text), "
        "pg_catalog.set_config('leadprotect.block', %s, true)",
        current(),
    )


def trace_id() -> str | None:
    """The id of the current OpenTelemetry trace; who has one active has imported the package."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    span = trace.get_current_span().get_span_context()
    return f"{span.trace_id:032x}" if span.is_valid else None
