"""The audit as JSON lines, with its seals: a file that `leadprotect audit verify --file` can check offline."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leadprotect.access.context import declaring
from leadprotect.audit import chains
from leadprotect.audit.reach import listing_reach
from leadprotect.audit.seals import FORMAT, ROW, ROW_ORDER, ROW_TEXT, SEAL, SEAL_TEXT, seal_body
from leadprotect.database.connection import own_names, row, rows, streamed
from leadprotect.errors import InvalidRequest
from leadprotect.settings import current, render

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime
    from typing import TextIO

    import psycopg

    from leadprotect.audit.reach import Reach


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
        message = "since and until need a time zone: 9 o'clock is another moment in another place"
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
    chains = {code: _links(conn, code, since, until) for code in reach.inside}
    _write(out, {**_header(conn, chains, since, until), "left_out": reach.left_out})
    for links in chains.values():
        for link in links:
            _write(out, link)
    return sum(_sealed_rows(conn, out, code, links) for code, links in chains.items())


def _header(
    conn: psycopg.Connection[Any],
    chains: dict[str | None, list[dict[str, Any]]],
    since: datetime | None,
    until: datetime | None,
) -> dict[str, Any]:
    query = """
        SELECT current_database()::text, {schema}.audit_origin(), session_user::text, now() AT TIME ZONE 'Etc/UTC'
        """
    database, origin, login, now = row(conn, render(query, current()))
    heads = [
        {"territory": code, "number": links[-1]["number"], "hash": links[-1]["hash"]}
        for code, links in chains.items()
        if links
    ]
    return {
        "type": "export", "format": FORMAT, "database": database, "origin": origin,
        "exported_by": login, "exported_at": now.isoformat(),
        "since": since.isoformat() if since else None, "until": until.isoformat() if until else None, "heads": heads,
    }  # fmt: skip


def _links(
    conn: psycopg.Connection[Any], territory: str | None, since: datetime | None, until: datetime | None
) -> list[dict[str, Any]]:
    """Every seal of a chain: in full where it has rows of the period, else what links the chain."""
    query = f"""
        SELECT {SEAL_TEXT}, encode(s.previous, 'hex'), encode(s.hash, 'hex'),
               s.detached_table IS NOT NULL OR s.last_at >= coalesce(%s::timestamptz, '-infinity')
                 AND s.first_at < coalesce(%s::timestamptz, 'infinity')
        FROM {render("{schema}", current())}.lead_access_audit_seals AS s
        WHERE s.territory IS NOT DISTINCT FROM %s::text ORDER BY s.number
        """
    found = []
    with declaring(conn, "", territory or ""):
        for text, previous, own, full in rows(conn, query, (since, until, territory)):
            fields = dict(zip(SEAL, json.loads(text)[1:], strict=True))
            place = {"territory": fields["territory"], "number": fields["number"]}
            shown = {"type": "seal", **fields} if full else {"type": "link", **place, "body": seal_body(fields).hex()}
            found.append({**shown, "previous": previous, "hash": own})
    return found


def _sealed_rows(conn: psycopg.Connection[Any], out: TextIO, territory: str | None, links: list[dict[str, Any]]) -> int:
    # month by month: a seal holds rows of one, and PostgreSQL reads that partition only
    months: dict[str, list[int]] = {}
    for link in links:
        if link["type"] == "seal" and link["row_count"] and link["detached_table"] is None:
            months.setdefault(link["month"], []).append(link["number"])
    return sum(_month(conn, out, territory, month, seals) for month, seals in sorted(months.items()))


def _month(conn: psycopg.Connection[Any], out: TextIO, territory: str | None, month: str, seals: list[int]) -> int:
    query = f"""
        WITH {chains.ASKED}, sealed AS (
          SELECT s.number, i.id
          FROM {render("{schema}", current())}.lead_access_audit_seals AS s, asked,
            unnest(s.ids) AS r, generate_series(lower(r), upper(r) - 1) AS i (id)
          WHERE s.territory IS NOT DISTINCT FROM asked.territory AND s.month = asked.month AND s.number = ANY (%s)
        ), held AS (
          {chains.recorded(conn, f"a.id, a.at, a.lead_id, {ROW_TEXT} AS text", chains.IN_MONTH)}
        )
        SELECT sealed.number, held.text FROM sealed JOIN held USING (id) ORDER BY sealed.number, {ROW_ORDER}
        """
    return _stream(conn, out, territory, query, (*chains.asked(territory, month), seals))


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
          {chains.recorded(conn, f"a.id, a.at, a.lead_id, {ROW_TEXT} AS text", wanted)}) AS held
        ORDER BY {ROW_ORDER}
        """
    return _stream(conn, out, territory, query, (territory, since, until))


def _stream(
    conn: psycopg.Connection[Any], out: TextIO, territory: str | None, query: str, params: tuple[Any, ...]
) -> int:
    written = 0
    with declaring(conn, "", territory or ""):
        for number, text in streamed(conn, query, params):
            fields = dict(zip(ROW, json.loads(text)[1:], strict=True))
            _write(out, {"type": "row", "seal": number, **fields} if number is not None else fields)
            written += 1
    return written


def _write(out: TextIO, line: dict[str, Any]) -> None:
    out.write(json.dumps(line, ensure_ascii=False) + "\n")
