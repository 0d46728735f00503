"""An edit in one round trip: context, assertion, the service's own statements and the commit in one pipeline."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from leadprotect import metrics
from leadprotect.access import denials
from leadprotect.access.arguments import as_lead_id, check_caller, check_text
from leadprotect.access.attempts import attempting, check_action, conclude
from leadprotect.access.context import declaration, trace_id
from leadprotect.access.places import living, not_here, whereabouts
from leadprotect.database.bound import its_settings
from leadprotect.database.sqlstates import mapped_errors, naming_primary
from leadprotect.database.waiting import wait
from leadprotect.decision import ALLOWED, Action, Decision
from leadprotect.errors import ConnectionUnusable, InvalidRequest
from leadprotect.settings import current, literal, render

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

# what was answered is looked at where it was given, and what follows is not done where it denies
_GUARD = (
    "SELECT 1 OPERATOR(pg_catalog./) CASE WHEN pg_catalog.current_setting('leadprotect.attempt') "
    f"OPERATOR(pg_catalog.=) ANY (ARRAY[{', '.join(map(literal, ALLOWED))}]::pg_catalog.text[]) THEN 1 ELSE 0 END"
)

_ATTEMPT = 1
_HIDDEN = (
    "a statement of the block failed and its error was caught there, so nothing was committed; run it again, and let "
    "the error out"
)


@contextmanager
def editing(
    conn: psycopg.Connection[Any],
    lead_id: Any,
    user_id: UUID | str,
    territory: str,
    correlation_id: UUID | str | None = None,
    *,
    action: Action = "EDIT",
    note: str | None = None,
) -> Iterator[None]:
    """A transaction in which `user_id` edits the lead: context, `assert_edit`, the block and the commit in a pipeline.

    Nothing is sent before the block ends or asks for a result, so it costs one round trip. Where the attempt is denied,
    nothing of the block is done, the denial is recorded, and the end of the block (or the first result that it
    asks for) raises. It commits what it began, so it begins outside any transaction; with a
    psycopg that knows no pipelines the statements go one by one.

    Raises what `acting_as` and `assert_edit` raise, `InvalidRequest` inside a transaction or on another connection
    than psycopg's. Source: https://www.psycopg.org/psycopg3/docs/advanced/pipeline.html.
    """
    check_caller(user_id, territory)
    correlation = str(correlation_id) if correlation_id else trace_id()
    for name, value in (("correlation_id", correlation), ("note", note)):
        check_text(name, value)
    check_action(action)
    _require_idle(conn)
    with its_settings(conn):
        lead = as_lead_id(lead_id)
        asked = _asked((str(user_id), territory, correlation), (lead, action, note))
    found: list[Any] = []
    failed: BaseException | None = None
    try:
        with metrics.timed("editing"), _begun(conn):
            found += [_queued(conn, statement, values) for statement, values in asked]
            yield
            found.append(_queued(conn, "COMMIT", ()))
    except BaseException as error:  # noqa: BLE001 - whose it is, the answer tells
        failed = error
    if failed is None and found[-1].statusmessage != "COMMIT":
        failed = ConnectionUnusable(_HIDDEN)
    with its_settings(conn):
        if _elsewhere(conn, found, failed):
            raise not_here(current(), territory) from None
        _conclude(conn, lead_id, found, failed, (lead, action, note))


def _elsewhere(conn: Any, found: list[Any], failed: BaseException | None) -> bool:
    """Whether the first guard stopped it: before the attempt has its answer nothing else divides by zero."""
    return (
        bool(current().databases) and isinstance(failed, psycopg.errors.DivisionByZero) and _answer(conn, found) is None
    )


def _require_idle(conn: object) -> None:
    if not isinstance(conn, (psycopg.Connection, psycopg.AsyncConnection)):
        raise InvalidRequest(
            f"conn: {type(conn).__name__} is not psycopg's, which has pipelines: use acting_as and assert_edit"
        )
    if conn.info.transaction_status != TransactionStatus.IDLE:
        raise InvalidRequest(
            "conn: a transaction is under way, and editing is one of its own: use acting_as and assert_edit"
        )


def _asked(context: tuple[str | None, ...], values: tuple[Any, ...]) -> list[tuple[str, tuple[Any, ...]]]:
    """Declare who acts, attempt, and stop where that is denied."""
    call = render("allow_edit(%s::{lead_type}, %s::{schema}.lead_action, %s::pg_catalog.text)", current())
    attempt = (
        "SELECT attempt.*, pg_catalog.set_config('leadprotect.attempt', coalesce(attempt.reason, ''), true) "
        f"FROM ({attempting(call)} OFFSET 0) AS attempt"
    )
    return [_declared(context), (attempt, values), (_GUARD, ())]


def _declared(context: tuple[str | None, ...]) -> tuple[str, tuple[Any, ...]]:
    """Nothing is attempted where the territory lives elsewhere."""
    s = current()
    here = living(s)
    if not here:
        return declaration(), (*context, "")
    guard = f"1 OPERATOR(pg_catalog./) CASE WHEN {here} THEN 1 ELSE 0 END"
    return f"{declaration()}, {guard}", (*context, "", *whereabouts(s, context[1]))


def _conclude(conn: Any, lead_id: Any, found: list[Any], failed: BaseException | None, asked: tuple[Any, ...]) -> None:
    answer = _answer(conn, found)
    if answer is None:
        try:
            with mapped_errors(recording=True):
                raise failed or InvalidRequest("the block ended the pipeline before anything was asked")
        except ConnectionUnusable as error:
            raise naming_primary(conn, error) from error.__cause__
    lead, action, note = asked
    reason, *facts = answer
    attempt = denials.attempt(lead, action, reason, note, tuple(facts))
    decision = Decision(lead_id, attempt.reason)
    if decision.allowed and isinstance(failed, psycopg.errors.PipelineAborted):
        raise ConnectionUnusable(_HIDDEN) from failed
    if decision.allowed and failed is not None:
        raise failed
    try:
        conclude(conn, decision, attempt)
    except BaseException as error:
        raise error from failed


def _answer(conn: Any, found: list[Any]) -> tuple[Any, ...] | None:
    """What the attempt was answered; None where it got no answer."""
    attempt = found[_ATTEMPT] if len(found) > _ATTEMPT else None
    if attempt is None or attempt.pgresult is None or not attempt.pgresult.ntuples:
        return None
    *answer, _ = _waited(conn, attempt.fetchone)
    return tuple(answer)


@contextmanager
def _begun(conn: Any) -> Iterator[None]:
    """A pipeline in which a transaction has begun; psycopg's own begin and commit would wait for the server there."""
    begin = _begin(conn)
    before = conn.autocommit
    _autocommit(conn, value=True)
    try:
        with _inside(conn, _pipeline(conn)):
            _queued(conn, begin, ())
            yield
    finally:
        if conn.info.transaction_status in (TransactionStatus.INERROR, TransactionStatus.INTRANS):
            _waited(conn, conn.rollback)
        if conn.info.transaction_status == TransactionStatus.IDLE:
            _autocommit(conn, value=before)


def _begin(conn: Any) -> str:
    """As the connection would begin it itself."""
    level = f"ISOLATION LEVEL {conn.isolation_level.name.replace('_', ' ')}" if conn.isolation_level else ""
    access = "" if conn.read_only is None else "READ ONLY" if conn.read_only else "READ WRITE"
    deferrable = "" if conn.deferrable is None else "DEFERRABLE" if conn.deferrable else "NOT DEFERRABLE"
    return " ".join(filter(None, ("BEGIN", level, access, deferrable)))


def _autocommit(conn: Any, *, value: bool) -> None:
    if conn.autocommit is not value:
        _waited(conn, partial(conn.set_autocommit, value))


def _queued(conn: Any, statement: str, values: tuple[Any, ...]) -> Any:
    return _waited(conn, partial(conn.cursor(row_factory=tuple_row).execute, statement, values))


def _pipeline(conn: Any) -> Any:
    return conn.pipeline() if psycopg.Pipeline.is_supported() else nullcontext()


def _waited(conn: Any, function: Any) -> Any:
    return wait(conn, function) if isinstance(conn, psycopg.AsyncConnection) else function()


@contextmanager
def _inside(conn: Any, manager: Any) -> Iterator[None]:
    """The manager's block, of a synchronous or an asynchronous connection."""
    if not isinstance(conn, psycopg.AsyncConnection) or isinstance(manager, nullcontext):
        with manager:
            yield
        return
    wait(conn, manager.__aenter__)
    try:
        yield
    except BaseException as error:
        if not wait(conn, partial(manager.__aexit__, type(error), error, error.__traceback__)):
            raise
    else:
        wait(conn, partial(manager.__aexit__, None, None, None))
