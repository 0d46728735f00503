"""Who acts, in which territory: transaction-local settings that every decision reads."""

from __future__ import annotations

import itertools
import re
import sys
import threading
import weakref
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from uuid import UUID

from psycopg.pq import TransactionStatus

from leadprotect.access.arguments import check_caller, check_text
from leadprotect.access.places import living, not_here, whereabouts
from leadprotect.database.bound import its_settings
from leadprotect.database.drivers import core_connection, driver_connection, of_psycopg
from leadprotect.database.sqlstates import mapped_errors, of_driver
from leadprotect.database.statements import owed, row, rows
from leadprotect.database.transactions import follow
from leadprotect.errors import ConnectionUnusable, ContextMissing, ContextOutOfOrder
from leadprotect.settings import context_of, current, literal, render

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

    from leadprotect.database.drivers import AnyConnection
    from leadprotect.settings import Settings

    _Driver = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]

_BLOCK_NOW = "pg_catalog.current_setting('leadprotect.block', true)"
_KINDS = ("user", "territory", "correlation")
# also by a function that is called, or by a statement that the database's own code carries out
_MAY_SET = re.compile(r"(?i)set|discard|call|\bdo\b").search
_blocks = itertools.count(1)
# a statement that is still under way takes no other
_DEAD = (TransactionStatus.INERROR, TransactionStatus.UNKNOWN, TransactionStatus.ACTIVE)
_OUT_OF_ORDER = (
    "blocks of acting_as on one connection ended out of order, or on another thread than they began on, so none of "
    "them has a context any more: a connection belongs to one task or thread at a time; give each its own"
)
AUTOCOMMIT = "a context needs a transaction; this connection is in autocommit, so nothing would last"


@contextmanager
def acting_as(
    conn: AnyConnection, user_id: UUID | str, territory: str, correlation_id: UUID | str | None = None
) -> Iterator[None]:
    """Let `user_id` act in `territory` until the block ends; then the outer context holds again.

    Of SQLAlchemy's sessions and connections it holds for every transaction that begins inside the block, and
    comes back after a rollback to a savepoint. psycopg tells nobody when a transaction begins: there a
    commit or rollback inside the block ends the context, and the next call of leadprotect raises `ContextMissing`.
    Where a savepoint of the block is rolled back only after the block, the outer
    context comes back with the next call of leadprotect; SQL in between still has the inner one.
    A savepoint that begins inside a block and is rolled back after it leaves nobody's context on SQLAlchemy's; of
    psycopg's, end it before the block: until the next block or the end of the transaction it leaves the block's.
    A block costs one statement at either end, and none inside one of the same context on SQLAlchemy's, unless a
    statement in between may have set another.
    Without `correlation_id`, the id of the current OpenTelemetry trace is taken.

    Raises `ContextMissing` without a user or territory (None or ''), and on a connection in autocommit
    (nothing would last to the next statement); `NotHere` where the settings name databases by territory, and this
    one does not have it; `InvalidRequest` for a user that is no UUID and no
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
    block = _Block(str(next(_blocks)), (user_id, territory, correlation_id))
    block.entering = not of_psycopg(conn)
    _entered.set((*_entered.get(), block))
    try:
        with its_settings(conn):
            require_order(conn)
            if not _stands(conn, block):
                _stand(conn, [block])
            if not of_psycopg(conn):
                _last(conn, block)
        yield
    finally:
        with its_settings(conn):
            _ended(conn, block)


@dataclass(eq=False)
class _Block:
    """A block that was entered on `thread`, inside those of `around`; `lost` when its context was taken away.

    `outer` is what stood before it in the transaction of now, `lasting` those that the next one is inside of, too;
    `sure` where nothing has been told since that may have set another context.
    """

    id: str
    context: tuple[str | None, ...]
    outer: tuple[str | None, ...] = ("", "", "", "")
    driver: weakref.ref[_Driver] | None = None
    around: tuple[_Block, ...] = ()
    thread: int = field(default_factory=threading.get_ident)
    lost: bool = False
    entering: bool = False
    sure: bool = False
    dialect: object = None
    lasting: list[_Block] = field(default_factory=list)

    def on(self, driver: _Driver) -> bool:
        """Whether it stands, or stood last, on this connection."""
        return self.driver is not None and self.driver() is driver


_standing: weakref.WeakKeyDictionary[_Driver, list[_Block]] = weakref.WeakKeyDictionary()
"""Driver's connection -> the blocks that stand on it, the innermost last."""

_lasting: weakref.WeakKeyDictionary[Connection | Session, list[_Block]] = weakref.WeakKeyDictionary()
"""SQLAlchemy's session or connection -> the blocks that its next transaction is inside of, the innermost last."""

_entered: ContextVar[tuple[_Block, ...]] = ContextVar("leadprotect_entered", default=())
"""The blocks of this task or thread, the innermost last; a task that it starts is inside them, too."""


def in_order(conn: AnyConnection) -> bool:
    """Whether no context stands on `conn`, or one of this task or thread."""
    if not _standing and not _lasting and not _entered.get():
        return True
    driver = _driver(conn)
    standing = _standing.get(driver, [])
    mine = _innermost(driver)
    if mine is None:
        return not standing or _mine(standing[-1])
    if mine in standing:
        return standing[-1] is mine
    return not mine.lost and _within(mine, standing)


def require_order(conn: AnyConnection) -> None:
    """Raise `ContextOutOfOrder` where the context that stands on `conn` is another task's or thread's."""
    if in_order(conn):
        return
    driver = _driver(conn)
    if _innermost(driver) in _standing.get(driver, ()):
        _empty(conn, driver)
    raise ContextOutOfOrder(_OUT_OF_ORDER)


def _innermost(driver: _Driver) -> _Block | None:
    """Of the blocks of this task or thread the innermost on this connection."""
    return next((block for block in reversed(_entered.get()) if block.on(driver)), None)


def acting_on(core: Connection) -> bool:
    """Whether a block of this task or thread gives the transactions of this engine a context, or is about to."""
    return any(block.entering or block.dialect is core.dialect for block in _entered.get() if not block.lost)


def _mine(block: _Block) -> bool:
    """Whether this task or thread is inside; one that was never entered here is no part of a thread of its own."""
    return block.thread == threading.get_ident() or block in _entered.get()


def _within(block: _Block, standing: list[_Block]) -> bool:
    """Whether all that stands after the end of `block`'s transaction stood around it."""
    return all(other in block.around for other in standing)


def _stands(conn: AnyConnection, block: _Block) -> bool:
    """Whether the context of `block` is that of the innermost block around it; then it stands under the same name.

    Of SQLAlchemy's alone, which tell of each statement, and of the end of a transaction or savepoint.
    """
    if of_psycopg(conn):
        return False
    driver = _driver(conn)
    standing = _standing.get(driver)
    if not standing or not standing[-1].sure or standing[-1].context != block.context:
        return False
    block.id, block.sure = standing[-1].id, True
    block.outer, block.driver, block.around = (*block.context, block.id), weakref.ref(driver), tuple(standing)
    standing.append(block)
    return True


def _stand(conn: AnyConnection, blocks: list[_Block]) -> None:
    """Set the context of the innermost of `blocks`, and let all of them stand in the transaction of `conn`.

    Raises `ContextMissing` in autocommit.
    """
    driver = _driver(conn)
    s = current()
    territory = blocks[-1].context[1]
    found = rows(conn, _replacing(s), (*blocks[-1].context, blocks[-1].id, *whereabouts(s, territory)))
    if not found:
        raise not_here(s, territory)
    *outer, outer_block, _ = found[0]
    standing = _standing.setdefault(driver, [])
    # the context of a block ends with its transaction; what the server knows no more does not stand
    while standing and standing[-1].id != (outer_block or ""):
        standing.pop()
    # a rollback to a savepoint brought back a block that has ended: its context is nobody's
    before = ("", "", "", "") if outer_block and not standing else (*outer, outer_block or "")
    for block in blocks:
        block.outer, block.driver, block.around = before, weakref.ref(driver), tuple(standing)
        standing.append(block)
        before = (*block.context, block.id)
    blocks[-1].sure = not of_psycopg(conn)
    if driver.info.transaction_status == TransactionStatus.IDLE:
        raise ContextMissing(AUTOCOMMIT)


def _driver(conn: AnyConnection) -> _Driver:
    if of_psycopg(conn):
        return conn
    with mapped_errors():
        return driver_connection(conn)


def _last(scope: Connection | Session, block: _Block) -> None:
    core = core_connection(scope)
    block.dialect, block.entering = core.dialect, False
    block.lasting = _lasting.setdefault(scope, block.lasting)
    block.lasting.append(block)
    follow(core, _FOLLOWER)


class _Follower:
    """Keeps the context of a block through the transactions of SQLAlchemy's sessions and connections."""

    def begun(self, scope: Connection | Session, core: Connection) -> None:
        """Set it again, on the engine that the block was entered on."""
        blocks = _lasting.get(scope)
        if not blocks or blocks[-1].dialect is not core.dialect:
            return
        if blocks[-1] in _standing.get(driver_connection(core), ()):
            return
        if not _mine(blocks[-1]):
            raise ContextOutOfOrder(_OUT_OF_ORDER)
        with its_settings(core):
            _stand(core, blocks)

    def ended(self, core: Connection) -> None:
        """The connection is nobody's any more."""
        for block in _standing.pop(driver_connection(core), ()):
            block.driver = None

    def undone(self, core: Connection) -> None:
        """What stands goes back with the savepoint, also beyond the begin of the block."""
        driver = driver_connection(core)
        with its_settings(core):
            if blocks := _standing.get(driver):
                row(core, declaration(), (*blocks[-1].context, blocks[-1].id))
                blocks[-1].sure = True
            else:  # to where a block stood that has ended since
                rows(core, f"{declaration()} WHERE {_BLOCK_NOW} OPERATOR(pg_catalog.<>) ''", ("", "", "", ""))

    def executed(self, core: Connection, statement: str) -> None:
        """Whatever may set a context makes it unsure which one stands."""
        if _MAY_SET(statement) and (standing := _standing.get(driver_connection(core))):
            standing[-1].sure = False


_FOLLOWER = _Follower()


def _ended(conn: AnyConnection, block: _Block) -> None:
    _entered.set(tuple(other for other in _entered.get() if other is not block))
    driver = block.driver() if block.driver else None
    standing = (_standing.get(driver) if driver else None) or []
    in_order = not block.lost and (block not in block.lasting or block.lasting[-1] is block)
    in_order = in_order and block.thread == threading.get_ident()
    # where it does not stand, its transaction ended before
    in_order = in_order and (standing[-1] is block if block in standing else _within(block, standing))
    if in_order and block in block.lasting:
        block.lasting.pop()
    if not in_order:
        _lose([block, *block.lasting])
    if driver and block in standing:
        if in_order:
            standing.pop()
            if standing and standing[-1].id == block.id:
                standing[-1].sure = block.sure
                return
            _settle(conn, driver, block.outer, [block])
        else:
            _empty(conn, driver)
    if driver and not _standing.get(driver):
        _standing.pop(driver, None)
    if not in_order:
        raise ContextOutOfOrder(_OUT_OF_ORDER)


def _empty(conn: AnyConnection, driver: _Driver) -> None:
    """No context at all is the only one that is nobody else's."""
    blocks = _standing.pop(driver, [])
    _lose(blocks)
    if blocks:
        _settle(conn, driver, ("", "", "", ""), blocks)


def _lose(blocks: list[_Block]) -> None:
    for block in blocks:
        block.lost = True
        if block in block.lasting:
            block.lasting.remove(block)


def _settle(conn: AnyConnection, driver: _Driver, context: tuple[str | None, ...], blocks: list[_Block]) -> None:
    """Set the context where one of `blocks` stands, or owe it where the transaction takes no statement.

    A rollback to a savepoint from inside the block leaves the block's context, any other takes it
    away, and a connection that went back to its pool has somebody else's: so the statement asks first.
    """
    if driver.closed or _over(conn, driver):
        return
    one_of = " OR ".join([f"{_BLOCK_NOW} OPERATOR(pg_catalog.=) %s::pg_catalog.text"] * len(blocks))
    statement = f"{declaration()} WHERE {one_of}"
    values = (*context, *(block.id for block in blocks))
    if driver.info.transaction_status not in _DEAD:
        owed.pop(driver, None)
        try:
            rows(conn, statement, values)
        except ConnectionUnusable as error:
            if of_driver(error.__cause__):
                raise
        except BaseException:  # a task may be cancelled while it waits, and its transaction goes on all the same
            owed.setdefault(driver, []).append((statement, values))
            raise
        else:
            return
    owed.setdefault(driver, []).append((statement, values))


def _over(conn: AnyConnection, driver: _Driver) -> bool:
    """Whether the transaction is over in which the context was set: then it is, too."""
    if of_psycopg(conn):
        return driver.info.transaction_status == TransactionStatus.IDLE
    return not conn.in_transaction()


def declared(conn: AnyConnection) -> tuple[str | None, str | None, str | None]:
    """User, territory and correlation id as they are set now; '' and None both mean: not set."""
    user_id, territory, correlation_id = row(conn, render("SELECT * FROM {schema}.context()", current()))
    return user_id, territory, correlation_id


def set_context(conn: AnyConnection, user_id: str, territory: str, correlation_id: str | None) -> None:
    """Set the context of the transaction, for as long as it lasts, without a block around it."""
    s = current()
    if not rows(conn, *setting_context(s, user_id, territory, correlation_id)):
        raise not_here(s, territory)


def setting_context(
    s: Settings, user_id: str, territory: str, correlation_id: str | None
) -> tuple[str, tuple[str | None, ...]]:
    """The statement that does it, with its values; it returns a row, and none where the territory is not here."""
    return f"SELECT {_set(s)} WHERE {_possible(s)}", (
        user_id,
        territory,
        correlation_id,
        "",
        *whereabouts(s, territory),
    )


def declaration() -> str:
    """The statement that sets user, territory, correlation id and the name of the block ('' for none)."""
    return f"SELECT {_set(current())}"


@lru_cache(maxsize=256)
def _replacing(s: Settings) -> str:
    """Set it, and tell what stood before; OFFSET 0 keeps the order."""
    reads = context_of(s)
    before = ", ".join(reads[f"declared_{kind}"] for kind in _KINDS)
    return (
        f"SELECT before.*, {_set(s)} FROM (SELECT {before}, {_BLOCK_NOW} OFFSET 0) AS before (a, b, c, d) "
        f"WHERE {_possible(s)}"
    )


@lru_cache(maxsize=256)
def _set(s: Settings) -> str:
    """What our function of the name does, which would be planned anew for each call."""
    writes = context_of(s, "%s::pg_catalog.text")
    ours = ", ".join(writes[f"declaring_{kind}"] for kind in _KINDS)
    # one column, since each that comes back costs the client more than the server
    return f"pg_catalog.num_nulls({ours}, pg_catalog.set_config('leadprotect.block', %s, true))"


def _possible(s: Settings) -> str:
    """Whether somebody can act here: nothing is set where the territory lives elsewhere, and no row comes back."""
    here = living(s)
    return f"{_installed(s)} AND {here}" if here else _installed(s)


def _installed(s: Settings) -> str:
    """Refused while the statement is parsed, where our functions are missing or not for this login."""
    function = literal(f"{render('{schema}', s)}.context()")
    return f"{function}::pg_catalog.regprocedure IS NOT NULL"


def trace_id() -> str | None:
    """The id of the current OpenTelemetry trace; who has one active has imported the package."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    span = trace.get_current_span().get_span_context()
    return f"{span.trace_id:032x}" if span.is_valid else None
