"""Row security: on and forced, with the policies that were shipped and no others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadprotect.database.catalog import relation
from leadprotect.doctor import present
from leadprotect.doctor.finding import Fault, check, replacing
from leadprotect.doctor.shipped import known, policy_statement, shipped, shipped_script
from leadprotect.doctor.versions import applied
from leadprotect.preflight.host_tables import hidden_rows
from leadprotect.settings import Settings, ident, literal, render, table
from leadprotect.settings.names import HOST_POLICIES, NOT_APPENDED, unmade

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

_SECURE = "ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"


@check("danger", "Whoever may read the table reads every territory, and its owner writes it unseen.", needs=None)
def row_security_off(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """Row security off or not forced on a table of ours: partitions of the audit, seals and quarantine included."""
    query = """
        SELECT n.nspname::text, c.relname::text, c.relrowsecurity
        FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname IN (%s, %s) AND c.relkind IN ('r', 'p') AND (n.nspname, c.relname) <> (%s, %s)
          AND NOT (c.relrowsecurity AND c.relforcerowsecurity) ORDER BY 1, 2
        """
    values = (s.schema, s.quarantine, s.version_table_schema, s.version_table)
    for schema, name, enabled in conn.execute(query, values).fetchall():
        yield Fault(
            f"{schema}.{name}",
            "row security is not forced" if enabled else "row security is off",
            f"ALTER TABLE {ident(schema, name)} {_SECURE}",
        )


@check("danger", "Every lead is read and edited by whoever has privileges on the table.", needs="enforced")
def leads_row_security_off(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """Row security of the leads or of lead_tables off after contract; or not forced, where the setting says force."""
    query = "SELECT relrowsecurity, relforcerowsecurity FROM pg_class WHERE oid = %s"
    children = [(child.table, oid) for child, oid in present.children(conn, s)]
    for host, oid in [(s.leads_table, present.leads(conn, s)), *children]:
        for enabled, forced in conn.execute(query, (oid,)).fetchall():
            if not enabled:
                yield Fault(host, "row security is off", f"ALTER TABLE {table(host)} ENABLE ROW LEVEL SECURITY;")
            if s.host_rls == "force" and not forced:
                yield Fault(
                    host,
                    "host_rls is force, and row security is not forced: it does not bind the owner",
                    f"ALTER TABLE {table(host)} FORCE ROW LEVEL SECURITY;",
                )


@check("danger", "The border or the way in for our own functions is gone.", needs="text")
def policy_missing(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A shipped policy that is gone from a table of ours, or after contract from the leads or lead_tables."""
    text, wanted = shipped_script(s, known(applied(conn, s))), shipped(s)
    for one in present.tables(conn, s):
        standing = {policy.name for policy in present.policies(conn, s, one.oid)}
        for name in wanted.tables.get(one.shipped_as, {}).get("policies", {}):
            # a later revision may add one to the table of an earlier one
            if name not in standing and (again := _again(text, s, name, one)):
                yield Fault(f"{s.schema}.{one.name}", f"policy {name} is missing", again)
    yield from _missing_on_leads(conn, s, text)


def _missing_on_leads(conn: psycopg.Connection[Any], s: Settings, text: str) -> Iterator[Fault]:
    """One of them stands only where the host had no row security of its own: its absence opens nothing."""
    if present.enforced(conn, s) and s.host_rls != "off":
        standing = present.host_policies(conn, s)
        for name in shipped(s).host_policies:
            if name not in standing and name not in {"rows", *unmade(s)}:
                mends = _host_statement(conn, s, text, name)
                yield Fault(s.leads_table, f"policy {s.role(name)} is missing", mends)
    for child, oid in present.children(conn, s):
        standing = present.child_policies(conn, s, child, oid)
        for name in shipped(s, child).child_policies:
            if name not in standing and name != "child_rows" and not (child.append and name in NOT_APPENDED):
                mends = policy_statement(text, ident(s.role(name)), table(child.table))
                yield Fault(child.table, f"policy {s.role(name)} is missing", mends)


@check("danger", "It decides otherwise than the release that was installed.", needs="text")
def policy_changed(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A policy of ours, on our tables, the leads or lead_tables, that is not as shipped: roles, kind or condition."""
    text, wanted = shipped_script(s, known(applied(conn, s))), shipped(s)
    for one in present.tables(conn, s):
        known_policies = wanted.tables.get(one.shipped_as, {}).get("policies", {})
        for policy in present.policies(conn, s, one.oid):
            if policy.name in known_policies and not _alike(policy, known_policies[policy.name]):
                drop = f"DROP POLICY {ident(policy.name)} ON {ident(s.schema, one.name)};"
                mends = replacing(drop, _again(text, s, policy.name, one))
                yield Fault(f"{s.schema}.{one.name}", f"policy {policy.name} is not as shipped", mends)
    if present.enforced(conn, s) and s.host_rls != "off":
        for name, policy in present.host_policies(conn, s).items():
            if not any(_alike(policy, variant) for variant in wanted.host_policies[name]):
                drop = f"DROP POLICY {ident(policy.name)} ON {table(s.leads_table)};"
                mends = replacing(drop, _host_statement(conn, s, text, name))
                yield Fault(s.leads_table, f"policy {policy.name} is not as shipped", mends)
    for child, oid in present.children(conn, s):
        expected = shipped(s, child).child_policies
        for name, policy in present.child_policies(conn, s, child, oid).items():
            if not _alike(policy, expected[name]):
                drop = f"DROP POLICY {ident(policy.name)} ON {table(child.table)};"
                mends = replacing(drop, policy_statement(text, ident(policy.name), table(child.table)))
                yield Fault(child.table, f"policy {policy.name} is not as shipped", mends)


@check("danger", "A permissive policy opens a table of ours to whom it names.", needs="text")
def policy_stray(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A policy on a table of ours that was not shipped."""
    wanted = shipped(s).tables
    for one in present.tables(conn, s):
        for policy in present.policies(conn, s, one.oid):
            if policy.name not in wanted.get(one.shipped_as, {}).get("policies", {}):
                yield Fault(
                    f"{s.schema}.{one.name}",
                    f"policy {policy.name} is not leadprotect's",
                    f"DROP POLICY {ident(policy.name)} ON {ident(s.schema, one.name)};",
                )


@check("danger", "What it calls runs inside our functions, with the rights of their owner.")
def policy_runs_foreign_code(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A policy of the host that names a role of ours; a note where it is for everybody, and so for our reader too."""
    # by its name, by an operator or a domain, or inside a view that it reads
    query = """
        WITH RECURSIVE used AS (
          SELECT p.oid AS policy, d.refclassid AS kind, d.refobjid AS oid
          FROM pg_policy AS p JOIN pg_depend AS d ON d.classid = 'pg_policy'::regclass AND d.objid = p.oid
          WHERE p.polrelid = ANY (%(host)s)
          UNION
          SELECT used.policy, d.kind, d.oid FROM used CROSS JOIN LATERAL (
            SELECT 'pg_proc'::regclass::oid, o.oprcode::oid FROM pg_operator AS o
            WHERE used.kind = 'pg_operator'::regclass AND o.oid = used.oid
            UNION ALL
            SELECT d.refclassid, d.refobjid FROM pg_rewrite AS w
            JOIN pg_depend AS d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
            WHERE used.kind = 'pg_class'::regclass AND w.ev_class = used.oid AND w.ev_type = '1'
            UNION ALL
            SELECT d.refclassid, d.refobjid FROM pg_constraint AS k
            JOIN pg_depend AS d ON d.classid = 'pg_constraint'::regclass AND d.objid = k.oid
            WHERE used.kind = 'pg_type'::regclass AND k.contypid = used.oid) AS d (kind, oid))
        SELECT DISTINCT p.polrelid::regclass::text, p.polname::text, f.oid::regprocedure::text, coalesce((
                 SELECT string_agg(r.rolname::text, ', ') FROM pg_roles AS r
                 WHERE r.oid = ANY (p.polroles) AND r.rolname = ANY (%(offices)s)), ''), (
                 SELECT string_agg(quote_ident(r.rolname), ', ' ORDER BY r.rolname) FROM pg_roles AS r
                 WHERE r.oid = ANY (p.polroles) AND r.rolname <> ALL (%(offices)s))
        FROM used JOIN pg_policy AS p ON p.oid = used.policy
        JOIN pg_proc AS f ON used.kind = 'pg_proc'::regclass AND f.oid = used.oid
        JOIN pg_namespace AS n ON n.oid = f.pronamespace
        WHERE n.nspname NOT IN ('pg_catalog', %(schema)s)
          AND p.polname <> ALL (%(ours)s) AND (0 = ANY (p.polroles) AND p.polcmd IN ('r', '*') OR EXISTS (
            SELECT FROM pg_roles AS r WHERE r.oid = ANY (p.polroles) AND r.rolname = ANY (%(offices)s)))
        ORDER BY 1, 2, 3
        """
    values = {
        "offices": [s.role("owner"), s.role("reader")],
        "host": list(present.host_tables(conn, s).values()),
        "schema": s.schema,
        "ours": [s.role(name) for name in HOST_POLICIES],
    }
    for where, policy, function, named, others in conn.execute(query, values).fetchall():
        whom = named or f"everybody, {s.role('reader')} too"
        mends = f"# ALTER POLICY {ident(policy)} ON {where} TO the roles of your application"
        if named:
            mends = f"DROP POLICY {ident(policy)} ON {where};"
        if others:
            mends = f"ALTER POLICY {ident(policy)} ON {where} TO {others};"
        level = None if s.role("owner") in named else "note"
        yield Fault(f"{where}, policy {policy}", f"it calls {function} for {whom}", mends, level)  # type: ignore[arg-type]


@check("danger", "What our functions can't see they take for not there: for a lead without an owner, or for no lead.")
def host_rows_hidden(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """Rows of the host's tables that row security hides from the reader of our functions."""
    for one in hidden_rows(conn, s):
        yield Fault(one.key, one.what, one.statement or (f"# {one.by_hand}" if one.by_hand else None))


@check("danger", "What our functions ask of that table is not answered: no gate, no backfill, no status.")
def host_unreadable(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A policy of the host that fails for our reader, which it binds too where it is for everybody."""
    query = "SELECT has_function_privilege(to_regprocedure(%s), 'EXECUTE')"
    if conn.execute(query, (f"{ident(s.schema)}.unreadable()",)).fetchone() == (True,):
        failing = render("SELECT host::text, detail, remedy FROM {schema}.unreadable()", s)
        for where, what, mends in conn.execute(failing.encode()).fetchall():
            yield Fault(where, what, mends)


@check("danger", "Nothing narrows it.", needs="text")
def table_without_policies(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A table in our schema that no release of leadprotect made."""
    wanted = shipped(s).tables
    for one in present.tables(conn, s):
        if one.shipped_as not in wanted:
            kind = {"v": "VIEW", "m": "MATERIALIZED VIEW", "S": "SEQUENCE", "f": "FOREIGN TABLE"}.get(one.kind, "TABLE")
            yield Fault(
                f"{s.schema}.{one.name}",
                f"{kind.lower()} of {one.owner} that leadprotect did not make",
                f"ALTER {kind} {ident(s.schema, one.name)} SET SCHEMA public;  -- or drop it",
            )


def _alike(policy: present.Policy, wanted: dict[str, Any]) -> bool:
    mine = (policy.command, policy.permissive, sorted(policy.roles), policy.condition, policy.check)
    return mine == (
        *(wanted["command"], wanted["permissive"], sorted(wanted["roles"])),
        *(wanted["condition"], wanted["check"]),
    )


def _again(text: str, s: Settings, policy: str, one: present.Table) -> str | None:
    """What makes a policy anew; those of the audit's tables are made by a function."""
    name = ident(s.schema, one.name)
    if one.shipped_as.startswith("lead_access_audit"):
        return f"SELECT {ident(s.schema)}.secure_audit_table({literal(name)});"
    return policy_statement(text, policy, f"{ident(s.schema)}.{one.name}")


def _host_statement(conn: psycopg.Connection[Any], s: Settings, text: str, name: str) -> str | None:
    """The border has another form where the territory may be NULL."""
    query = "SELECT attnotnull FROM pg_attribute WHERE attrelid = %s AND attname = %s"
    row = conn.execute(query, (relation(conn, *s.leads_table.split(".", 1)), s.territory_column)).fetchone()
    first = name == "border" and bool(row and row[0])
    return policy_statement(text, ident(s.role(name)), table(s.leads_table), first=first)
