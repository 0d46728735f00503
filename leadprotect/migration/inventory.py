"""What stands in our schema and in its quarantine: tables, their rows, and what secures them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leadprotect.database.catalog import relation
from leadprotect.database.statements import as_role
from leadprotect.settings import Settings, ident
from leadprotect.settings.names import HOST_POLICIES

if TYPE_CHECKING:
    import psycopg

# the host decides what these hold: it deletes leads, a backfill settles what it noted, notes of a shadow are added up
_MAY_SHRINK = ("user_lead_assignments", "unsettled_leads", "contextless_writes", "shadow_notes")
# says how to go back from what is applied, and goes with it
_UNDO = "revision_undo"
_TRANSIENT = "backfill_"
# what contract remembers of the host's tables: made by it, and dropped when it is undone
_MEMORY = "host_row_security"
_MEMORIES = (_MEMORY, "lead_table_row_security")
_LARGE = 20_000_000


@dataclass(frozen=True)
class Kept:
    """A table of ours; `oid` tells that it is the same table, wherever it was moved."""

    schema: str
    oid: int
    secured: bool
    grantees: frozenset[str]
    permissive: frozenset[str]
    restrictive: frozenset[str]


@dataclass(frozen=True)
class Host:
    """The host's leads: its two flags, our policies on it, and the flags that contract remembers."""

    enabled: bool
    forced: bool
    policies: int
    before_contract: tuple[bool, bool] | None


@dataclass(frozen=True)
class Inventory:
    """Our tables by name, partitions included, and the host's leads."""

    tables: dict[str, Kept]
    host: Host


def take(conn: psycopg.Connection[Any], settings: Settings) -> Inventory:
    """Read the catalog; no table is read, so it costs milliseconds whatever the size."""
    # a policy is its roles and its condition; what it calls moves to the quarantine with its table
    query = """
        WITH policies AS (
          SELECT p.polrelid, p.polpermissive, format('%%s to %%s using %%s', p.polname, p.polroles::oid[]::text,
                   replace(pg_catalog.pg_get_expr(p.polqual, p.polrelid), quote_ident(%(quarantine)s) || '.',
                           quote_ident(%(schema)s) || '.')) AS rule
          FROM pg_catalog.pg_policy AS p)
        SELECT c.relname::text, n.nspname::text, c.oid::bigint, c.relrowsecurity AND c.relforcerowsecurity,
               ARRAY(SELECT DISTINCT coalesce(r.rolname::text, 'PUBLIC')
                     FROM pg_catalog.aclexplode(c.relacl) AS acl
                     LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = acl.grantee
                     WHERE acl.grantee <> c.relowner),
               ARRAY(SELECT p.rule FROM policies AS p WHERE p.polrelid = c.oid AND p.polpermissive),
               ARRAY(SELECT p.rule FROM policies AS p WHERE p.polrelid = c.oid AND NOT p.polpermissive)
        FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname IN (%(schema)s, %(quarantine)s) AND c.relkind IN ('r', 'p')
          AND (n.nspname, c.relname) <> (%(versions_schema)s, %(versions)s)
        ORDER BY c.relname
        """
    values = {"schema": settings.schema, "quarantine": settings.quarantine, **_versions(settings)}
    found = conn.execute(query, values).fetchall()
    tables = {
        name: Kept(schema, oid, secured, frozenset(grantees), frozenset(permissive), frozenset(restrictive))
        for name, schema, oid, secured, grantees, permissive, restrictive in found
    }
    return Inventory(tables, _host(conn, settings, memory=tables.get(_MEMORY)))


def count(conn: psycopg.Connection[Any], settings: Settings, *schemas: str) -> dict[str, int | None]:
    """Rows of each table in `schemas` (default: ours and the quarantine); partitions for themselves.

    None for a table that is so large that nobody on call would wait for it.
    """
    query = """
        SELECT n.nspname::text, c.relname::text, c.reltuples > %(large)s FROM pg_catalog.pg_class AS c
        JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = ANY (%(schemas)s::text[]) AND c.relkind = 'r'
          AND (n.nspname, c.relname) <> (%(versions_schema)s, %(versions)s)
        ORDER BY c.relname
        """
    wanted = list(schemas or (settings.schema, settings.quarantine))
    found = conn.execute(query, {"large": _LARGE, "schemas": wanted, **_versions(settings)}).fetchall()
    with as_role(conn, settings.role("owner")):
        return {
            name: None if large else conn.execute(f"SELECT count(*) FROM {ident(schema, name)}").fetchall()[0][0]
            for schema, name, large in found
        }


def opened(before: Inventory, now: Inventory) -> list[str]:
    """What would let a login read more of our tables than before: one sentence per finding."""
    found = []
    for name, kept in now.tables.items():
        label = f"{kept.schema}.{name}"
        was = before.tables.get(name)
        if not kept.secured and (was is None or was.secured):
            found.append(f"row security is not forced on {label}")
        if was is None:
            continue
        if more := kept.grantees - was.grantees:
            found.append(f"{', '.join(sorted(more))} may reach {label} and could not before")
        if more := kept.permissive - was.permissive:
            found.append(f"a policy was added to {label}: {', '.join(sorted(more))}")
        if less := was.restrictive - kept.restrictive:
            found.append(f"a floor is gone from {label}: {', '.join(sorted(less))}")
    return found


def lost_rows(
    before: Inventory, now: Inventory, rows_before: dict[str, int | None], rows_now: dict[str, int | None]
) -> list[str]:
    """Tables that are gone or were made anew, and rows that nobody but a rollback can have taken."""
    found = []
    for name, was in before.tables.items():
        if name in (*_MEMORIES, _UNDO):
            continue
        kept = now.tables.get(name)
        had, has = rows_before.get(name), rows_now.get(name)
        if kept is None or kept.oid != was.oid:
            found.append(f"the table {name} is gone" if kept is None else f"the table {name} was made anew")
        elif had is not None and has is not None and has < had and not _may_shrink(name):
            found.append(f"{name} has {has:,} rows and had {had:,}")
    return found


def left_on_host(before: Inventory, now: Inventory) -> list[str]:
    """After contract was undone: what is not as it was on the host's leads."""
    wanted = before.host.before_contract
    if wanted is None or _MEMORY in now.tables:
        return []
    found = []
    if (now.host.enabled, now.host.forced) != wanted:
        found.append("the row security flags of the host's leads are not those from before contract")
    if now.host.policies:
        found.append(f"{now.host.policies} policies of leadprotect are left on the host's leads")
    return found


def _versions(settings: Settings) -> dict[str, str]:
    """Alembic's table holds nothing to protect, and is gone at the base."""
    return {"versions_schema": settings.version_table_schema, "versions": settings.version_table}


def _may_shrink(name: str) -> bool:
    return name in _MAY_SHRINK or name.startswith(_TRANSIENT)


def _host(conn: psycopg.Connection[Any], settings: Settings, *, memory: Kept | None) -> Host:
    # by their exact names: the host may have policies that begin like ours
    query = """
        SELECT c.relrowsecurity, c.relforcerowsecurity, (
          SELECT count(*) FROM pg_catalog.pg_policy AS p WHERE p.polrelid = c.oid AND p.polname = ANY (%(ours)s))
        FROM pg_catalog.pg_class AS c WHERE c.oid = %(leads)s
        """
    values = {
        "ours": [settings.role(policy) for policy in HOST_POLICIES],
        "leads": relation(conn, *settings.leads_table.split(".", 1)),
    }
    found = conn.execute(query, values).fetchone()
    enabled, forced, policies = found or (False, False, 0)
    remembered = None
    if memory is not None:
        with as_role(conn, settings.role("owner")):
            remembered = conn.execute(f"SELECT enabled, forced FROM {ident(memory.schema, _MEMORY)}").fetchone()
    return Host(enabled, forced, policies, remembered)
