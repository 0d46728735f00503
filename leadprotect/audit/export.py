"""The audit as JSON lines, with its seals: a file that `leadprotect audit verify --file` can check offline."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any

from leadprotect.access.context import declaring
from leadprotect.audit import chains
from leadprotect.audit.reach import listing_reach
from leadprotect.audit.seals import FORMAT, ROW, ROW_ORDER, ROW_SHOWN, SEAL, SEAL_TEXT, seal_body, zoned
from leadprotect.database.statements import own_names, row, rows, streamed
from leadprotect.errors import InvalidRequest
from leadprotect.settings import current, render

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from datetime import datetime
    from typing import TextIO

    import psycopg

    from leadprotect.audit.reach import Reach


_SEALS_AT_ONCE = 20  # a seal has a few bytes for each of its rows


@dataclass(frozen=True)
class Exported:
    """How many rows were written; `left_out` names territories whose role the login does not hold."""

    rows: int
    left_out: tuple[str, ...]


def export(
    conn: psycopg.Connection[Any],
    out: TextIO,
    *,
    sealed: bool = False,
    since: datetime | None = None,
    until: datetime | None = None,
    territories: Collection[str] | None = None,
) -> Exported:
    """Write the rows of a period that the login may read, one JSON object a line.

    `since` is inclusive, `until` exclusive, both with a time zone; `territories` asks for these alone
    ('': for rows without one). With `sealed`, the file holds sealed rows only, whole seals (so a few
    rows around the period as well), and every link of each chain up to its newest seal, and its first
    line names what was left out. For auditors, in a transaction.
    Raises `InvalidRequest` for a time without a zone and an unknown territory, `ContextMissing` in autocommit,
    `ProtectionUnavailable` for other logins, and for one that holds the role of no territory.
    """
    if any(time is not None and time.tzinfo is None for time in (since, until)):
        message = "since and until need a time zone, such as +01:00: 9 o'clock is another moment in another place"
        raise InvalidRequest(message)
    with own_names(conn):
        reach = listing_reach(conn, territories)
        write = _proved if sealed else _plain
        return Exported(write(conn, out, reach, since, until), reach.left_out)


def _plain(
    conn: psycopg.Connection[Any], out: TextIO, reach: Reach, since: datetime | None, until: datetime | None
) -> int:
    return sum(_rows(conn, out, code, since, until) for code in reach.inside)


def _proved(
    conn: psycopg.Connection[Any], out: TextIO, reach: Reach, since: datetime | None, until: datetime | None
) -> int:
    """Each chain link by link, and after each seal its rows: whoever reads the file holds one seal at a time."""
    heads = {code: head for code in reach.inside if (head := _head(conn, code))}
    _write(out, {**_header(conn, heads, since, until), "left_out": reach.left_out})
    return sum(_chain(conn, out, _Asked(code, newest, since, until)) for code, (newest, _) in heads.items())


@dataclass(frozen=True)
class _Asked:
    """A chain up to its seal `newest`, and the period of which it is shown in full."""

    territory: str | None
    newest: int
    since: datetime | None
    until: datetime | None


# where a seal, as s, has rows of the period
_FULL = """(s.detached_table IS NOT NULL OR s.last_at >= coalesce(%s::timestamptz, '-infinity')
                 AND s.first_at < coalesce(%s::timestamptz, 'infinity'))"""


def _head(conn: psycopg.Connection[Any], territory: str | None) -> tuple[int, str] | None:
    """The number and the hash of the newest seal of a chain; what is sealed later is for the next export."""
    query = """
        SELECT s.number, encode(s.hash, 'hex') FROM {schema}.lead_access_audit_seals AS s
        WHERE s.territory IS NOT DISTINCT FROM %s::text ORDER BY s.number DESC LIMIT 1
        """
    with declaring(conn, "", territory or ""):
        found = rows(conn, render(query, current()), (territory,))
    return (found[0][0], found[0][1]) if found else None


def _header(
    conn: psycopg.Connection[Any],
    heads: dict[str | None, tuple[int, str]],
    since: datetime | None,
    until: datetime | None,
) -> dict[str, Any]:
    query = """
        SELECT current_database()::text, {schema}.audit_origin(), session_user::text, now()
        """
    database, origin, login, now = row(conn, render(query, current()))
    return {
        "type": "export", "format": FORMAT, "database": database, "origin": origin,
        "exported_by": login, "exported_at": _utc(now), "since": since and _utc(since), "until": until and _utc(until),
        "heads": [{"territory": code, "number": number, "hash": own} for code, (number, own) in heads.items()],
    }  # fmt: skip


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _chain(conn: psycopg.Connection[Any], out: TextIO, asked: _Asked) -> int:
    written = 0
    with declaring(conn, "", asked.territory or ""):
        held = _sealed_rows(conn, asked)
        coming = next(held, None)
        for link in _links(conn, asked):
            _write(out, link)
            while coming is not None and coming[0] == link["number"]:
                _write(out, {"type": "row", "seal": coming[0], **_fields(coming[1])})
                written += 1
                coming = next(held, None)
    return written


def _links(conn: psycopg.Connection[Any], asked: _Asked) -> Iterator[dict[str, Any]]:
    """Every seal of a chain: in full where it has rows of the period, else what links the chain."""
    query = f"""
        SELECT {SEAL_TEXT}, encode(s.previous, 'hex'), encode(s.hash, 'hex'), {_FULL}
        FROM {render("{schema}", current())}.lead_access_audit_seals AS s
        WHERE s.territory IS NOT DISTINCT FROM %s::text AND s.number <= %s ORDER BY s.number
        """
    params = (asked.since, asked.until, asked.territory, asked.newest)
    for text, previous, own, full in streamed(conn, query, params, at_once=_SEALS_AT_ONCE):
        fields = dict(zip(SEAL, json.loads(text)[1:], strict=True))
        place = {"territory": fields["territory"], "number": fields["number"]}
        link = {"type": "link", **place, "body": seal_body(fields).hex()}
        shown = {"type": "seal", **zoned(fields)} if full else link
        yield {**shown, "previous": previous, "hash": own}


def _sealed_rows(conn: psycopg.Connection[Any], asked: _Asked) -> Iterator[tuple[Any, ...]]:
    """The rows of the seals that are shown in full, seal by seal: the number of the seal, and a row's text."""
    months = """
          , asked WHERE a.territory IS NOT DISTINCT FROM asked.territory AND a.at >= asked.low
            AND (a.at < asked.high OR NOT isfinite(a.at))"""
    month = "date_trunc('month', a.at AT TIME ZONE 'Etc/UTC')::date AS month"
    query = f"""
        WITH whole AS (
          SELECT s.number, s.month, s.ids FROM {render("{schema}", current())}.lead_access_audit_seals AS s
          WHERE s.territory IS NOT DISTINCT FROM %s::text AND s.number <= %s
            AND s.row_count > 0 AND s.detached_table IS NULL AND {_FULL}
        ), asked AS (
          SELECT %s::text AS territory, min(whole.month)::timestamp AT TIME ZONE 'Etc/UTC' AS low,
                 (max(whole.month)::timestamp + interval '1 month') AT TIME ZONE 'Etc/UTC' AS high
          FROM whole
        ), sealed AS (
          SELECT whole.number, whole.month, i.id
          FROM whole, unnest(whole.ids) AS r, generate_series(lower(r), upper(r) - 1) AS i (id)
        ), held AS (
          {chains.recorded(conn, f"a.id, a.at, a.lead_id, {month}, {ROW_SHOWN} AS text", months)}
        )
        SELECT sealed.number, held.text FROM sealed JOIN held USING (id, month) ORDER BY sealed.number, {ROW_ORDER}
        """
    params = (asked.territory, asked.newest, asked.since, asked.until, asked.territory)
    return streamed(conn, query, params)


def _rows(
    conn: psycopg.Connection[Any], out: TextIO, territory: str | None, since: datetime | None, until: datetime | None
) -> int:
    wanted = (
        ", asked WHERE a.territory IS NOT DISTINCT FROM asked.territory AND a.at >= asked.low AND a.at < asked.high"
    )
    query = f"""
        WITH asked AS (
          SELECT %s::text AS territory, coalesce(%s::timestamptz, '-infinity') AS low,
                 coalesce(%s::timestamptz, 'infinity') AS high)
        SELECT NULL, text FROM (
          {chains.recorded(conn, f"a.id, a.at, a.lead_id, {ROW_SHOWN} AS text", wanted)}) AS held
        ORDER BY {ROW_ORDER}
        """
    written = 0
    with declaring(conn, "", territory or ""):
        for _, text in streamed(conn, query, (territory, since, until)):
            _write(out, _fields(text))
            written += 1
    return written


def _fields(text: str) -> dict[str, Any]:
    """A row's fields, by name."""
    return zoned(dict(zip(ROW, json.loads(text), strict=True)))


def _write(out: TextIO, line: dict[str, Any]) -> None:
    out.write(json.dumps(line, ensure_ascii=False) + "\n")
