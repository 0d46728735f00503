"""What must be true of a database before a revision touches it; each finding names its remedy."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from leadprotect.errors import PreflightError
from leadprotect.settings import Settings, ident, table

if TYPE_CHECKING:
    import psycopg

log = logging.getLogger("leadprotect")

# first minor version of each major without a known row-security CVE (CVE-2024-10976, CVE-2025-8713)
SAFE_MINOR = {15: 14, 16: 10, 17: 6}
_TABLES = (
    "territories",
    "territory_vat_rates",
    "user_lead_assignments",
    "lead_protection_rules",
    "lead_access_audit",
    "v_lead_protection",
)
_TEXTS = ("text", "character varying")


def check(conn: psycopg.Connection[Any], settings: Settings, *, fresh: bool) -> None:
    """Refuse, before anything is touched, what would fail halfway.

    `fresh` means that no revision is applied yet. Raises `PreflightError` with every finding.
    """
    problems: list[str] = []
    statements: list[str] = []
    problems += _server(conn)
    if not problems:
        problems += _host(conn, settings)
        problems += _rights(conn, settings, statements)
        if fresh:
            problems += _strangers(conn, settings, statements)
            problems += _quarantine(conn, settings)
    if problems:
        raise PreflightError(problems, statements)


def _server(conn: psycopg.Connection[Any]) -> list[str]:
    number = conn.info.server_version
    major, minor = divmod(number, 10000)
    if major < min(SAFE_MINOR):
        return [f"PostgreSQL {major} is too old: leadprotect needs 15 or later"]
    if minor < SAFE_MINOR.get(major, 0):
        return [
            f"PostgreSQL {major}.{minor} has a known row-security vulnerability: "
            f"update to {major}.{SAFE_MINOR[major]} or later"
        ]
    if _one(conn, "SELECT pg_is_in_recovery()"):
        return ["this server is a read replica: run the migration on the primary"]
    return []


def _host(conn: psycopg.Connection[Any], s: Settings) -> list[str]:
    ids = {"bigint": ("bigint",), "uuid": ("uuid",), "text": _TEXTS}
    leads = {
        "lead_id_column": (s.lead_id_column, ids[s.lead_id_type], "lead_id_type"),
        "territory_column": (s.territory_column, _TEXTS, "territory_column"),
    }
    activities = {
        "activity_id_column": (s.activity_id_column, None, ""),
        "activity_lead_id_column": (s.activity_lead_id_column, ids[s.lead_id_type], "lead_id_type"),
        "activity_user_id_column": (s.activity_user_id_column, ids[s.user_id_type], "user_id_type"),
        "activity_kind_column": (s.activity_kind_column, None, ""),
        "activity_at_column": (s.activity_at_column, None, ""),
    }
    found = _columns(conn, "leads_table", s.leads_table, leads)
    found += _columns(conn, "activities_table", s.activities_table, activities)
    if found:
        return found
    unique = """
        SELECT count(*) FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
        WHERE i.indrelid = %s::regclass AND i.indisunique AND i.indnkeyatts = 1 AND i.indpred IS NULL AND a.attname = %s
        """
    if not _one(conn, unique, table(s.leads_table), s.lead_id_column):
        found.append(f"lead_id_column: {s.leads_table}.{s.lead_id_column} has no unique index of its own")
    labels = """
        SELECT string_agg(wanted, ', ') FROM unnest(%s::text[]) AS wanted, pg_attribute AS a
        JOIN pg_type AS t ON t.oid = a.atttypid AND t.typtype = 'e'
        WHERE a.attrelid = %s::regclass AND a.attname = %s
          AND NOT EXISTS (SELECT FROM pg_enum AS e WHERE e.enumtypid = t.oid AND e.enumlabel = wanted)
        """
    foreign = _one(conn, labels, list(s.qualifying_kinds), table(s.activities_table), s.activity_kind_column)
    if foreign:
        found.append(f"qualifying_kinds: {foreign} is no label of the enum in {s.activities_table}.{s.activity_kind_column}")
    return found


def _columns(
    conn: psycopg.Connection[Any], key: str, name: str, wanted: dict[str, tuple[str, tuple[str, ...] | None, str]]
) -> list[str]:
    kind = _one(conn, "SELECT relkind FROM pg_class WHERE oid = to_regclass(%s)", table(name))
    if kind is None:
        return [f"{key}: there is no table {name}"]
    if kind != "r":
        return [f"{key}: {name} is not an ordinary table (relkind {kind!r}); an index can't be built on it CONCURRENTLY"]
    types = dict(
        conn.execute(
            "SELECT attname, format_type(atttypid, NULL) FROM pg_attribute "
            "WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
            (table(name),),
        ).fetchall()
    )
    found = []
    for column_key, (column, allowed, type_key) in wanted.items():
        if column not in types:
            found.append(f"{column_key}: {name} has no column {column}; it has {', '.join(sorted(types))}")
        elif allowed is not None and types[column] not in allowed:
            found.append(f"{type_key}: {name}.{column} is {types[column]}, expected {' or '.join(allowed)}")
    return found


def _rights(conn: psycopg.Connection[Any], s: Settings, statements: list[str]) -> list[str]:
    me, is_super, may_create_roles, database = _row(
        conn,
        "SELECT current_user::text, rolsuper, rolcreaterole, current_database()::text "
        "FROM pg_roles WHERE rolname = current_user",
    )
    if is_super:
        return []
    found = []
    wanted = [s.role(name) for name in ("owner", "app", "auditor", "operator", "manager", *s.territories)]
    existing = [row[0] for row in conn.execute("SELECT rolname FROM pg_roles WHERE rolname = ANY (%s)", (wanted,))]
    missing = [role for role in wanted if role not in existing]
    owner = s.role("owner")
    if not may_create_roles:
        member = owner in existing and _one(conn, "SELECT pg_has_role(current_user, %s, 'MEMBER')", owner)
        if missing:
            found.append(f"role {me} may not create roles, and these are missing: {', '.join(missing)}")
            statements += [f"CREATE ROLE {ident(role)} NOLOGIN;" for role in missing]
        if not member:
            found.append(f"role {me} is not a member of {owner}, which owns leadprotect's objects")
            statements.append(f"GRANT {ident(owner)} TO {ident(me)};")
    for key, name in (("leads_table", s.leads_table), ("activities_table", s.activities_table)):
        host_owner = _one(conn, "SELECT relowner::regrole::text FROM pg_class WHERE oid = to_regclass(%s)", table(name))
        if host_owner and not _one(conn, "SELECT pg_has_role(current_user, %s::regrole, 'USAGE')", host_owner):
            found.append(f"{key}: role {me} does not own {name} and can't create triggers and indexes on it")
            statements.append(f"GRANT {host_owner} TO {ident(me)};")
    creates_schema = not _one(conn, "SELECT to_regnamespace(%s)", ident(s.schema))
    if creates_schema and not _one(conn, "SELECT has_database_privilege(current_database(), 'CREATE')"):
        found.append(f"role {me} may not create the schema {s.schema} in database {database}")
        statements.append(f"GRANT CREATE ON DATABASE {ident(database)} TO {ident(me)};")
    versions = ident(s.version_table_schema, s.version_table)
    if not _one(conn, "SELECT to_regclass(%s)", versions) and not _one(
        conn, "SELECT has_schema_privilege(to_regnamespace(%s), 'CREATE')", ident(s.version_table_schema)
    ):
        found.append(f"version_table_schema: role {me} may not create {s.version_table} in {s.version_table_schema}")
        statements.append(f"GRANT CREATE ON SCHEMA {ident(s.version_table_schema)} TO {ident(me)};")
    return found


def _strangers(conn: psycopg.Connection[Any], s: Settings, statements: list[str]) -> list[str]:
    found = []
    in_schema = "SELECT c.relname FROM pg_class AS c WHERE c.relnamespace = to_regnamespace(%s) AND c.relname = ANY (%s)"
    for (name,) in conn.execute(in_schema, (ident(s.schema), list(_TABLES))).fetchall():
        found.append(
            f"{s.schema}.{name} exists, but no revision of leadprotect is applied: it is not ours; "
            "rename it, or choose another name with the key schema"
        )
    owner = _one(conn, "SELECT nspowner::regrole::text FROM pg_namespace WHERE oid = to_regnamespace(%s)", ident(s.schema))
    if owner and owner.strip('"') != s.role("owner"):
        found.append(f"schema {s.schema} exists and belongs to {owner}, not to {s.role('owner')}")
        statements.append(f"CREATE ROLE {ident(s.role('owner'))} NOLOGIN;  -- if it is missing")
        statements.append(f"ALTER SCHEMA {ident(s.schema)} OWNER TO {ident(s.role('owner'))};")
    powers = (
        "SELECT rolname FROM pg_roles WHERE rolname = ANY (%s) "
        "AND (rolcanlogin OR rolsuper OR rolbypassrls OR rolcreaterole OR rolreplication)"
    )
    roles = [s.role(name) for name in ("owner", "app", "auditor", "operator", "manager", *s.territories)]
    for (role,) in conn.execute(powers, (roles,)).fetchall():
        found.append(f"role {role} exists with powers that it must not have (login, superuser, bypassrls, createrole)")
        statements.append(f"ALTER ROLE {ident(role)} NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOREPLICATION;")
    on_host = """
        SELECT 'trigger ' || tgname FROM pg_trigger WHERE tgrelid IN (%(leads)s::regclass, %(activities)s::regclass)
          AND NOT tgisinternal AND starts_with(tgname::text, %(prefix)s)
        UNION ALL
        SELECT 'policy ' || polname FROM pg_policy WHERE polrelid = %(leads)s::regclass AND starts_with(polname::text, %(prefix)s)
        """
    names = {"leads": table(s.leads_table), "activities": table(s.activities_table), "prefix": f"{s.schema}_"}
    if not any(_one(conn, "SELECT to_regclass(%s)", table(n)) is None for n in (s.leads_table, s.activities_table)):
        found += [
            f"{row[0]} exists on the host's tables, but no revision of leadprotect is applied: rename it"
            for row in conn.execute(on_host, names)
        ]
    return found


def _quarantine(conn: psycopg.Connection[Any], s: Settings) -> list[str]:
    wanted = {"lead_id": s.lead_id_type, "user_id": s.user_id_type}
    types = conn.execute(
        "SELECT attname, format_type(atttypid, NULL) FROM pg_attribute "
        "WHERE attrelid = to_regclass(%s) AND attname = ANY (%s)",
        (ident(s.quarantine, "user_lead_assignments"), list(wanted)),
    ).fetchall()
    return [
        f"{column.removesuffix('_id')}_id_type: the quarantine {s.quarantine} holds {column} as {kind}, the setting "
        f"says {wanted[column]}; correct the setting, or delete the quarantine with leadprotect purge"
        for column, kind in types
        if kind != wanted[column]
    ]


def _row(conn: psycopg.Connection[Any], query: str, *params: Any) -> tuple[Any, ...]:
    row = conn.execute(query, params or None).fetchone()
    assert row is not None
    return row  # type: ignore[no-any-return]


def _one(conn: psycopg.Connection[Any], query: str, *params: Any) -> Any:
    row = conn.execute(query, params or None).fetchone()
    return row[0] if row else None
