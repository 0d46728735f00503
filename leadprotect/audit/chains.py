"""What the database holds of a chain, as a stream: it shows rows and seals, and is asked for no hash."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from leadprotect.audit.seals import ROW, ROW_TEXT, SEAL, chained, seal_body
from leadprotect.database.statements import row, rows, streamed
from leadprotect.settings import current, ident, render

if TYPE_CHECKING:
    from collections.abc import Iterator

    from leadprotect.database.drivers import AnyConnection

CLOCK_S = 60
"""How far clocks may differ before and after a failover, and what a row's time may precede its transaction."""

ASKED = """asked AS (
          SELECT %s::text AS territory, %s::date AS month, %s::timestamp AT TIME ZONE 'Etc/UTC' AS low,
                 (%s::timestamp + interval '1 month') AT TIME ZONE 'Etc/UTC' AS high
        )"""
# a time that is infinite is a month of its own, and its own end
IN_MONTH = """
          WHERE a.territory IS NOT DISTINCT FROM (SELECT territory FROM asked)
            AND a.at >= (SELECT low FROM asked) AND a.at <= (SELECT high FROM asked)
            AND (a.at < (SELECT high FROM asked) OR NOT isfinite(a.at))"""


@dataclass(frozen=True)
class Entry:
    """A link of a chain, without what it says of its rows; `sized` is whether their numbers add up.

    `low` and `high` are the first and the last of these numbers, None where there is none.
    """

    number: int
    run: int
    month: str
    hash: str
    previous: str | None
    sized: bool
    low: int | None
    high: int | None
    detached_table: str | None


@dataclass(frozen=True)
class SealRun:
    """A run of `seal`; times in seconds since 1970, `snapshot` as PostgreSQL writes it."""

    number: int
    origin: str
    transaction: int
    sealed_at: float
    settled_until: float
    snapshot: str


@dataclass(frozen=True)
class Span:
    """Where the rows of a seal begin and end, by their numbers."""

    number: int
    run: int
    low: int
    high: int
    hash: str


def asked(territory: str | None, month: str) -> tuple[str | None, ...]:
    """The parameters of ASKED."""
    return (territory, month, month, month)


def newest_run(conn: AnyConnection) -> int:
    """The number of the newest run that the login sees, 0 before the first one."""
    (number,) = row(conn, render("SELECT coalesce(max(run), 0) FROM {schema}.lead_access_audit_seals", current()))
    return int(number)


def entries(conn: AnyConnection, territory: str | None, newest: int) -> Iterator[Entry]:
    """The chain of a territory up to the run `newest`, as it is stored."""
    query = """
        SELECT s.number, s.run, s.month::text, encode(s.hash, 'hex'), encode(s.previous, 'hex'),
               coalesce(s.detached_table IS NOT NULL OR s.row_count <= 100000 AND s.row_count = coalesce(
                 (SELECT sum(upper(r)::numeric - lower(r)) FROM unnest(s.ids) AS r), 0), false),
               lower(s.ids), upper(s.ids) - 1, s.detached_table::text
        FROM {schema}.lead_access_audit_seals AS s
        WHERE s.territory IS NOT DISTINCT FROM %s::text AND s.run <= %s ORDER BY s.number
        """
    for found in streamed(conn, render(query, current()), (territory, newest)):
        yield Entry(*found)


def detached_tables(conn: AnyConnection) -> list[str]:
    """Names of the tables that hold detached months and are still here."""
    query = """
        SELECT c.relname::text FROM pg_catalog.pg_class AS c
        WHERE c.relnamespace = pg_catalog.to_regnamespace(%s) AND c.relkind = 'r' AND NOT c.relispartition
          AND c.relname ~ '^lead_access_audit_[0-9]' ORDER BY 1
        """
    return [name for (name,) in rows(conn, query, (ident(current().schema),))]


def recorded(conn: AnyConnection, fields: str, source: str) -> str:
    """SQL of all rows, those of detached months included: `source` is what follows ``a`` in FROM."""
    tables = [ident(current().schema, name) for name in ("lead_access_audit", *detached_tables(conn))]
    return " UNION ALL ".join(f"SELECT {fields} FROM {name} AS a{source}" for name in tables)


def months(conn: AnyConnection, territory: str | None) -> list[str]:
    """Months that rows may be of, whether there are any: those of the partitions, and of rows that lie elsewhere."""
    parts = bounds(conn)
    ends = ["-infinity", *(high for _, high in parts)]
    between = [(low, high) for low, high in zip(ends, [*(low for low, _ in parts), None], strict=True) if low != high]
    outside = " OR ".join(["a.at >= %s::timestamptz AND a.at < %s::timestamptz"] * (len(between) - 1))
    outside = f"({outside or 'false'} OR a.at >= %s::timestamptz)"
    month = "date_trunc('month', a.at AT TIME ZONE 'Etc/UTC')::date::text"
    asked = "a.territory IS NOT DISTINCT FROM (SELECT territory FROM asked)"
    audit = render("{schema}", current()) + ".lead_access_audit"
    detached = [ident(current().schema, name) for name in detached_tables(conn)]
    query = f"""
        WITH asked AS (SELECT %s::text AS territory)
        SELECT {month} FROM {audit} AS a WHERE {asked} AND {outside}
        {"".join(f"UNION SELECT {month} FROM {name} AS a WHERE {asked} " for name in detached)}
        UNION SELECT m::date::text FROM unnest(%s::timestamptz[], %s::timestamptz[]) AS part (low, high),
          generate_series(
            low AT TIME ZONE 'Etc/UTC', high AT TIME ZONE 'Etc/UTC' - interval '1 day', interval '1 month') AS m
        ORDER BY 1
        """
    times = [time for pair in between for time in pair if time is not None]
    lows, highs = [low for low, _ in parts], [high for _, high in parts]
    return [month for (month,) in rows(conn, query, (territory, *times, lows, highs))]


def bounds(conn: AnyConnection) -> list[tuple[str, str]]:
    """From when to when the partitions reach, the oldest first; what is between and around them lies in the default."""
    query = """
        SELECT b.low::timestamptz::text, b.high::timestamptz::text
        FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid,
          LATERAL (SELECT pg_get_expr(c.relpartbound, c.oid) AS bound) AS e,
          LATERAL (SELECT substring(e.bound, 'FROM [(]''([^'']+)''[)]') AS low,
                          substring(e.bound, 'TO [(]''([^'']+)''[)]') AS high) AS b
        WHERE i.inhparent = %s::regclass AND e.bound <> 'DEFAULT' ORDER BY b.low::timestamptz
        """
    return [(low, high) for low, high in rows(conn, query, (ident(current().schema, "lead_access_audit"),))]


def runs(conn: AnyConnection, territory: str | None, newest: int) -> list[SealRun]:
    """Every run up to `newest`, the oldest first, and at last the one to come."""
    # every run seals the rows without territory, too: a chain that was emptied does not hide its runs
    query = """
        SELECT DISTINCT ON (s.run) s.run, s.origin, s.transaction_id::text, date_part('epoch', s.sealed_at),
               date_part('epoch', s.settled_until),
               CASE WHEN s.run = %s THEN s.snapshot::text END
        FROM {schema}.lead_access_audit_seals AS s
        WHERE s.detached_table IS NULL AND s.run <= %s AND (s.territory IS NULL OR s.territory = %s::text)
        ORDER BY s.run, s.number
        """
    found = rows(conn, render(query, current()), (newest, newest, territory))
    made = [SealRun(run, origin, int(xid), at, until, snapshot) for run, origin, xid, at, until, snapshot in found]
    (here,) = row(conn, render("SELECT {schema}.audit_origin()", current()))
    return [*made, SealRun(made[-1].number + 1 if made else 1, here, 0, inf, inf, "")]


def seal_fields(conn: AnyConnection, territory: str | None, number: int) -> dict[str, Any]:
    """A seal by the names of its fields, and what its hash should be as `computed`."""
    # what has a value for each row is long, and quoted faster here
    long = ("ids", "content", "row_checks")
    short = ", ".join("NULL" if name in long else value for name, value in SEAL.items())
    query = f"""
        SELECT json_build_array({short})::text, {", ".join(SEAL[name] for name in long)}, encode(s.previous, 'hex')
        FROM {render("{schema}", current())}.lead_access_audit_seals AS s
        WHERE s.territory IS NOT DISTINCT FROM %s::text AND s.number = %s
        """
    text, *values, previous = row(conn, query, (territory, number))
    fields = dict(zip(SEAL, json.loads(text), strict=True)) | dict(zip(long, values, strict=True))
    return fields | {"computed": chained(previous, seal_body(fields))}


def recorded_rows(
    conn: AnyConnection, territory: str | None, month: str, snapshot: str | None
) -> Iterator[tuple[int, float, bool, str]]:
    """The rows of a month in the order of their numbers: number, time, whether it was over, and the text of its hash.

    The time is in seconds since 1970; over is a row whose transaction had ended in `snapshot`.
    """
    # sorted as they are, and written out afterwards
    columns = ", ".join(f"a.{name}" for name in ROW)
    query = f"""
        WITH {ASKED}
        SELECT a.id, date_part('epoch', a.at), pg_visible_in_snapshot(a.transaction_id, %s::pg_snapshot), {ROW_TEXT}
        FROM (SELECT * FROM ({recorded(conn, columns, IN_MONTH)}) AS held ORDER BY held.id OFFSET 0) AS a
        """
    yield from streamed(conn, query, (*asked(territory, month), snapshot))
