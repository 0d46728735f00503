"""What must be true of a database before a revision touches it; each finding names its remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadprotect._rights import one, relation, rights
from leadprotect.errors import PreflightError
from leadprotect.settings import Settings, ident

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    import psycopg

# first minor version of each major without a known row-security CVE (CVE-2024-10976, CVE-2025-8713)
SAFE_MINOR = {15: 14, 16: 10, 17: 6}
_TEXTS = ("text", "character varying")
_PROBES = 20
_POOLED = (
    "database_url leads to a transaction pooler (PgBouncer or the like), and a migration needs sessions of its own: "
    "set DATABASE_URL to the server itself, or to a pool in session mode"
)
# what a quarantine must hold to be taken back
_KEPT = {
    "user_lead_assignments": {"lead_id", "territory", "user_id", "source", "activity_at", "activity_id"},
    "lead_protection_rules": {"lead_id", "territory", "user_id", "protection", "effective_from", "effective_to"},
    "lead_access_audit": {"lead_id", "territory", "user_id", "at", "id", "login", "reason", "transaction_id"},
}


def check(conn: psycopg.Connection[Any], settings: Settings, *, fresh: bool) -> None:
    """Refuse, before anything is touched, what would fail halfway.

    `fresh` means that no revision is applied yet. Raises `PreflightError` with every finding.
    """
    problems: list[str] = []
    statements: list[str] = []
    check_server(conn)
    problems += _host(conn, settings)
    problems += rights(conn, settings, statements)
    if fresh:
        problems += _strangers(conn, settings, statements)
        problems += _quarantine(conn, settings)
    if problems:
        raise PreflightError(problems, list(dict.fromkeys(statements)))


def check_server(conn: psycopg.Connection[Any]) -> None:
    """Refuse a server on which no migration can run, up or down; raises `PreflightError`."""
    problem = version_problem(conn.info.server_version)
    if not problem and one(conn, "SELECT pg_is_in_recovery()"):
        problem = "this server is a read replica: run the migration on the primary"
    if problem:
        raise PreflightError([problem])


def check_direct(
    conn: psycopg.Connection[Any], another: Callable[[], AbstractContextManager[psycopg.Connection[Any]]]
) -> None:
    """Refuse a transaction pooler such as PgBouncer: session locks would be any client's.

    A pooler answers with a process id of its own; it pools transactions if another of our
    connections meets the server process that serves this one. Raises `PreflightError`.
    """
    if conn.info.backend_pid == _backend(conn):
        return
    with another() as other:
        pairs = [(_backend(conn), _backend(other)) for _ in range(_PROBES)]
    if len({mine for mine, _ in pairs}) > 1 or any(mine == theirs for mine, theirs in pairs):
        raise PreflightError([_POOLED])


def version_problem(number: int) -> str | None:
    """What is wrong with a server of this version number (150014 is 15.14), or None."""
    major, minor = divmod(number, 10000)
    if major < min(SAFE_MINOR):
        return f"PostgreSQL {major} is too old: leadprotect needs 15 or later"
    if minor < SAFE_MINOR.get(major, 0):
        return (
            f"PostgreSQL {major}.{minor} has a known row-security vulnerability: "
            f"update to {major}.{SAFE_MINOR[major]} or later"
        )
    return None


def _backend(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
    return int(row[0]) if row else 0


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
        WHERE i.indrelid = %s AND i.indisunique AND i.indisvalid AND i.indnkeyatts = 1
          AND i.indpred IS NULL AND a.attname = %s
        """
    if not one(conn, unique, relation(conn, *s.leads_table.split(".", 1)), s.lead_id_column):
        found.append(f"lead_id_column: {s.leads_table}.{s.lead_id_column} has no unique index of its own")
    return found + _kinds(conn, s)


def _columns(
    conn: psycopg.Connection[Any], key: str, name: str, wanted: Mapping[str, tuple[str, tuple[str, ...] | None, str]]
) -> list[str]:
    oid = relation(conn, *name.split(".", 1))
    kind = one(conn, "SELECT relkind FROM pg_class WHERE oid = %s", oid)
    if kind is None:
        return [f"{key}: there is no table {name}"]
    if kind != "r":
        return [
            f"{key}: {name} is not an ordinary table (relkind {kind!r}); an index can't be built on it CONCURRENTLY"
        ]
    types = dict(
        conn.execute(
            "SELECT attname, format_type(atttypid, NULL) FROM pg_attribute "
            "WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped",
            (oid,),
        ).fetchall()
    )
    found = []
    for column_key, (column, allowed, type_key) in wanted.items():
        if column not in types:
            found.append(f"{column_key}: {name} has no column {column}; it has {', '.join(sorted(types))}")
        elif allowed is not None and types[column] not in allowed:
            found.append(f"{type_key}: {name}.{column} is {types[column]}, expected {' or '.join(allowed)}")
    return found


def _kinds(conn: psycopg.Connection[Any], s: Settings) -> list[str]:
    """The kinds are written into an index: they must be values of the column's type."""
    where = f"{s.activities_table}.{s.activity_kind_column}"
    column = """
        SELECT format_type(a.atttypid, NULL), t.typtype, t.typcategory, ARRAY(
                 SELECT wanted FROM unnest(%s::text[]) AS wanted
                 WHERE NOT EXISTS (SELECT FROM pg_enum AS e WHERE e.enumtypid = t.oid AND e.enumlabel = wanted))
        FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
        WHERE a.attrelid = %s AND a.attname = %s
        """
    row = conn.execute(
        column, (list(s.qualifying_kinds), relation(conn, *s.activities_table.split(".", 1)), s.activity_kind_column)
    ).fetchone()
    kind, typtype, category, foreign = row or ("", "", "S", [])
    if typtype == "e" and foreign:
        return [f"qualifying_kinds: {', '.join(foreign)} is no label of the enum in {where}"]
    if typtype != "e" and category != "S":
        return [f"activity_kind_column: {where} is {kind}, expected text or an enum"]
    return []


def _strangers(conn: psycopg.Connection[Any], s: Settings, statements: list[str]) -> list[str]:
    found = []
    in_schema = """
        SELECT relname::text FROM pg_class WHERE relnamespace = to_regnamespace(%(schema)s) AND relkind <> 'i'
        UNION SELECT proname::text FROM pg_proc WHERE pronamespace = to_regnamespace(%(schema)s)
        UNION SELECT typname::text FROM pg_type
          WHERE typnamespace = to_regnamespace(%(schema)s) AND typtype IN ('e', 'd')
        ORDER BY 1 LIMIT 10
        """
    for (name,) in conn.execute(in_schema, {"schema": ident(s.schema)}).fetchall():
        found.append(
            f"{s.schema}.{name} exists, but no revision of leadprotect is applied: it is not ours; "
            "rename it, or choose another name with the key schema"
        )
    for host, suffix in ((s.leads_table, "leads"), (s.activities_table, "activities")):
        schema, name = host.split(".", 1)[0], f"ix_{s.schema}_{suffix}"
        if relation(conn, schema, name):
            found.append(
                f"{schema}.{name} exists, but no revision of leadprotect is applied: it is not ours; rename it"
            )
    owner = one(
        conn,
        "SELECT r.rolname FROM pg_namespace AS n JOIN pg_roles AS r ON r.oid = n.nspowner "
        "WHERE n.oid = to_regnamespace(%s)",
        ident(s.schema),
    )
    if owner and owner != s.role("owner"):
        found.append(f"schema {s.schema} exists and belongs to {owner}, not to {s.role('owner')}")
        if not one(conn, "SELECT to_regrole(%s)::oid", ident(s.role("owner"))):
            statements.append(f"CREATE ROLE {ident(s.role('owner'))} NOLOGIN;")
        statements.append(f"ALTER SCHEMA {ident(s.schema)} OWNER TO {ident(s.role('owner'))};")
    return found + _powers(conn, s, statements) + _on_host(conn, s)


def _powers(conn: psycopg.Connection[Any], s: Settings, statements: list[str]) -> list[str]:
    """Roles are cluster-wide: one of our names may be somebody's."""
    powers = (
        "SELECT rolname FROM pg_roles WHERE rolname = ANY (%s) "
        "AND (rolcanlogin OR rolsuper OR rolbypassrls OR rolcreaterole OR rolreplication) ORDER BY rolname"
    )
    found = []
    for (role,) in conn.execute(powers, (list(s.roles),)).fetchall():
        found.append(f"role {role} exists with powers that it must not have (login, superuser, bypassrls, createrole)")
        statements.append(f"ALTER ROLE {ident(role)} NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOREPLICATION;")
    return found


def _on_host(conn: psycopg.Connection[Any], s: Settings) -> list[str]:
    query = """
        SELECT 'trigger ' || tgname FROM pg_trigger
        WHERE tgrelid IN (%(leads)s, %(activities)s)
          AND NOT tgisinternal AND starts_with(tgname::text, %(prefix)s)
        UNION ALL
        SELECT 'policy ' || polname FROM pg_policy
        WHERE polrelid = %(leads)s AND starts_with(polname::text, %(prefix)s)
        ORDER BY 1
        """
    names = {
        "leads": relation(conn, *s.leads_table.split(".", 1)),
        "activities": relation(conn, *s.activities_table.split(".", 1)),
        "prefix": f"{s.schema}_",
    }
    return [
        f"{row[0]} exists on the host's tables, but no revision of leadprotect is applied: rename it"
        for row in conn.execute(query, names).fetchall()
    ]


def _quarantine(conn: psycopg.Connection[Any], s: Settings) -> list[str]:
    """Tables that a downgrade left must be what the revisions would make today."""
    columns = conn.execute(
        """
        SELECT c.relname::text, a.attname::text, format_type(a.atttypid, NULL) FROM pg_class AS c
        JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        WHERE c.relnamespace = to_regnamespace(%s) AND c.relkind IN ('r', 'p') AND NOT c.relispartition
        ORDER BY 1, 2
        """,
        (ident(s.quarantine),),
    ).fetchall()
    hint = "correct the setting, or delete the quarantine with leadprotect purge"
    types = {"lead_id": s.lead_id_type, "user_id": s.user_id_type}
    found = [
        f"{column}_type: the quarantine holds {s.quarantine}.{name}.{column} as {kind}, the setting says "
        f"{types[column]}; {hint}"
        for name, column, kind in columns
        if column in types and kind != types[column]
    ]
    for name, wanted in _KEPT.items():
        missing = wanted - {column for kept, column, _ in columns if kept == name}
        if columns and missing:
            found.append(
                f"the quarantine table {s.quarantine}.{name} lacks {', '.join(sorted(missing))}: it was left by "
                "another version; upgrade with that version, or delete the quarantine with leadprotect purge"
            )
    return found
