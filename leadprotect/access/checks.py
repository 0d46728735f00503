"""May this user edit this lead? One decision with one reason, asked in several ways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from leadprotect import metrics
from leadprotect.access.among import LeadList
from leadprotect.access.arguments import as_lead_id, check_caller, missing
from leadprotect.access.context import declared, in_order, require_order, set_context, setting_context, trace_id
from leadprotect.access.places import living, not_here, whereabouts
from leadprotect.access.routing import K, ask_each
from leadprotect.database.bound import its_settings, per_database
from leadprotect.database.drivers import is_router
from leadprotect.database.statements import awaited_rows, row, rows
from leadprotect.database.waiting import aside, awaited_as
from leadprotect.decision import ALLOWED, Decision
from leadprotect.errors import InvalidRequest
from leadprotect.settings import current, render

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from uuid import UUID

    from sqlalchemy import Connection

    from leadprotect.access.routing import Router
    from leadprotect.database.drivers import AnyConnection
    from leadprotect.database.statements import Send
    from leadprotect.settings import Settings

MAX_PAGE = 1000
_ON_STANDBY = "pg_catalog.pg_is_in_recovery()"  # asked: a pooler may tell a client what was so before a failover


@dataclass(frozen=True)
class Page:
    """Some leads in the order of their ids; `after` asks for the next page, None means: no more."""

    leads: tuple[Decision, ...]
    after: Any | None

    @property
    def more(self) -> bool:
        """Whether more leads follow."""
        return self.after is not None


async def _can_edit(
    conn: AnyConnection, lead_id: Any, *, user_id: UUID | str | None = None, territory: str | None = None
) -> bool:
    (reason,) = await _decide_awaited(conn, lead_id, user_id, territory)
    return reason in ALLOWED


@per_database
@awaited_as(_can_edit)
def can_edit(
    conn: AnyConnection, lead_id: Any, *, user_id: UUID | str | None = None, territory: str | None = None
) -> bool:
    """Whether the user in context, or the one named, may edit the lead; one statement, nothing is recorded.

    `lead_id` has the type of the setting lead_id_type; an id given as text is converted. What is
    not named (None) comes from the context, and the context stays as it was.

    Raises `ContextMissing` without user or territory, or where one is named as '', `NotHere` where the settings name
    databases by territory, and this one does not have it, `InvalidRequest`
    for an id of the wrong type, `ProtectionUnavailable` when no answer could be had. Source of the
    rule: docs/explanation/decisions.md.
    """
    (reason,) = _decide(conn, lead_id, user_id, territory)
    return reason in ALLOWED


async def _explain(
    conn: AnyConnection, lead_id: Any, *, user_id: UUID | str | None = None, territory: str | None = None
) -> Decision:
    return Decision(lead_id, *await _decide_awaited(conn, lead_id, user_id, territory, f", {_ON_STANDBY}"))


@per_database
@awaited_as(_explain)
def explain(
    conn: AnyConnection, lead_id: Any, *, user_id: UUID | str | None = None, territory: str | None = None
) -> Decision:
    """The decision of `can_edit` with its reason, and whether a standby took it; takes and raises the same."""
    return Decision(lead_id, *_decide(conn, lead_id, user_id, territory, f", {_ON_STANDBY}"))


@overload
def can_edit_many(conn: AnyConnection, lead_ids: Iterable[K]) -> dict[K, bool]: ...


@overload
def can_edit_many(
    conn: Router, lead_ids: Iterable[tuple[str, K]], *, user_id: UUID | str
) -> dict[tuple[str, K], bool]: ...


@per_database
def can_edit_many(
    conn: AnyConnection | Router, lead_ids: Iterable[Any], *, user_id: UUID | str | None = None
) -> dict[Any, bool]:
    """For each lead, whether the user in context may edit it; keys as they were given, in the order asked.

    One statement; if none may be edited, a second one asks whether there is a context at all.

    In several databases: give `leadprotect.route` (or a function of your own that tells an engine for a territory) for
    the connection, pairs of territory and lead for the leads, and `user_id`. Every database is asked in a session of
    its own, all at once, and its territories one after the other there; the keys are the pairs.

    Raises what `can_edit` raises; of several databases `DatabasesUnavailable` where some gave no answer, with the
    answers of the others, `NotHere` where one does not have the territory, and what the function raises.
    """
    if is_router(conn):
        with metrics.timed("many"):
            return ask_each(conn, lead_ids, _Editable(user_id))
    if user_id is not None:
        raise InvalidRequest("user_id: the context of the connection says who asks; leave it out")
    leads = LeadList(lead_ids)
    with metrics.timed("many"):
        told = _told(conn, leads)
    return dict(zip(leads.given, told, strict=True))


class _Editable:
    """Which leads a user may edit; each territory in a transaction of its own session, with a context for it."""

    def __init__(self, user_id: UUID | str | None) -> None:
        self._user_id = user_id

    def ask(self, conn: Connection, territory: str, leads: list[Any]) -> list[bool]:
        asked, user_id = LeadList(leads), self._declaring(territory)
        with its_settings(conn):
            set_context(conn, user_id, territory, trace_id())
            return _told(conn, asked)

    def send(self, conn: Connection, send: Send, territory: str, leads: list[Any]) -> Callable[[], list[bool]]:
        user_id = self._declaring(territory)
        with its_settings(conn):
            s = current()
            asked = LeadList(leads)
            # in one statement; what is asked hangs on what was declared, so that comes first
            declaring, values = setting_context(s, user_id, territory, trace_id())
            statement = f"SELECT ({asked.statement('d.now')}) FROM ({declaring} OFFSET 0) AS d (now)"
            found = send(statement, (asked.value(conn), *values))

        def read() -> list[bool]:
            asked.expect()
            if not (answers := found()):
                raise not_here(s, territory)
            ((answer,),) = answers
            return asked.told(answer)

        return read

    def _declaring(self, territory: str) -> str:
        check_caller(self._user_id, territory)
        return str(self._user_id)


def _told(conn: AnyConnection, leads: LeadList) -> list[bool]:
    require_order(conn)
    (found,) = row(conn, leads.statement(), (leads.value(conn),))
    if not found:
        require_context(conn)
    return leads.told(found)


@per_database
def editable_leads(conn: AnyConnection, *, after: Any = None, limit: int = 100) -> Page:
    """A page of the leads that the user in context may edit, in the order of their ids.

    `after` is the last lead id of the page before, `limit` 1 to 1000 leads.
    Raises what `can_edit` raises, and `InvalidRequest` for a limit out of bounds.
    """
    if type(limit) is not int or not 1 <= limit <= MAX_PAGE:
        message = f"limit: {limit!r} is not a whole number between 1 and {MAX_PAGE}"
        raise InvalidRequest(message)
    require_order(conn)
    s = current()
    listed = f"SELECT lead, reason, {_ON_STANDBY} FROM {{schema}}.editable_leads(%s::{{lead_type}}, %s::integer)"
    statement = render(listed, s)
    with metrics.timed("list"):
        found = rows(conn, statement, (as_lead_id(after), limit + 1))
    if not found:
        require_context(conn)
    leads = tuple(Decision(*one) for one in found[:limit])
    return Page(leads, leads[-1].lead_id if len(found) > limit else None)


def _decide(
    conn: AnyConnection, lead_id: Any, user_id: UUID | str | None, territory: str | None, more: str = ""
) -> tuple[Any, ...]:
    """The reason, and what `more` asks in the same statement.

    A coroutine for both kinds of connections would cost a synchronous check 7 % of the client's instructions.
    """
    s, lead = current(), as_lead_id(lead_id)
    require_order(conn)
    with metrics.timed("check"):
        if user_id is None and territory is None:
            found = row(conn, _explained(s, more), (lead,))
            if found[0] == "no_context":
                require_context(conn)
            return found
        if user_id is None or territory is None:
            user_id, territory = _completed(declared(conn), user_id, territory)
        return _answer(rows(conn, *_decided(s, lead, user_id, territory, more)), s, territory)


async def _decide_awaited(
    conn: AnyConnection, lead_id: Any, user_id: UUID | str | None, territory: str | None, more: str = ""
) -> tuple[Any, ...]:
    s, lead = current(), as_lead_id(lead_id)
    if not in_order(conn):
        await aside(conn, require_order)
    with metrics.timed("check"):
        if user_id is None and territory is None:
            (found,) = await awaited_rows(conn, _explained(s, more), (lead,))
            if found[0] == "no_context":
                await aside(conn, require_context)
            return found
        if user_id is None or territory is None:
            user_id, territory = _completed(await aside(conn, declared), user_id, territory)
        return _answer(await awaited_rows(conn, *_decided(s, lead, user_id, territory, more)), s, territory)


def _explained(s: Settings, more: str) -> str:
    return render("SELECT {schema}.explain_edit(%s::{lead_type})" + more, s)


def _completed(
    outer: tuple[str | None, str | None, Any], user_id: UUID | str | None, territory: str | None
) -> tuple[UUID | str | None, str | None]:
    return outer[0] if user_id is None else user_id, outer[1] if territory is None else territory


def _decided(
    s: Settings, lead: Any, user_id: UUID | str | None, territory: str | None, more: str
) -> tuple[str, tuple[Any, ...]]:
    check_caller(user_id, territory)
    statement = "SELECT {schema}.decide(%s::{lead_type}, %s::pg_catalog.text, %s::pg_catalog.text)"
    here = living(s)
    values = (lead, str(user_id), territory, *whereabouts(s, territory))
    return render(statement + more, s) + (here and f" WHERE {here}"), values


def _answer(answers: list[tuple[Any, ...]], s: Settings, territory: str | None) -> tuple[Any, ...]:
    if not answers:
        raise not_here(s, territory)
    (found,) = answers
    return found


def require_context(conn: AnyConnection, *, user: bool = True) -> None:
    """Raise `ContextMissing` where nothing was found for want of a territory, or (with `user`) of a user."""
    user_id, territory, _ = declared(conn)
    if not territory or (user and not user_id):
        missing(user_id or not user, territory)
