"""Reads what stands in our schema, and of ours on the host's leads, in a form that any settings and servers share."""

from __future__ import annotations

import re
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from leadprotect.database.catalog import relation
from leadprotect.doctor.likeness import neutral, neutral_role
from leadprotect.settings.names import CHILD_POLICIES, CHILD_TRIGGERS, HOST_POLICIES, trigger_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

    from leadprotect.settings import LeadTable, Settings

P = ParamSpec("P")
T = TypeVar("T")

MONTH = re.compile(r"lead_access_audit_\d{4}_\d{2}")
DEFAULT_PARTITION = "lead_access_audit_default"
MADE_ANEW = frozenset({"all_territories()", "territory_roles()", "territory_role(code)"})
"""The functions whose text is data: publish_territories() writes them from the table."""

_GRANTS = """
    SELECT coalesce(jsonb_agg(jsonb_build_array(given.role, given.privilege) ORDER BY 1), '[]') FROM (
      SELECT DISTINCT CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(acl.grantee)::text END AS role,
             acl.privilege_type || CASE WHEN acl.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END AS privilege
      FROM aclexplode({acl}) AS acl
      WHERE acl.grantee <> {owner}) AS given
    """
_FUNCTIONS = f"""
    SELECT p.oid, p.proname::text, ARRAY(
             SELECT name FROM unnest(p.proargnames, p.proargmodes) WITH ORDINALITY AS a (name, mode, place)
             WHERE a.mode IS NULL OR a.mode IN ('i', 'b', 'v') ORDER BY a.place),
           format('%%I.%%I(%%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)),
           pg_get_userbyid(p.proowner)::text, p.prosecdef, coalesce(p.proconfig, '{{}}'), p.provolatile::text,
           p.proisstrict, p.proleakproof,
           l.lanname::text, p.prosrc, pg_get_function_sqlbody(p.oid),
           ({_GRANTS.format(acl="coalesce(p.proacl, acldefault('f', p.proowner))", owner="p.proowner")})
    FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace JOIN pg_language AS l ON l.oid = p.prolang
    WHERE n.nspname = %s ORDER BY 4
    """
_TABLES = f"""
    SELECT c.oid, c.relname::text, c.relkind::text, pg_get_userbyid(c.relowner)::text,
           c.relrowsecurity, c.relforcerowsecurity, coalesce(c.reloptions, '{{}}'),
           CASE c.relkind WHEN 'v' THEN pg_get_viewdef(c.oid) END,
           ({_GRANTS.format(acl="c.relacl", owner="c.relowner")}),
           ARRAY(SELECT k.contype::text || ' ' || regexp_replace(pg_get_constraintdef(k.oid), ' NOT VALID$', '')
                 FROM pg_constraint AS k
                 WHERE k.conrelid = c.oid AND k.contype IN ('p', 'u', 'f', 'c') AND k.conparentid = 0 ORDER BY 1),
           c.relkind <> 'S' AND c.relpersistence = 'u', coalesce((
             SELECT jsonb_object_agg(a.attname, jsonb_build_array(a.attnotnull, coalesce(
               pg_get_expr(d.adbin, d.adrelid), '')))
             FROM pg_attribute AS a LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
             WHERE a.attrelid = c.oid AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped), '{{}}')
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = %s AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
      AND (n.nspname, c.relname) <> (%s, %s) ORDER BY c.relname
    """
_POLICIES = """
    SELECT p.polname::text, p.polcmd::text, p.polpermissive, ARRAY(
             SELECT CASE bound WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(bound)::text END
             FROM unnest(p.polroles) AS bound ORDER BY 1),
           coalesce(pg_get_expr(p.polqual, p.polrelid), ''), coalesce(pg_get_expr(p.polwithcheck, p.polrelid), '')
    FROM pg_policy AS p WHERE p.polrelid = %s ORDER BY 1
    """
_TRIGGERS = """
    SELECT t.tgname::text, t.tgenabled::text, replace(replace(pg_get_triggerdef(t.oid), quote_ident(t.tgname), '_'),
             ' ON ' || quote_ident(home.nspname) || '.' || quote_ident(c.relname), ' ON _'), n.nspname::text
    FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid JOIN pg_namespace AS home ON home.oid = c.relnamespace
    JOIN pg_proc AS p ON p.oid = t.tgfoid
    JOIN pg_namespace AS n ON n.oid = p.pronamespace
    WHERE t.tgrelid = %s AND NOT t.tgisinternal AND NOT (t.tgparentid <> 0 AND n.nspname <> %s) ORDER BY 1
    """


@dataclass(frozen=True)
class Function:
    """A function of our schema; `source` is its text where a language of its own keeps it, else `body` is neutral."""

    oid: int
    key: str
    name: str
    signature: str
    owner: str
    definer: bool
    config: tuple[str, ...]
    volatile: str
    strict: bool
    leakproof: bool
    language: str
    source: str
    body: str | None
    grants: frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Policy:
    """A policy; roles and conditions in neutral form."""

    name: str
    command: str
    permissive: bool
    roles: tuple[str, ...]
    condition: str
    check: str


@dataclass(frozen=True)
class Trigger:
    """A trigger; `enabled` as pg_trigger has it (A always, O origin, R replica, D disabled).

    `definition` is without its name and its table's.
    """

    name: str
    enabled: str
    definition: str
    ours: bool


@dataclass(frozen=True)
class Table:
    """A table, view or sequence of our schema; `kind` as pg_class has it.

    `columns` maps a column to whether it is NOT NULL, and to its default.
    """

    oid: int
    name: str
    kind: str
    owner: str
    enabled: bool
    forced: bool
    options: tuple[str, ...]
    definition: str | None
    grants: frozenset[tuple[str, str]]
    constraints: tuple[str, ...]
    unlogged: bool
    columns: dict[str, tuple[bool, str]]

    @property
    def shipped_as(self) -> str:
        """Its name in what is shipped: a month of the audit is like the default partition."""
        return DEFAULT_PARTITION if MONTH.fullmatch(self.name) else self.name


_look: ContextVar[dict[Any, Any] | None] = ContextVar("look", default=None)


@contextmanager
def one_look() -> Iterator[None]:
    """Inside, what is read of the catalog is read once: some twenty checks ask for the same functions and tables."""
    token = _look.set({})
    try:
        yield
    finally:
        _look.reset(token)


def once(read: Callable[P, T]) -> Callable[P, T]:
    """Read it once inside `one_look`; elsewhere, each time."""

    @wraps(read)
    def remembered(*args: P.args, **kwargs: P.kwargs) -> T:
        look = _look.get()
        if look is None:
            return read(*args, **kwargs)
        key = (read, args, *kwargs.items())
        if key not in look:
            look[key] = read(*args, **kwargs)
        found: T = look[key]
        return found

    return remembered


@once
def functions(conn: psycopg.Connection[Any], s: Settings) -> list[Function]:
    """Every function of our schema."""
    return [_function(row, s) for row in conn.execute(_FUNCTIONS.encode(), (s.schema,)).fetchall()]


def _function(row: tuple[Any, ...], s: Settings) -> Function:
    oid, name, names, signature, owner, definer, config, volatile, strict, leakproof, language, source, *kept = row
    body, grants = kept
    return Function(
        *(oid, f"{name}({', '.join(names)})", name, signature, owner, definer),
        tuple(config),
        *(volatile, strict, leakproof, language, source),
        body=None if body is None else neutral(body, s),
        grants=_pairs(grants, s),
    )


@once
def tables(conn: psycopg.Connection[Any], s: Settings) -> list[Table]:
    """Every table, view and sequence of our schema but the version table."""
    versions = (s.version_table_schema, s.version_table)
    return [_table(row, s) for row in conn.execute(_TABLES.encode(), (s.schema, *versions)).fetchall()]


def _table(row: tuple[Any, ...], s: Settings) -> Table:
    oid, name, kind, owner, enabled, forced, options, definition, grants, constraints, unlogged, columns = row
    return Table(
        *(oid, name, kind, owner, enabled, forced, tuple(sorted(options))),
        definition=None if definition is None else neutral(definition, s),
        grants=_pairs(grants, s),
        constraints=tuple(neutral(one, s) for one in constraints),
        unlogged=unlogged,
        columns={column: (required, neutral(default, s)) for column, (required, default) in columns.items()},
    )


@once
def policies(
    conn: psycopg.Connection[Any], s: Settings, oid: int | None, child: LeadTable | None = None
) -> list[Policy]:
    """The policies of one table; of a `child` with the names of the one that is shipped."""
    return [
        Policy(
            name,
            *(command, permissive, tuple(sorted(neutral_role(role, s) for role in roles))),
            *(neutral(condition, s, child), neutral(check, s, child)),
        )
        for name, command, permissive, roles, condition, check in conn.execute(_POLICIES, (oid,)).fetchall()
    ]


@once
def triggers(
    conn: psycopg.Connection[Any], s: Settings, oid: int | None, child: LeadTable | None = None
) -> list[Trigger]:
    """The triggers of one table that are no part of a constraint; of a `child` as `policies` has them."""
    # what the server made on a partition goes with the one on its parent
    found = conn.execute(_TRIGGERS, (oid, s.schema)).fetchall()
    return [
        Trigger(name, enabled, neutral(definition, s, child), schema == s.schema)
        for name, enabled, definition, schema in found
    ]


def leads(conn: psycopg.Connection[Any], s: Settings) -> int | None:
    """The oid of the host's leads."""
    return relation(conn, *s.leads_table.split(".", 1))


def host_tables(conn: psycopg.Connection[Any], s: Settings) -> dict[str, int]:
    """The oids of the host's leads and activities, by name; what is not there is left out."""
    found = {name: relation(conn, *name.split(".", 1)) for name in s.host_tables}
    return {name: oid for name, oid in found.items() if oid}


def host_policies(conn: psycopg.Connection[Any], s: Settings) -> dict[str, Policy]:
    """Our policies on the leads, by what a revision calls them."""
    ours = {s.role(name): name for name in HOST_POLICIES}
    return {ours[one.name]: one for one in policies(conn, s, leads(conn, s)) if one.name in ours}


def host_triggers(conn: psycopg.Connection[Any], s: Settings, oid: int | None) -> dict[str, Trigger]:
    """Our triggers on a table of the host, by name; the source of activities that one is for is left out of it."""
    ours = trigger_names(s)
    return {
        one.name: replace(one, definition=re.sub(r"(\bown_active_lead(?: \()?) '\w+'", r"\1", one.definition))
        for one in triggers(conn, s, oid)
        if one.name in ours and one.ours
    }


def children(conn: psycopg.Connection[Any], s: Settings) -> list[tuple[LeadTable, int]]:
    """The tables that hold data of leads, with their oids, where contract has come to them."""
    if s.host_rls == "off" or relation(conn, s.schema, "lead_table_row_security") is None:
        return []
    found = [(child, relation(conn, *child.table.split(".", 1))) for child in s.lead_tables]
    return [(child, oid) for child, oid in found if oid]


def child_policies(conn: psycopg.Connection[Any], s: Settings, child: LeadTable, oid: int) -> dict[str, Policy]:
    """Our policies on a table that holds data of leads, by what a revision calls them."""
    ours = {s.role(name): name for name in CHILD_POLICIES}
    return {ours[one.name]: one for one in policies(conn, s, oid, child) if one.name in ours}


def child_triggers(conn: psycopg.Connection[Any], s: Settings, child: LeadTable, oid: int) -> dict[str, Trigger]:
    """Our triggers on a table that holds data of leads, by what a revision calls them."""
    ours = {s.role(suffix): name for name, suffix in CHILD_TRIGGERS.items()}
    return {ours[one.name]: one for one in triggers(conn, s, oid, child) if one.name in ours and one.ours}


def enforced(conn: psycopg.Connection[Any], s: Settings) -> bool:
    """Whether contract was carried out: its memory of the host's table stands."""
    return relation(conn, s.schema, "host_row_security") is not None


def _pairs(found: list[list[str]], s: Settings) -> frozenset[tuple[str, str]]:
    return frozenset((neutral_role(role, s), privilege) for role, privilege in found)
