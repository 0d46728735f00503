"""What the audit tells of a lead: who could edit it at a given time, and what was attempted."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from leadprotect.access.arguments import as_lead_id, as_user_id
from leadprotect.access.context import declaring
from leadprotect.audit.chains import bounds
from leadprotect.audit.reach import listing_reach, without_role
from leadprotect.database.statements import own_names, rows
from leadprotect.errors import InvalidRequest
from leadprotect.settings import current, render

if TYPE_CHECKING:
    from collections.abc import Collection
    from uuid import UUID

    from leadprotect.database.drivers import AnyConnection

MAX_ATTEMPTS = 10_000

_EVER = ("-infinity", "infinity")


@dataclass(frozen=True)
class Right:
    """A user's right to edit a lead at a moment; `could_edit` is false for who was suspended, or nobody.

    `reason` is a code of the decision; `since` and `until` bound the right itself (None: not known,
    or open); `source` says what it rests on: how the owner came to the lead, or which rule.
    """

    territory: str
    user_id: Any | None
    could_edit: bool
    reason: str
    since: datetime | None
    until: datetime | None
    source: str | None


@dataclass(frozen=True)
class Recorded:
    """An attempt as the audit has it; see the columns of lead_access_audit."""

    id: int
    at: datetime
    lead_id: Any
    user_id: Any | None
    login: str
    role: str
    territory: str | None
    action: str
    outcome: str
    reason: str
    note: str | None
    correlation_id: str | None


@dataclass(frozen=True)
class Rights:
    """Who could edit a lead; `left_out` names territories whose role the login does not hold."""

    rights: tuple[Right, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Attempts:
    """Attempts, the newest first; `left_out` names territories whose role the login does not hold."""

    attempts: tuple[Recorded, ...]
    left_out: tuple[str, ...]


def who_could_edit(conn: AnyConnection, lead_id: Any, at: datetime) -> Rights:
    """Who could edit the lead at the time `at`, and why, in the territories that the login may read.

    For auditors and managers; needs no context, and one narrows it. From assignments, their history,
    and rules with the dates at which they held. A lead that nobody owned yields a row without user.
    Raises `InvalidRequest` for a time without a zone or still to come, for an id of the wrong type,
    and where nothing is known of the lead, `ProtectionUnavailable` for other logins, and for one that
    holds the role of no territory.
    """
    _check_zone("at", at)
    if at > datetime.now(UTC):
        message = f"at: {at.isoformat()} is still to come"
        raise InvalidRequest(message)
    call = render("SELECT * FROM {schema}.who_could_edit(%s::{lead_type}, %s::pg_catalog.timestamptz)", current())
    found = rows(conn, call, (as_lead_id(lead_id), at))
    left_out = without_role(conn)
    if not found:
        more = f"; {', '.join(left_out)} left out: it does not hold their roles" if left_out else ""
        here = f"nothing is known of lead {lead_id} in the territories that this login may read{more}"
        message = f"{here}; look at its id, or ask as a member of its territory"
        raise InvalidRequest(message)
    return Rights(tuple(Right(*right) for right in found), left_out)


def attempts(
    conn: AnyConnection,
    *,
    lead_id: Any = None,
    user_id: UUID | str | None = None,
    outcome: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int = 100,
    territories: Collection[str] | None = None,
) -> Attempts:
    """The newest attempts that the login may read, newest first; every filter narrows them.

    For auditors, in a transaction; `outcome` is ALLOW or DENY, `since` inclusive, `until` exclusive,
    `territories` asks for these alone ('': for what belongs to none).
    Raises `InvalidRequest` for a filter that can't be right, `ContextMissing` in autocommit,
    `ProtectionUnavailable` for other logins, and for one that holds the role of no territory.
    """
    if outcome not in {None, "ALLOW", "DENY"}:
        message = f"outcome: {outcome!r} is not ALLOW or DENY"
        raise InvalidRequest(message)
    if not 1 <= limit <= MAX_ATTEMPTS:
        message = f"limit: {limit} is not between 1 and {MAX_ATTEMPTS}"
        raise InvalidRequest(message)
    for name, time in (("since", since), ("until", until)):
        _check_zone(name, time)
    query = """
        SELECT a.id, a.at, a.lead_id, a.user_id, a.login::text, a.role::text, a.territory, a.action::text,
               a.outcome::text, a.reason, a.note, a.correlation_id
        FROM {schema}.lead_access_audit AS a
        WHERE a.territory IS NOT DISTINCT FROM %s::text
          AND (%s::{lead_id_type} IS NULL OR a.lead_id = %s)
          AND (%s::text IS NULL OR a.user_id = {schema}.parse_user(%s))
          AND (%s::text IS NULL OR a.outcome::text = %s)
          AND a.at >= coalesce(%s::timestamptz, '-infinity') AND a.at < coalesce(%s::timestamptz, 'infinity')
          AND a.at >= %s::timestamptz AND a.at < %s::timestamptz
        ORDER BY a.at DESC, a.id DESC LIMIT %s
        """
    lead, user = as_lead_id(lead_id), None if user_id is None else as_user_id(user_id)
    filters = (lead, lead, user, user, outcome, outcome, since, until)
    found: list[Recorded] = []
    with own_names(conn):
        reach = listing_reach(conn, territories)
        parts = [_EVER] if lead is not None else _newest_first(conn)
        for code in reach.inside:
            with declaring(conn, "", code or ""):
                mine: list[Recorded] = []
                for part in parts:
                    values = (code, *filters, *part, limit - len(mine))
                    mine += [Recorded(*attempt) for attempt in rows(conn, render(query, current()), values)]
                    if len(mine) == limit:
                        break
            found += mine
    found.sort(key=lambda attempt: (attempt.at, attempt.id), reverse=True)
    return Attempts(tuple(found[:limit]), reach.left_out)


def _newest_first(conn: AnyConnection) -> list[tuple[str, str]]:
    """The time in parts, the newest first: each partition, and what lies in none, before, between and behind them.

    There is no index by time, which each attempt would pay for: so the newest are looked for where they are.
    """
    ends = list(dict.fromkeys(bound for part in bounds(conn) for bound in part))  # one's end is the next one's begin
    return [*zip(["-infinity", *ends], [*ends, "infinity"], strict=True)][::-1]


def _check_zone(name: str, time: datetime | None) -> None:
    if time is not None and time.tzinfo is None:
        message = f"{name}: {time.isoformat()} needs a time zone; 9 o'clock is another moment in another place"
        raise InvalidRequest(message)
