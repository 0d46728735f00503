"""Moves leads to the database of another territory, in slices; takes up or cancels what stands still."""

from __future__ import annotations

import random
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from leadprotect.access.arguments import as_lead_id, as_user_id, check_text
from leadprotect.database.blockers import sqlstate
from leadprotect.database.connection import connect
from leadprotect.database.replication import standby
from leadprotect.database.statements import rows
from leadprotect.errors import (
    ConnectionUnusable,
    InvalidRequest,
    LeadAccessDenied,
    LeadProtectError,
    LockUnavailable,
    ProtectionUnavailable,
    SettingsError,
)
from leadprotect.fleet import handover, manifest, travelling
from leadprotect.fleet.exchange import Sent
from leadprotect.fleet.handover import Route, Side
from leadprotect.settings import acting_with, render
from leadprotect.settings.databases import SECTION

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from leadprotect.settings import Settings
    from leadprotect.settings.databases import TerritoryDatabase

    Tell = Callable[[int, int | None], object]

AT_ONCE = 25
"""Leads a slice: so many are frozen, copied and deleted in one transaction each."""

# who edits goes before who moves: a lock that is not to be had at once is tried again, from the beginning
_LOCK_MS = 50
_TRIES = 40
_PAUSE_S = 0.1
_CONSTRAINT = "23"
_AHEAD = 1000
"""Leads whose ids are read at once, where all of a territory go."""


@dataclass(frozen=True)
class Refused:
    """A lead that did not move, and why; nothing of it was changed unless it is `standing` between the databases."""

    lead_id: str
    why: str
    standing: bool = False


@dataclass(frozen=True)
class MoveRun:
    """What a run did: `moved` leads went from `origin` to `to`, and their rows in both audits bear `correlation_id`."""

    origin: str
    to: str
    correlation_id: str
    moved: int
    refused: tuple[Refused, ...]
    dry_run: bool


@dataclass(frozen=True)
class HandOver:
    """A hand-over that has not ended on the side where it was read; `direction` is out or in."""

    lead_id: str
    id: UUID
    direction: str
    territory: str
    elsewhere: str
    state: str
    correlation_id: str


def move(
    settings: Settings,
    leads: Iterable[Any] | None,
    *,
    to: str,
    origin: str,
    actor: UUID | str,
    correlation_id: str | None = None,
    values: Mapping[str, str | None] | None = None,
    renumber: Sequence[str] = (),
    at_once: int = AT_ONCE,
    dry_run: bool = False,
    tell: Tell | None = None,
) -> MoveRun:
    """Move leads from `origin` to `to`, each with its rows of lead_tables; None means every lead of `origin`.

    For a manager of both territories, who is recorded as `actor` beside the login. `values` are columns of the lead
    and what they hold there; rows of the tables in `renumber` get new numbers there. A lead that can't travel is
    refused and named, and the others go on. Run again after a crash, the same call goes on with what it had begun.
    `tell` gets the number of leads that are through, and of all where that is known.

    Raises `SettingsError` without databases, `InvalidRequest` with everything that keeps all of them from moving,
    `LeadAccessDenied` for a login that is no manager there or here, `ConnectionUnusable` where a server is lost.
    """
    check_text("correlation_id", correlation_id)
    with _route(
        settings, origin, to, as_user_id(actor), correlation_id or str(uuid4()), values=values or {}, renumber=renumber
    ) as route:
        moved, refused = 0, []
        total = None
        if leads is not None:
            given = travelling.ordered(route.here.conn, settings, [*_ids(settings, leads)])
            slices: Iterable[list[str]] = (given[n : n + at_once] for n in range(0, len(given), at_once))
            total = len(given)
        else:
            slices = _all_of(route, at_once)
        for part, last in _and_last(slices):
            said = _slice(replace(route, lasts=last), part, dry_run=dry_run)
            refused += said
            moved += len(part) - len(said)
            if tell:
                tell(moved + len(refused), total)
    return MoveRun(origin, to, route.correlation_id, moved, tuple(refused), dry_run)


def resume_moves(
    settings: Settings, *, actor: UUID | str, values: Mapping[str, str | None] | None = None,
    renumber: Sequence[str] = (), at_once: int = AT_ONCE, tell: Tell | None = None,
) -> tuple[MoveRun, ...]:  # fmt: skip
    """End every hand-over that stands between the databases of the settings, each with its own correlation id."""
    found = []
    for way, standing in _by_way(standing_in(settings, as_user_id(actor))).items():
        origin, to, correlation_id = way
        user = as_user_id(actor)
        with _route(settings, origin, to, user, correlation_id, values=values or {}, renumber=renumber) as route:
            refused: list[Refused] = []
            for first in range(0, len(standing), at_once):
                part = dict(standing[first : first + at_once])
                said = [
                    Refused(lead, f"it is not in {origin} any more: leadprotect move {lead} --cancel deletes the copy "
                            f"that waits in {to}")
                    for lead in sorted(handover.orphaned(route, part))
                ]  # fmt: skip
                going = {lead: one for lead, one in part.items() if lead not in {each.lead_id for each in said}}
                said += _each(going, lambda some, route=route: _carry(route, some), _tries)  # type: ignore[misc]
                refused += _standing_of(route, said)
                if tell:
                    tell(first + len(part), len(standing))
        found.append(MoveRun(origin, to, correlation_id, len(standing) - len(refused), tuple(refused), dry_run=False))
    return tuple(found)


def cancel_moves(settings: Settings, leads: Iterable[Any], *, actor: UUID | str) -> int:
    """Give leads that stand between two databases back to their owners; returns how many. For managers of both.

    Of one that a crash has made its origin forget, and that has gone to a third territory since, the copy is deleted.
    Raises `LeadProtectError` for one that has arrived already, is not on its way, or is nowhere but in that copy.
    """
    user = as_user_id(actor)
    wanted = _ids(settings, leads)
    ways = _by_way([one for one in standing_in(settings, user) if one.lead_id in wanted])
    if unknown := wanted - {lead for pairs in ways.values() for lead, _ in pairs}:
        raise LeadProtectError(f"lead {min(unknown)} is not on its way anywhere")
    for (origin, to, correlation_id), pairs in ways.items():
        with _route(settings, origin, to, user, correlation_id, values=None, renumber=()) as route:
            going = dict(pairs)
            if orphans := handover.orphaned(route, going):
                _require_home(settings, user, route, orphans)
                handover.forget(route, {lead: going.pop(lead) for lead in orphans})
            if going:
                handover.withdraw(route, going)
    return len(wanted)


def _require_home(settings: Settings, actor: str, route: Route, leads: Collection[str]) -> None:
    """Raise `LeadProtectError` unless each of them lives in a third territory: a copy may be all that is left of it."""
    ends = (route.here.territory, route.there.territory)
    homeless = {*leads}
    for one in settings.databases:
        if codes := [code for code in one.territories if code not in ends]:
            with connect(_of(settings, one), lock_timeout=_LOCK_MS) as conn:
                for territory in codes:
                    with conn.transaction():
                        rows(
                            conn,
                            render("SELECT {schema}.set_context(%s::text, %s::text)", settings),
                            (actor, territory),
                        )
                        found = rows(conn, render(_AT_HOME, settings), ([*homeless], territory, territory))
                    homeless -= {lead for (lead,) in found}
    if homeless:
        raise LeadProtectError(
            f"lead {min(homeless)}: {ends[0]} does not have it, and no other territory that you manage: the copy in "
            f"{ends[1]} may be all that is left of it; restore {ends[0]} to a later time, or cancel it as a manager of "
            "the territory that has the lead"
        )


# one that is itself on its way to there is no proof: its hand-over may be cancelled, too
_AT_HOME = (
    "SELECT l.{lead_id}::text FROM {leads} AS l WHERE l.{lead_id} = ANY (%s::{lead_type}[]) "
    "AND {territory_of_l}::text = %s AND NOT EXISTS (SELECT FROM {schema}.lead_handovers AS h "
    "WHERE h.lead_id = l.{lead_id} AND h.territory = %s AND h.ended_at IS NULL)"
)


def _ids(settings: Settings, leads: Iterable[Any]) -> set[str]:
    """As the server writes them, each once; raises `InvalidRequest` naming one that is none."""
    with acting_with(settings):
        return {str(as_lead_id(lead)) for lead in leads}


def standing_in(settings: Settings, actor: str) -> list[HandOver]:
    """What has not ended in any database of the settings, in the territories that the login manages."""
    if not settings.databases:
        raise SettingsError(f"there is no section [{SECTION}]; write into it: CH = postgresql://...")
    found: list[HandOver] = []
    for one in settings.databases:
        with connect(_of(settings, one), lock_timeout=_LOCK_MS) as conn:
            for territory in one.territories:
                with conn.transaction():
                    found += _standing(conn, settings, territory, actor)
    return found


def _standing(conn: handover.Connection, s: Settings, territory: str, actor: str) -> Iterator[HandOver]:
    context = render("SELECT {schema}.set_context(%s::text, %s::text)", s)
    rows(conn, context, (actor, territory))
    statement = render(
        "SELECT h.lead_id::text, h.id, h.direction, h.territory, h.elsewhere, h.state, "
        "coalesce(h.correlation_id, '') FROM {schema}.lead_handovers AS h "
        "WHERE h.territory = %s AND h.ended_at IS NULL ORDER BY h.began_at, h.lead_id",
        s,
    )
    yield from (HandOver(*one) for one in rows(conn, statement, (territory,)))


def _by_way(standing: Sequence[HandOver]) -> dict[tuple[str, str, str], list[tuple[str, UUID]]]:
    """Hand-overs that go the same way, each once: it stands on one side or on both."""
    found: dict[tuple[str, str, str], dict[str, UUID]] = {}
    for one in standing:
        ends = (one.territory, one.elsewhere) if one.direction == "out" else (one.elsewhere, one.territory)
        found.setdefault((*ends, one.correlation_id), {})[one.lead_id] = one.id
    return {way: [*pairs.items()] for way, pairs in found.items()}


@contextmanager
def _route(
    s: Settings, origin: str, to: str, actor: str, correlation_id: str, *,
    values: Mapping[str, str | None] | None, renumber: Sequence[str],
) -> Iterator[Route]:  # fmt: skip
    """Both connections, and the plan of what travels; nothing is sent where `values` is None, so nothing is refused."""
    ends = _database(s, origin), _database(s, to)
    if origin == to:
        raise InvalidRequest(f"--to {to}: the leads are there already")
    if ends[0] is ends[1]:
        raise InvalidRequest(manifest.one_database(s, origin, to))
    first, second = (_of(s, one) for one in ends)
    with connect(first, lock_timeout=_LOCK_MS) as here, connect(second, lock_timeout=_LOCK_MS) as there:
        for conn, code in ((here, origin), (there, to)):
            if found := standby(conn):
                named = f", {found.primary}" if found.primary else ""
                raise InvalidRequest(
                    f"the server of {code} is a standby, and nothing moves there: name its primary{named}"
                )
            conn.execute(_LASTING)
        made = manifest.manifest(here, there, s, origin=origin, to=to, values=values, renumber=renumber)
        yield Route(Side(here, origin), Side(there, to), s, actor, correlation_id, made)


_LASTING = "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
"""A login may do without; but a row is deleted here because its copy there is on disk."""


def _database(s: Settings, code: str) -> TerritoryDatabase:
    if not s.databases:
        raise SettingsError(f"there is no section [{SECTION}]; write into it: {code} = postgresql://...")
    for one in s.databases:
        if code in one.territories:
            return one
    held = ", ".join(code for one in s.databases for code in one.territories)
    raise SettingsError(f"{code!r} is in no database of [{SECTION}]; those are of {held}")


def _of(s: Settings, one: TerritoryDatabase) -> Settings:
    return replace(s, database_url=one.url, territories=one.territories, databases=(one,))


def _all_of(route: Route, at_once: int) -> Iterator[list[str]]:
    """Every lead of the territory, in the order of the ids."""
    last: str | None = None
    page = at_once * ceil(_AHEAD / at_once)
    statement = render(
        "SELECT l.{lead_id}::text FROM {leads} AS l WHERE {territory_of_l}::text = %s "
        "AND (%s::{lead_type} IS NULL OR l.{lead_id} > %s::{lead_type}) ORDER BY l.{lead_id} LIMIT %s",
        route.settings,
    )
    while True:
        asked = Sent(statement, (route.here.territory, last, last, page))
        (found,) = handover.look_up(route, route.here, asked)
        if not found:
            return
        leads = [lead for (lead,) in found]
        last = leads[-1]
        yield from (leads[n : n + at_once] for n in range(0, len(leads), at_once))


def _and_last(slices: Iterable[list[str]]) -> Iterator[tuple[list[str], bool]]:
    """Each slice, and whether no other one comes after it."""
    coming = iter(slices)
    part = next(coming, None)
    while part is not None:
        following = next(coming, None)
        yield part, following is None
        part = following


def _slice(route: Route, leads: Sequence[str], *, dry_run: bool) -> list[Refused]:
    """Move these leads, or say of each why not; what was begun before goes on under its own id."""
    known, went = _known(route, leads)
    lost = [Refused(lead, handover.lost_between(route)) for lead in sorted(handover.unknown(route, went))]
    leads = [lead for lead in leads if lead not in went]
    if dry_run:
        ids = {lead: known[lead].id if lead in known else uuid4() for lead in leads}
        tried = _each(ids, lambda some: handover.try_out(route, some, fresh=known.keys().isdisjoint(some)), _tries)
        return lost + tried
    refused = lost + _go(route, leads, known)
    # here is committed before there: what stands there alone, a database that was restored has forgotten here
    unknown = [one.lead_id for one in refused if one.lead_id not in known]
    if came := _came(route, unknown):
        refused = [one for one in refused if one.lead_id not in came] + _go(route, [*came], came)
    return refused


def _go(route: Route, leads: Sequence[str], known: Mapping[str, HandOver]) -> list[Refused]:
    elsewhere = [one for one in known.values() if one.elsewhere != route.there.territory]
    refused = [Refused(one.lead_id, f"it is on its way to {one.elsewhere}") for one in elsewhere]
    going = [lead for lead in leads if lead not in {each.lead_id for each in elsewhere}]
    pairs = {lead: known[lead].id if lead in known else uuid4() for lead in going}
    route.unheard.update(pairs[lead] for lead in going if lead not in known)
    # what was begun before has its correlation id already, in one audit or in both
    ids = {lead: known[lead].correlation_id if lead in known else route.correlation_id for lead in going}
    for correlation_id in sorted(set(ids.values())):
        own = replace(route, correlation_id=correlation_id)
        some = {lead: pairs[lead] for lead in going if ids[lead] == correlation_id}
        refused += _each(some, lambda part, own=own: _carry(own, part), _tries)  # type: ignore[misc]
    return _standing_of(route, refused)


def _standing_of(route: Route, refused: list[Refused]) -> list[Refused]:
    """The same, and of each whether it stands between the databases now."""
    if not refused:
        return []
    leads = [one.lead_id for one in refused]
    (out,) = handover.look_up(route, route.here, _asked(route, f"{_STANDING} AND h.direction = 'out'", leads))
    standing = {lead for lead, *_ in out}
    return [replace(one, standing=one.lead_id in standing) for one in refused]


def _known(route: Route, leads: Sequence[str]) -> tuple[dict[str, HandOver], dict[str, UUID]]:
    """Hand-overs of these leads that were begun before and are not through, and those by which leads went already."""
    left, went = handover.look_up(
        route, route.here, _asked(route, f"{_STANDING} AND h.direction = 'out'", leads),
        _asked(route, _WENT, leads, route.there.territory),
    )  # fmt: skip
    gone: dict[str, UUID] = dict(went)
    known = _came(route, [*gone]) | {one[0]: HandOver(*one) for one in left}
    return known, {lead: one for lead, one in gone.items() if lead not in known}


def _came(route: Route, leads: Sequence[str]) -> dict[str, HandOver]:
    """Those of these leads that are there, and wait for the end of their hand-over."""
    if not leads:
        return {}
    (came,) = handover.look_up(route, route.there, _asked(route, _STANDING + _FROM, leads, route.here.territory))
    return {one[0]: replace(HandOver(*one), elsewhere=route.there.territory) for one in came}


_STANDING = (
    "SELECT h.lead_id::text, h.id, h.direction, h.territory, h.elsewhere, h.state, coalesce(h.correlation_id, '') "
    "FROM {schema}.lead_handovers AS h WHERE h.ended_at IS NULL AND h.lead_id = ANY (%s::{lead_type}[])"
)
_FROM = " AND h.direction = 'in' AND h.elsewhere = %s"
_WENT = (
    "SELECT h.lead_id::text, h.id FROM {schema}.lead_handovers AS h WHERE h.lead_id = ANY (%s::{lead_type}[]) "
    "AND h.state = 'gone' AND h.elsewhere = %s AND NOT EXISTS (SELECT FROM {leads} AS l WHERE l.{lead_id} = h.lead_id) "
    "ORDER BY h.began_at"
)


def _asked(route: Route, statement: str, leads: Sequence[str], *more: str) -> Sent:
    return Sent(render(statement, route.settings), ([*leads], *more))


def _each(
    pairs: Mapping[str, UUID], act: Callable[[Mapping[str, UUID]], object], tries: Callable[..., object]
) -> list[Refused]:
    """All at once; where one can't, each alone, so that it keeps none of the others."""
    if not pairs:
        return []
    try:
        tries(act, pairs)
    except LeadAccessDenied as denied:
        decisions = getattr(denied, "decisions", (denied.decision,))
        refused = [Refused(str(one.lead_id), one.reason) for one in decisions]
        rest = {lead: one for lead, one in pairs.items() if lead not in {each.lead_id for each in refused}}
        return refused + _each(rest, act, tries)
    except travelling.CannotTravel as kept:
        rest = {lead: one for lead, one in pairs.items() if lead not in kept.why}
        return [Refused(lead, why) for lead, why in kept.why.items()] + _each(rest, act, tries)
    except LeadProtectError as error:
        if not _of_a_lead(error):
            raise
        if len(pairs) > 1:
            return [one for lead, each in pairs.items() for one in _each({lead: each}, act, tries)]
        return [Refused(next(iter(pairs)), str(error))]
    return []


def _of_a_lead(error: LeadProtectError) -> bool:
    """Whether another lead may do better; not where a server is lost, or the login lacks a right."""
    if isinstance(error, ConnectionUnusable):
        state = sqlstate(error.__cause__) if error.__cause__ else None
        return bool(state and state.startswith(_CONSTRAINT))
    return not isinstance(error, (ProtectionUnavailable, SettingsError))


def _tries(act: Callable[[Mapping[str, UUID]], object], pairs: Mapping[str, UUID]) -> None:
    """Again and again while somebody holds a lock: one lead longer than many, of which each comes alone then."""
    tries = _TRIES if len(pairs) == 1 else 3
    for left in reversed(range(tries)):
        try:
            act(pairs)
        except LockUnavailable:
            if not left:
                raise
            time.sleep(random.uniform(0, _PAUSE_S))  # noqa: S311 - only so that two don't meet again
        else:
            return


def _carry(route: Route, pairs: Mapping[str, UUID]) -> None:
    """From wherever they stand to the end; what changed since it was sent is sent again."""
    fresh = route.unheard.issuperset(pairs.values())
    route.unheard.difference_update(pairs.values())
    gone = set() if fresh else handover.gone(route, pairs)
    going = {lead: one for lead, one in pairs.items() if lead not in gone}
    for left in reversed(range(5)):
        if not going:
            break
        try:
            handover.carry(route, going, fresh=fresh)
        except handover.Withdrawn:
            handover.withdraw(route, going)
            raise
        except handover.ChangedSince:
            if not left:
                raise
            fresh = False
        else:
            break
    handover.finish(route, pairs)
