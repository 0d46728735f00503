"""The audit's months and seals, and the quarantine that holds what a downgrade left."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from leadprotect.database.catalog import relation
from leadprotect.database.privileges import Object, revoking
from leadprotect.doctor import present
from leadprotect.doctor.finding import Fault, check
from leadprotect.preflight.leftovers import foreign_quarantine, leftovers
from leadprotect.settings import Settings, ident

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

_MONTHS = 12
_PARTS = """
    SELECT c.relname::text FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
    WHERE i.inhparent = (SELECT p.oid FROM pg_class AS p JOIN pg_namespace AS n ON n.oid = p.relnamespace
                         WHERE n.nspname = %s AND p.relname = 'lead_access_audit')
    """


@check("warning", "Its rows fall into the default partition, and no month can be detached from it.")
def audit_month_missing(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """No partition of the audit for this month or the next one (UTC)."""
    standing = {name for (name,) in conn.execute(_PARTS, (s.schema,)).fetchall()}
    now = datetime.now(UTC)
    for ahead in (0, 1):
        year, month = divmod(now.year * _MONTHS + now.month - 1 + ahead, _MONTHS)
        name = f"lead_access_audit_{year}_{month + 1:02}"
        if standing and name not in standing:
            yield Fault(f"{s.schema}.lead_access_audit", f"{name} is missing", "leadprotect audit partitions")


@check("warning", "A month with rows there can't get a partition of its own without a lock.")
def audit_default_filled(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """Rows in the default partition of the audit, as the size of its file tells."""
    query = """
        SELECT pg_relation_size(c.oid) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = %s AND c.relname = %s AND pg_relation_size(c.oid) > 0
        """
    for (size,) in conn.execute(query, (s.schema, present.DEFAULT_PARTITION)).fetchall():
        where = f"{s.schema}.{present.DEFAULT_PARTITION}"
        yield Fault(where, f"it holds rows ({size:,} bytes)", "leadprotect audit partitions")


# where every run leaves a seal in every chain, the first one in that of the rows without territory
_CHAINS = """
    SELECT coalesce(quote_literal(s.territory), 'without territory'), max(s.number) - count(*),
           max(s.run) FILTER (WHERE s.detached_table IS NULL),
           (SELECT max(n.run) FROM {seals} AS n WHERE n.detached_table IS NULL)
    FROM {seals} AS s GROUP BY s.territory ORDER BY s.territory NULLS FIRST
    """


@check("warning", "What a seal said of its rows is gone with it: they can be changed, and nobody sees it.")
def chain_short(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A chain of seals that has lost some (a danger): its numbers have holes, or it ends before the others do."""
    seals = ident(s.schema, "lead_access_audit_seals")
    if _sealed_at(conn, s, seals) is None:
        return
    look = "# leadprotect audit verify says which, and --anchor whether all chains were cut alike"
    for chain, lost, last, newest in conn.execute(_CHAINS.format(seals=seals).encode()).fetchall():
        if lost:
            yield Fault(f"chain {chain}", f"{lost} seals are missing in it", look, "danger")
        if last is None or last < newest:
            yield Fault(f"chain {chain}", f"it ends at run {last or 0}, others at run {newest}", look, "danger")


@check("warning", "Until it is sealed, a row can be changed, and nothing shows it.")
def seals_old(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """Rows of the audit that are older than a day, and later than the newest seal."""
    if relation(conn, s.schema, "lead_access_audit") is None:
        return
    newest = _sealed_at(conn, s, ident(s.schema, "lead_access_audit_seals"))
    query = f"""
        SELECT min(a.at)::text FROM {ident(s.schema, "lead_access_audit")} AS a
        WHERE a.at > coalesce(%s::timestamptz, '-infinity') AND a.at < now() - interval '1 day'
        """
    for (since,) in conn.execute(query.encode(), (newest,)).fetchall():
        if since is not None:
            yield Fault(
                f"{s.schema}.lead_access_audit", f"no seal names rows from {since} on", "leadprotect audit seal"
            )


@check("warning", "Who can write as the owner of the tables can make all chains anew, and they would be intact.")
def anchor_missing(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """Seals of which count and newest hash were never written elsewhere, or not for a month."""
    anchors = ident(s.schema, "audit_anchors")
    newest = _sealed_at(conn, s, ident(s.schema, "lead_access_audit_seals"))
    if newest is None or relation(conn, s.schema, "audit_anchors") is None:
        return
    query = f"""
        SELECT max(n.anchored_at)::text, coalesce(max(n.anchored_at) < %s::timestamptz - interval '31 days', true)
        FROM {anchors} AS n
        """
    for noted, missing in conn.execute(query.encode(), (newest,)).fetchall():
        if missing:
            what = f"its chains were last anchored at {noted}" if noted else "its chains were never anchored"
            yield Fault(f"{s.schema}.lead_access_audit_seals", what, "leadprotect audit anchor --output FILE")


def _sealed_at(conn: psycopg.Connection[Any], s: Settings, seals: str) -> str | None:
    """When the newest run of seals began; None before the first one, and in an upgrade that has not made them yet."""
    if relation(conn, s.schema, "lead_access_audit_seals") is None:
        return None
    row = conn.execute(f"SELECT max(sealed_at)::text FROM {seals} WHERE detached_table IS NULL".encode()).fetchone()
    return row[0] if row else None


@check("danger", "What is moved there at a downgrade would be theirs.", needs=None)
def quarantine_foreign(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A schema of the quarantine's name that is not ours, or in which others have something or may put it."""
    statements: list[str] = []
    problems = foreign_quarantine(conn, s, statements)
    yield from (Fault(f"schema {s.quarantine}", problem, " ".join(statements) or None) for problem in problems)


@check("danger", "It holds owners and evidence, and a downgrade took every right on it away.", needs=None)
def quarantine_readable(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A privilege on a table in the quarantine, or on a column of it."""
    query = """
        SELECT c.oid, c.relname::text, given.column_name, coalesce(r.rolname::text, 'PUBLIC'),
               string_agg(DISTINCT acl.privilege_type, ', ')
        FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        CROSS JOIN LATERAL (
          SELECT NULL, c.relacl
          UNION ALL SELECT a.attname::text, a.attacl FROM pg_attribute AS a WHERE a.attrelid = c.oid
        ) AS given (column_name, list)
        CROSS JOIN LATERAL aclexplode(given.list) AS acl LEFT JOIN pg_roles AS r ON r.oid = acl.grantee
        WHERE n.nspname = %s AND acl.grantee <> c.relowner GROUP BY 1, 2, 3, 4 ORDER BY 2, 3 NULLS FIRST, 4
        """
    for oid, name, column, role, verbs in conn.execute(query, (s.quarantine,)).fetchall():
        on = Object("column" if column else "relation", oid, ident(s.quarantine, name), column)
        where = f"{s.quarantine}.{name}{'.' + column if column else ''}"
        yield Fault(where, f"{role} has {verbs}", revoking(conn, on, role))


@check("warning", "The next upgrade refuses what it can't take back.", needs=None)
def quarantine_of_another_version(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """Tables in the quarantine that the revisions of today would not take back."""
    yield from (Fault(f"schema {s.quarantine}", problem, "leadprotect purge") for problem in leftovers(conn, s))
