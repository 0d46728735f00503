"""For asynchronous services: the functions of `leadprotect`, to be awaited.

Of a psycopg.AsyncConnection, or of an AsyncSession or AsyncConnection of SQLAlchemy.

Written by `make aio` from the synchronous ones, which do the work: what is changed here is lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from leadprotect.access import (
    attempts,
    bulk,
    checks,
    context,
    ownership,
    pipelines,
    protections,
    routing,
    startup,
    territories,
)
from leadprotect.database.waiting import Held, call

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from contextlib import AbstractAsyncContextManager
    from datetime import date, datetime
    from uuid import UUID

    import psycopg
    from sqlalchemy.ext.asyncio import AsyncEngine

    from leadprotect.access.checks import Page
    from leadprotect.access.protections import LeadRule
    from leadprotect.access.routing import K, Router
    from leadprotect.access.territories import Territory
    from leadprotect.database.waiting import AnyAsync
    from leadprotect.decision import Action, Decision, Protection

__all__ = [
    "acting_as",
    "assert_edit",
    "assert_edit_many",
    "assign",
    "assign_many",
    "can_edit",
    "can_edit_many",
    "check_startup",
    "claim",
    "editable_leads",
    "editing",
    "explain",
    "grant",
    "release",
    "revoke",
    "route",
    "rules",
    "share",
    "suspend",
    "territory",
    "transfer",
    "transfer_all",
    "unshare",
]


async def assert_edit(conn: AnyAsync, lead_id: Any, *, action: Action = "EDIT", note: str | None = None) -> Decision:
    """Require that the user in context may edit the lead, and record the attempt.

    Allowed: the record is written in the caller's transaction, and the rows on which the decision
    rests stay locked until it ends, so a transfer waits. Denied: the record is committed on a
    connection of leadprotect's own before the error is raised; it survives whatever the caller does.

    Raises `LeadAccessDenied` (carries the decision), `AuditUnavailable` when the attempt could not
    be recorded, allowed or not (a denial, too), and what `can_edit` raises.
    """
    return await call(conn, attempts.assert_edit, lead_id, action=action, note=note)


async def assert_edit_many(
    conn: AnyAsync,
    lead_ids: Iterable[Any],
    *,
    action: Action = "EDIT",
    note: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> dict[Any, Decision]:
    """`assert_edit` for each lead: one record each, locked in the order of the ids; keys as they were given.

    One statement for 1,000 leads; `progress` is called after each with the number of leads done, and of all.
    Where one is denied, all are asked still and every denial is recorded; then `LeadsAccessDenied` is raised, and
    a rollback undoes the records of what was allowed. Raises what `assert_edit` raises, too.
    """
    return await call(conn, bulk.assert_edit_many, lead_ids, action=action, note=note, progress=progress)


async def assign_many(
    conn: AnyAsync,
    lead_ids: Iterable[Any],
    user_id: UUID | str,
    *,
    note: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> dict[Any, Decision]:
    """`assign` for each lead, as `assert_edit_many` asserts them; raises what both raise."""
    return await call(conn, bulk.assign_many, lead_ids, user_id, note=note, progress=progress)


async def transfer_all(
    conn: AnyAsync,
    from_user: UUID | str,
    to_user: UUID | str,
    *,
    note: str | None = None,
    limit: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> int:
    """Give what `from_user` owns in the territory in context to `to_user`; returns how many leads. For managers.

    One record each. What becomes somebody else's meanwhile stays with him. With `limit`, at most so many leads: a
    caller who commits after each call goes on until it returns 0. `progress` is called after each 1,000 leads with
    the number done, and of all. His rules stay: `suspend` him, too, where he must not edit any more.

    Raises what `transfer` raises, for more than one lead `LeadsAccessDenied`; `InvalidRequest` where both are one.
    """
    return await call(conn, bulk.transfer_all, from_user, to_user, note=note, limit=limit, progress=progress)


async def can_edit(
    conn: AnyAsync, lead_id: Any, *, user_id: UUID | str | None = None, territory: str | None = None
) -> bool:
    """Whether the user in context, or the one named, may edit the lead; one statement, nothing is recorded.

    `lead_id` has the type of the setting lead_id_type; an id given as text is converted. What is
    not named (None) comes from the context, and the context stays as it was.

    Raises `ContextMissing` without user or territory, or where one is named as '', `NotHere` where the settings name
    databases by territory, and this one does not have it, `InvalidRequest`
    for an id of the wrong type, `ProtectionUnavailable` when no answer could be had. Source of the
    rule: docs/explanation/decisions.md.
    """
    return await call(conn, checks.can_edit, lead_id, user_id=user_id, territory=territory)


async def explain(
    conn: AnyAsync, lead_id: Any, *, user_id: UUID | str | None = None, territory: str | None = None
) -> Decision:
    """The decision of `can_edit` with its reason, and whether a standby took it; takes and raises the same."""
    return await call(conn, checks.explain, lead_id, user_id=user_id, territory=territory)


@overload
async def can_edit_many(conn: AnyAsync, lead_ids: Iterable[K]) -> dict[K, bool]: ...


@overload
async def can_edit_many(
    conn: Router, lead_ids: Iterable[tuple[str, K]], *, user_id: UUID | str
) -> dict[tuple[str, K], bool]: ...


async def can_edit_many(
    conn: AnyAsync | Router, lead_ids: Iterable[Any], *, user_id: UUID | str | None = None
) -> dict[Any, bool]:
    """For each lead, whether the user in context may edit it; keys as they were given, in the order asked.

    One statement; if none may be edited, a second one asks whether there is a context at all.

    In several databases: give `leadprotect.route` (or a function of your own that tells an engine for a territory) for
    the connection, pairs of territory and lead for the leads, and `user_id`. Every database is asked in a session of
    its own, all at once, and its territories one after the other there; the keys are the pairs.

    Raises what `can_edit` raises; of several databases `DatabasesUnavailable` where some gave no answer, with the
    answers of the others, `NotHere` where one does not have the territory, and what the function raises.
    """
    return await call(conn, checks.can_edit_many, lead_ids, user_id=user_id)


async def editable_leads(conn: AnyAsync, *, after: Any = None, limit: int = 100) -> Page:
    """A page of the leads that the user in context may edit, in the order of their ids.

    `after` is the last lead id of the page before, `limit` 1 to 1000 leads.
    Raises what `can_edit` raises, and `InvalidRequest` for a limit out of bounds.
    """
    return await call(conn, checks.editable_leads, after=after, limit=limit)


def acting_as(
    conn: AnyAsync, user_id: UUID | str, territory: str, correlation_id: UUID | str | None = None
) -> AbstractAsyncContextManager[None]:
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
    return Held(conn, context.acting_as, user_id, territory, correlation_id)


async def assign(conn: AnyAsync, lead_id: Any, user_id: UUID | str, *, note: str | None = None) -> Decision:
    """Give the lead to `user_id`, whoever owns it now; for managers of its territory.

    Like every function here it records the attempt as `assert_edit` does and raises
    `LeadAccessDenied` when it is denied, `ContextMissing` without a user or territory in context (a
    manager needs them, too: they are recorded), `InvalidRequest` when the new owner is suspended.
    """
    return await call(conn, ownership.assign, lead_id, user_id, note=note)


async def transfer(conn: AnyAsync, lead_id: Any, user_id: UUID | str, *, note: str | None = None) -> Decision:
    """Give an owned lead to `user_id`; for managers. An edit under way is waited for."""
    return await call(conn, ownership.transfer, lead_id, user_id, note=note)


async def claim(conn: AnyAsync, lead_id: Any, *, note: str | None = None) -> Decision:
    """Make the user in context the owner of a lead that nobody owns; of two claims one wins."""
    return await call(conn, ownership.claim, lead_id, note=note)


async def release(conn: AnyAsync, lead_id: Any, *, note: str | None = None) -> Decision:
    """Take the lead from its owner; for the owner and for managers. No backfill gives it back."""
    return await call(conn, ownership.release, lead_id, note=note)


async def share(
    conn: AnyAsync,
    lead_id: Any,
    user_id: UUID | str,
    *,
    effective_from: datetime | None = None,
    effective_to: datetime | None = None,
    note: str | None = None,
) -> Decision:
    """Let `user_id` edit the lead as well, from `effective_from` (now) until `effective_to` (open).

    For the owner and for managers. Raises `InvalidRequest` when the dates are in the wrong order.
    """
    return await call(
        conn, ownership.share, lead_id, user_id, effective_from=effective_from, effective_to=effective_to, note=note
    )


async def unshare(conn: AnyAsync, lead_id: Any, user_id: UUID | str, *, note: str | None = None) -> Decision:
    """End every share of the lead with `user_id` now; an edit under way is waited for."""
    return await call(conn, ownership.unshare, lead_id, user_id, note=note)


def editing(
    conn: psycopg.AsyncConnection[Any],
    lead_id: Any,
    user_id: UUID | str,
    territory: str,
    correlation_id: UUID | str | None = None,
    *,
    action: Action = "EDIT",
    note: str | None = None,
) -> AbstractAsyncContextManager[None]:
    """A transaction in which `user_id` edits the lead: context, `assert_edit`, the block and the commit in a pipeline.

    Nothing is sent before the block ends or asks for a result, so it costs one round trip. Where the attempt is denied,
    nothing of the block is done, the denial is recorded, and the end of the block (or the first result that it
    asks for) raises. It commits what it began, so it begins outside any transaction; with a
    psycopg that knows no pipelines the statements go one by one.

    Raises what `acting_as` and `assert_edit` raise, `InvalidRequest` inside a transaction or on another connection
    than psycopg's. Source: https://www.psycopg.org/psycopg3/docs/advanced/pipeline.html.
    """
    return Held(conn, pipelines.editing, lead_id, user_id, territory, correlation_id, action=action, note=note)


async def rules(
    conn: AnyAsync, *, user_id: UUID | str | None = None, lead_id: Any = None, ended: bool = False
) -> tuple[LeadRule, ...]:
    """The rules of the territory in context, of a user or a lead where one is named; for managers and auditors.

    Those that hold now or will; with `ended`, also those that are over. Raises `ContextMissing` without a territory
    in context, `InvalidRequest` for an id of the wrong type, `ProtectionUnavailable` for a login without the role.
    """
    return await call(conn, protections.rules, user_id=user_id, lead_id=lead_id, ended=ended)


async def grant(
    conn: AnyAsync,
    user_id: UUID | str,
    protection: Protection,
    *,
    lead_id: Any = None,
    effective_from: datetime | None = None,
    effective_to: datetime | None = None,
    note: str | None = None,
) -> Decision:
    """Make a rule for `user_id` in the territory in context, or for one lead of it; for managers.

    COLLABORATOR may edit, VIEW_ONLY suspends, SOLE_OWNER shuts out collaborators of the whole territory; from
    `effective_from` (now) until `effective_to` (open). It is recorded like a change of owner, and raises the same;
    `InvalidRequest` when the dates are in the wrong order.
    """
    return await call(
        conn,
        protections.grant,
        user_id,
        protection,
        lead_id=lead_id,
        effective_from=effective_from,
        effective_to=effective_to,
        note=note,
    )


async def revoke(
    conn: AnyAsync, user_id: UUID | str, protection: Protection, *, lead_id: Any = None, note: str | None = None
) -> Decision:
    """End the rules of one kind of `user_id`, for the territory as a whole or for `lead_id`.

    For managers; an edit under way is waited for. It is recorded, also where there was none to end. Raises what `grant`
    raises.
    """
    return await call(conn, protections.revoke, user_id, protection, lead_id=lead_id, note=note)


async def suspend(
    conn: AnyAsync,
    user_id: UUID | str,
    *,
    lead_id: Any = None,
    effective_to: datetime | None = None,
    note: str | None = None,
) -> Decision:
    """Let `user_id` edit nothing in the territory, or not this lead, from now until `effective_to` (open).

    The rule VIEW_ONLY: `revoke` with it ends the suspension. He keeps what he owns. Raises what `grant` raises.
    """
    return await call(conn, protections.suspend, user_id, lead_id=lead_id, effective_to=effective_to, note=note)


def route(territory: str) -> AsyncEngine:
    """The engine of the database that holds `territory`, as section ``[leadprotect.databases]`` of the settings says.

    There is one for each database and process, with a pool of SQLAlchemy's usual size: territories that share a
    database share it. It connects when it is first used, with what the URL, or the function that tells it, says then.
    Its ``dispose()`` closes what is idle; it goes on afterwards, in the child of a fork, too.

    Raises `SettingsError` without the section, `InvalidRequest` for a territory that it does not name.
    """
    return routing.awaited_route(territory)


async def check_startup(conn: AnyAsync, *, force: Collection[str] = ()) -> None:
    """Raise `NotProtected` where what contract promises does not hold for this session; once, before a service serves.

    One statement on the caller's connection. `force` names what is accepted, as the error
    names it: ``force=["no_member"]`` for a pool that sets a role for each request. With ``host_rls = off`` nothing
    is asked of the host's table. Raises `InvalidRequest` for a name that is none.
    """
    return await call(conn, startup.check_startup, force=force)


async def territory(conn: AnyAsync, code: str, on: date | None = None) -> Territory:
    """The terms of territory `code` on the day `on` (today); needs no context.

    Raises `InvalidRequest` for an unknown code. Source of the rates: UStG paragraph 12 and the tax
    relief act of 2020 (DE), MWSTG article 25 (CH).
    """
    return await call(conn, territories.territory, code, on)
