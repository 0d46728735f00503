"""What the database holds of a chain: PostgreSQL's own functions hash and compare the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from leadprotect.audit.seals import ROW_HASH, ROW_ORDER, SEAL_HASH, numbers
from leadprotect.database.connection import rows
from leadprotect.settings import current, ident, render

if TYPE_CHECKING:
    from leadprotect.database.connection import AnyConnection

CLOCK = "interval '1 minute'"
"""How far clocks may differ before and after a failover, and what a row's time may precede its transaction."""


ASKED = """asked AS (
          SELECT %s::text AS territory, %s::date AS month, %s::timestamp AT TIME ZONE 'Etc/UTC' AS low,
                 (%s::timestamp + interval '1 month') AT TIME ZONE 'Etc/UTC' AS high
        )"""
# the limits let PostgreSQL leave out other months, the last line also holds for infinite times
IN_MONTH = """
          WHERE a.territory IS NOT DISTINCT FROM (SELECT territory FROM asked)
            AND a.at >= (SELECT low FROM asked) AND a.at <= (SELECT high FROM asked)
            AND date_trunc('month', a.at, 'Etc/UTC') = (SELECT low FROM asked)"""


@dataclass(frozen=True)
class Entry:
    """A link of a chain; `computed` is what its hash should be, `sized` whether its numbers add up."""

    number: int
    run: int
    month: str
    row_count: int
    hash: str
    previous: str | None
    computed: str
    sized: bool
    detached_table: str | None


@dataclass(frozen=True)
class Month:
    """What a seal's month holds: for one seal, or with `number` None for rows that no seal names.

    `late` are rows that came into a time which had been sealed before.
    """

    number: int | None
    found: int
    matches: bool
    removed: tuple[range, ...]
    late: tuple[range, ...]


def asked(territory: str | None, month: str) -> tuple[str | None, ...]:
    """The parameters of ASKED."""
    return (territory, month, month, month)


def entries(conn: AnyConnection, territory: str | None) -> list[Entry]:
    """The chain of a territory, as it is stored."""
    query = f"""
        SELECT s.number, s.run, s.month::text, s.row_count, encode(s.hash, 'hex'), encode(s.previous, 'hex'),
               encode({SEAL_HASH}, 'hex'),
               s.row_count = CASE WHEN s.detached_table IS NULL THEN coalesce(
                 (SELECT sum(upper(r)::numeric - lower(r)) FROM unnest(s.ids) AS r), 0) ELSE s.row_count END,
               s.detached_table::text
        FROM {render("{schema}", current())}.lead_access_audit_seals AS s
        WHERE s.territory IS NOT DISTINCT FROM %s::text ORDER BY s.number
        """
    return [Entry(*found) for found in rows(conn, query, (territory,))]


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
    """Months of which there are seals, or rows that should have one."""
    query = f"""
        WITH asked AS (SELECT %s::text AS territory), held AS (
          {recorded(conn, "a.at", ", asked WHERE a.territory IS NOT DISTINCT FROM asked.territory")})
        SELECT s.month::text FROM {render("{schema}", current())}.lead_access_audit_seals AS s, asked
        WHERE s.territory IS NOT DISTINCT FROM asked.territory
        UNION
        SELECT (date_trunc('month', held.at, 'Etc/UTC') AT TIME ZONE 'Etc/UTC')::date::text FROM held
        ORDER BY 1
        """
    return [month for (month,) in rows(conn, query, (territory,))]


def month(conn: AnyConnection, territory: str | None, name: str) -> list[Month]:
    """Compare the rows of a month with its seals, one result a seal, and one of unsealed rows."""
    query = f"""
        WITH {ASKED}, chain AS MATERIALIZED (
          SELECT s.* FROM {render("{schema}", current())}.lead_access_audit_seals AS s, asked
          WHERE s.territory IS NOT DISTINCT FROM asked.territory AND s.detached_table IS NULL
        ), run AS MATERIALIZED (
          -- every run seals the rows without territory, too: a chain that was emptied does not hide its runs
          SELECT DISTINCT ON (s.run) s.run, s.origin, s.snapshot, s.transaction_id, s.sealed_at, s.settled_until
          FROM {render("{schema}", current())}.lead_access_audit_seals AS s, asked
          WHERE s.detached_table IS NULL AND (s.territory IS NULL OR s.territory = asked.territory)
          ORDER BY s.run, s.number
        ), step AS MATERIALIZED (
          -- the run to come is one, too: what no seal names must not be older than the newest one
          SELECT r.run, r.origin, lag(r.run) OVER w AS before, lag(r.origin) OVER w AS before_origin,
                 lag(r.snapshot) OVER w AS before_snapshot, lag(r.sealed_at) OVER w AS before_sealed_at,
                 lag(r.settled_until) OVER w AS before_settled_until
          FROM (
            SELECT * FROM run
            UNION ALL
            SELECT coalesce(max(run), 0) + 1, {render("{schema}", current())}.audit_origin(), NULL, NULL, NULL, NULL
            FROM run
          ) AS r WINDOW w AS (ORDER BY r.run)
        ), seal AS MATERIALIZED (
          SELECT s.number, s.run, s.ids, s.content FROM chain AS s, asked
          WHERE s.month = asked.month AND s.row_count <= 100000 AND s.row_count = coalesce(
            (SELECT sum(upper(r)::numeric - lower(r)) FROM unnest(s.ids) AS r), 0)
        ), sealed AS (
          SELECT s.number, s.run, i.id
          FROM seal AS s, unnest(s.ids) AS r, generate_series(lower(r), upper(r) - 1) AS i (id)
        ), held AS (
          {recorded(conn, f"a.id, a.at, a.lead_id, a.transaction_id, {ROW_HASH} AS hash", IN_MONTH)}
        ), joined AS (
          SELECT sealed.number, coalesce(sealed.run, (SELECT max(run) FROM step)) AS run,
                 coalesce(sealed.id, held.id) AS id, held.at, held.lead_id, held.transaction_id, held.hash
          FROM sealed FULL JOIN held ON held.id = sealed.id
        ), judged AS (
          SELECT j.*,
                 j.hash IS NOT NULL AND step.before IS NOT NULL AND (
                   j.at < step.before_settled_until - {CLOCK}
                   OR step.before_origin = step.origin AND (
                     j.number IS NULL AND pg_visible_in_snapshot(j.transaction_id, step.before_snapshot)
                     OR j.at < step.before_sealed_at - {CLOCK} AND EXISTS (
                       SELECT FROM run AS r
                       WHERE r.origin = step.origin AND r.run < j.run AND r.transaction_id < j.transaction_id
                         AND j.at < r.sealed_at - {CLOCK}))) AS late
          FROM joined AS j JOIN step ON step.run = j.run
        ), facts AS (
          SELECT j.number, count(j.hash) AS found, sha256(string_agg(j.hash, '' ORDER BY {ROW_ORDER})) AS content,
                 range_agg(int8range(j.id, j.id, '[]')) FILTER (WHERE j.hash IS NULL) AS removed,
                 range_agg(int8range(j.id, j.id, '[]')) FILTER (WHERE j.late) AS late
          FROM judged AS j GROUP BY j.number
        )
        SELECT coalesce(seal.number, facts.number), coalesce(facts.found, 0),
               seal.content = coalesce(facts.content, sha256('')), facts.removed::text, facts.late::text
        FROM seal FULL JOIN facts ON facts.number = seal.number ORDER BY 1
        """
    results = rows(conn, query, asked(territory, name))
    return [
        Month(number, held, bool(matches), numbers(removed), numbers(late))
        for number, held, matches, removed, late in results
    ]


def changed(conn: AnyConnection, territory: str | None, number: int) -> tuple[range, ...]:
    """Numbers of the rows of a seal that are not as they were, or stand there twice."""
    of_seal = ", s WHERE s.ids @> a.id AND a.territory IS NOT DISTINCT FROM s.territory"
    query = f"""
        WITH s AS (
          SELECT * FROM {render("{schema}", current())}.lead_access_audit_seals AS s
          WHERE s.territory IS NOT DISTINCT FROM %s::text AND s.number = %s
        ), expected AS (
          SELECT i.id,
                 substring(s.row_checks FROM (row_number() OVER (ORDER BY i.id))::integer * 4 - 3 FOR 4) AS row_check
          FROM s, unnest(s.ids) AS r, generate_series(lower(r), upper(r) - 1) AS i (id)
        ), held AS (
          {recorded(conn, f"a.id, {ROW_HASH} AS hash", of_seal)}
        )
        SELECT range_agg(int8range(id, id, '[]'))::text FROM (
          SELECT e.id FROM expected AS e JOIN held ON held.id = e.id
          GROUP BY e.id, e.row_check
          HAVING count(*) > 1 OR bool_or(substring(held.hash FOR 4) <> e.row_check)) AS differing
        """
    ((ranges,),) = rows(conn, query, (territory, number))
    return numbers(ranges)
