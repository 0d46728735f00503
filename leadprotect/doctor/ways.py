"""Ways to a lead that are no statement of a bound role on it: views, functions, keys, children, publications."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadprotect.database.privileges import Object, revoking
from leadprotect.doctor import present
from leadprotect.doctor.finding import Fault, apart, check
from leadprotect.doctor.shipped import known, shipped, shipped_script
from leadprotect.doctor.versions import applied
from leadprotect.settings import Settings, ident, render, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

# What takes it out: the table that was named, or its parent that was, or the schema that holds either.
_PUBLISHED = """
    SELECT pub.pubname::text, array_agg(p.schemaname || '.' || p.tablename ORDER BY 1, 2), how.dropped
    FROM pg_publication_tables AS p JOIN pg_publication AS pub ON pub.pubname = p.pubname
    JOIN pg_namespace AS n ON n.nspname = p.schemaname
    JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = p.tablename
    CROSS JOIN LATERAL (SELECT ARRAY(SELECT relid FROM pg_partition_ancestors(c.oid)) || c.oid AS line) AS own
    CROSS JOIN LATERAL (SELECT CASE WHEN NOT pub.puballtables THEN coalesce(
      (SELECT min('TABLE ' || r.prrelid::regclass) FROM pg_publication_rel AS r
       WHERE r.prpubid = pub.oid AND r.prrelid = ANY (own.line)),
      (SELECT min('TABLES IN SCHEMA ' || m.pnnspid::regnamespace) FROM pg_publication_namespace AS m
       WHERE m.pnpubid = pub.oid AND m.pnnspid IN (
         SELECT k.relnamespace FROM pg_class AS k WHERE k.oid = ANY (own.line)))) END AS dropped) AS how
    WHERE p.schemaname || '.' || p.tablename = ANY (%s) OR p.schemaname = %s GROUP BY 1, 3 ORDER BY 1, 3
    """
# What the condition "views" of the gate asks of the host's tables before contract, after it, and of our tables, too:
# `reader` is who reads leads in a view's name, 0 whoever asks; the first view on the way up that is no
# security_invoker decides.
_LEAKS = """
    WITH RECURSIVE rules AS MATERIALIZED (
      SELECT DISTINCT d.refobjid AS source, r.ev_class AS view
      FROM pg_depend AS d JOIN pg_rewrite AS r ON r.oid = d.objid
      WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> r.ev_class),
    relations AS MATERIALIZED (
      SELECT c.oid, c.relkind, c.relowner, c.relacl, c.relnamespace, c.relkind = 'v' AND coalesce((
               SELECT bool_or(o.option_value::boolean) FROM pg_options_to_table(c.reloptions) AS o
               WHERE o.option_name = 'security_invoker'), false) AS invoker
      FROM pg_class AS c WHERE c.relkind IN ('v', 'm') AND c.oid IN (SELECT rules.view FROM rules)),
    reached AS (
      SELECT v.oid, rules.source, CASE WHEN v.invoker THEN 0::oid ELSE v.relowner END AS reader
      FROM rules JOIN relations AS v ON v.oid = rules.view
      WHERE rules.source = ANY (%(hosts)s::oid[]) OR rules.source IN (
        SELECT c.oid FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = %(schema)s AND c.relkind IN ('r', 'p') AND c.relrowsecurity)
      UNION
      SELECT v.oid, below.source,
             CASE WHEN below.reader <> 0 THEN below.reader WHEN v.invoker THEN 0::oid ELSE v.relowner END
      FROM reached AS below JOIN rules ON rules.source = below.oid JOIN relations AS v ON v.oid = rules.view)
    SELECT v.oid, v.oid::regclass::text, pg_get_userbyid(v.relowner)::text, min(l.rolname)::text,
           array_agg(DISTINCT coalesce(pg_get_userbyid(nullif(g.grantee, 0))::text, 'PUBLIC'))
    FROM reached JOIN relations AS v ON v.oid = reached.oid JOIN pg_roles AS o ON o.oid = reached.reader
    JOIN pg_class AS source ON source.oid = reached.source
    CROSS JOIN LATERAL (
      SELECT acl.grantee FROM aclexplode(v.relacl) AS acl WHERE acl.privilege_type = 'SELECT'
      UNION SELECT acl.grantee FROM pg_attribute AS a CROSS JOIN LATERAL aclexplode(a.attacl) AS acl
      WHERE a.attrelid = v.oid AND acl.privilege_type = 'SELECT') AS g
    JOIN pg_roles AS l ON CASE g.grantee WHEN 0 THEN true ELSE pg_has_role(l.oid, g.grantee, 'MEMBER') END
    WHERE NOT v.invoker AND v.relkind = %(kind)s
      AND (v.relkind = 'm' OR o.rolsuper OR o.rolbypassrls
        OR EXISTS (
          SELECT FROM pg_class AS unbound
          WHERE unbound.oid IN (source.oid, CASE WHEN source.oid = ANY (%(hosts)s::oid[]) THEN %(leads)s::oid END)
            AND NOT unbound.relforcerowsecurity AND pg_has_role(o.oid, unbound.relowner, 'USAGE'))
        OR o.rolname = ANY (%(exempt)s))
      AND l.rolcanlogin AND NOT l.rolsuper AND NOT l.rolbypassrls AND l.rolname <> ALL (%(exempt)s)
      AND NOT pg_has_role(l.oid, v.relowner, 'MEMBER')
      AND has_database_privilege(l.oid, current_database(), 'CONNECT')
    GROUP BY 1, 2, 3 ORDER BY 2
    """


@check("danger", "It reads as its owner, whom row security does not bind: its readers see every territory.")
def definer_view(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A view over the leads or our tables that a login may read, and that reads as an owner who is not bound."""
    for _, view, owner, login, _ in conn.execute(_LEAKS, _asked(conn, s, "v")).fetchall():
        mends = f"ALTER VIEW {view} SET (security_invoker = true);"
        yield Fault(view, f"it reads leads as {owner}, so login {login} sees those of every territory", mends)


@check("danger", "Its rows were read past row security, and no policy holds for them.")
def materialised_view(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A materialised view over the leads or our tables that a login may read."""
    for oid, view, _, login, grantees in conn.execute(_LEAKS, _asked(conn, s, "m")).fetchall():
        mends = " ".join(revoking(conn, Object("relation", oid, view), role, "SELECT") for role in grantees)
        yield Fault(view, f"it holds leads of every territory, and login {login} may read it", mends)


@check("danger", "It shows other rows, or to others, than the release that was installed.", needs="text")
def view_changed(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """The view v_lead_protection with another text than shipped, or without security_invoker or security_barrier."""
    wanted = shipped(s).tables
    text = shipped_script(s, known(applied(conn, s)))
    for one in present.tables(conn, s):
        expected = wanted.get(one.name)
        if one.kind != "v" or expected is None:
            continue
        name = f"{ident(s.schema)}.{one.name}"
        if list(one.options) != expected["options"]:
            options = ", ".join(expected["options"])
            yield Fault(
                f"{s.schema}.{one.name}", f"its options are not {options}", f"ALTER VIEW {name} SET ({options});"
            )
        if one.definition != expected["definition"]:
            again = _view(text, name)
            yield Fault(f"{s.schema}.{one.name}", "its text is not the shipped one", again)


@check("warning", "It runs as its owner, so whoever calls it reads or changes leads past row security.")
def definer_function(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A SECURITY DEFINER function of the host that names leads, lead_tables or a table of ours, and who may call it."""
    query = """
        SELECT p.oid, p.oid::regprocedure::text, pg_get_userbyid(p.proowner)::text,
               CASE p.prokind WHEN 'p' THEN 'PROCEDURE' ELSE 'FUNCTION' END,
               ARRAY(SELECT DISTINCT coalesce(pg_get_userbyid(nullif(acl.grantee, 0))::text, 'PUBLIC')
                     FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS acl
                     JOIN pg_roles AS l ON l.rolcanlogin AND NOT l.rolsuper AND NOT l.rolbypassrls
                       AND l.rolname <> ALL (%(exempt)s) AND NOT pg_has_role(l.oid, p.proowner, 'MEMBER')
                       AND has_database_privilege(l.oid, current_database(), 'CONNECT')
                       AND CASE acl.grantee WHEN 0 THEN true ELSE pg_has_role(l.oid, acl.grantee, 'MEMBER') END
                     ORDER BY 1)
        FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace JOIN pg_roles AS o ON o.oid = p.proowner
        JOIN pg_class AS c ON c.oid = %(table)s
        WHERE p.prosecdef AND n.nspname NOT IN ('pg_catalog', 'information_schema', %(schema)s, %(quarantine)s)
          AND p.prorettype <> 'trigger'::regtype
          AND coalesce(pg_get_function_sqlbody(p.oid), p.prosrc) ~* %(named)s
          AND (o.rolsuper OR o.rolbypassrls OR NOT c.relforcerowsecurity AND pg_has_role(o.oid, c.relowner, 'USAGE'))
        """
    named = [(s.leads_table, present.leads(conn, s)), *((child.table, oid) for child, oid in present.children(conn, s))]
    asked = [(rf"\m{_literally(one.split('.', 1)[1])}\M", oid) for one, oid in named]
    if ours := [
        one for one in present.tables(conn, s) if one.kind in ("r", "p")
    ]:  # by their schema: a host has such names
        names = "|".join(_literally(one.name) for one in ours)
        asked.append((rf'\m{_literally(s.schema)}"?[.]"?({names})\M', ours[0].oid))
    known_to = {"schema": s.schema, "quarantine": s.quarantine, "exempt": list(s.exempt_roles)}
    found = {}
    for pattern, oid in asked:
        for row in conn.execute(query, known_to | {"table": oid, "named": pattern}).fetchall():
            found[row[1]] = row
    for _, (oid, signature, owner, kind, callers) in sorted(found.items()):
        if callers:
            revoke = " ".join(revoking(conn, Object("function", oid, f"{kind} {signature}"), role) for role in callers)
            who = "everybody" if "PUBLIC" in callers else ", ".join(callers)
            mends = f"ALTER {kind} {signature} SECURITY INVOKER;  -- or {revoke}"
            yield Fault(f"function {signature}", f"it runs as {owner}, and {who} may call it", mends)


def _literally(name: str) -> str:
    """The name as a regular expression of the server has it."""
    return "".join(f"[{one}]" if one not in r"\^]" else f"\\{one}" for one in name)


@check("danger", "Rows in it are leads without row security.")
def child_table(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A table that shares its rows with the leads or lead_tables by inheritance."""
    query = """
        SELECT i.inhrelid::regclass::text, i.inhparent::regclass::text, c.relispartition
        FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
        WHERE ARRAY[i.inhparent, i.inhrelid] && %s::oid[] ORDER BY 1, 2
        """
    hosts = [present.leads(conn, s), *(oid for _, oid in present.children(conn, s))]
    for child, parent, partition in conn.execute(query, (hosts,)).fetchall():
        yield Fault(child, f"it inherits from {parent}", apart(parent, child, partition=partition))


@check("note", "It changes leads as the owner of the table; contract decides it like an edit of each of them.")
def foreign_key_action(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A foreign key of the leads with an action: deleting or changing another row changes leads."""
    query = """
        SELECT k.conname::text, k.confrelid::regclass::text FROM pg_constraint AS k
        WHERE k.contype = 'f' AND k.conrelid = %s
          AND (k.confdeltype NOT IN ('a', 'r') OR k.confupdtype NOT IN ('a', 'r')) ORDER BY 1
        """
    for name, other in conn.execute(query, (present.leads(conn, s),)).fetchall():
        yield Fault(f"{s.leads_table}, constraint {name}", f"what happens to {other} happens to its leads", None)


@check("note", "It can change more than the statement; id and territory are compared after it.")
def host_before_trigger(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A BEFORE trigger of the host on the leads, for each row."""
    query = """
        SELECT t.tgname::text FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid
        JOIN pg_namespace AS n ON n.oid = p.pronamespace
        WHERE t.tgrelid = %s AND NOT t.tgisinternal AND t.tgenabled <> 'D' AND t.tgtype & 3 = 3 AND n.nspname <> %s
        ORDER BY 1
        """
    for (name,) in conn.execute(query, (present.leads(conn, s), s.schema)).fetchall():
        yield Fault(f"{s.leads_table}, trigger {name}", "it runs before a lead is written", None)


@check("warning", "Whoever claims, assigns or releases such a lead meets the error of the trigger.", needs="enforced")
def owner_column_code(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A trigger of the leads that reads or writes elsewhere, as our reader where our functions write the column."""
    if not s.owner_column:
        return
    query = render("SELECT c.name, c.remedy FROM {schema}.column_code() AS c", s)
    for name, remedy in conn.execute(query.encode()).fetchall():
        yield Fault(name, f"it runs as {s.role('reader')} where {s.owner_column} is written", remedy)


@check("warning", "The statement that was decided is not the one that runs.")
def rule_on_leads(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A rewrite rule on the leads or on one of lead_tables."""
    query = "SELECT rulename::text FROM pg_rewrite WHERE ev_class = %s ORDER BY 1"
    children = [(child.table, oid) for child, oid in present.children(conn, s)]
    for host, oid in [(s.leads_table, present.leads(conn, s)), *children]:
        for (name,) in conn.execute(query, (oid,)).fetchall():
            mends = f"DROP RULE {ident(name)} ON {table(host)};"
            yield Fault(f"{host}, rule {name}", "it rewrites statements on leads", mends)


@check("warning", "A subscriber reads every row: row security ends at the publication.")
def publication(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A publication that carries the leads, one of lead_tables or a table of ours."""
    values = ([s.leads_table, *(child.table for child in s.lead_tables)], s.schema)
    for name, carried, drop in conn.execute(_PUBLISHED, values).fetchall():
        whole = f"DROP PUBLICATION {ident(name)};  -- and make it anew with the tables that it needs"
        mends = f"ALTER PUBLICATION {ident(name)} DROP {drop};" if drop else whole
        yield Fault(f"publication {name}", f"it carries {', '.join(carried)}", mends)


def _asked(conn: psycopg.Connection[Any], s: Settings, kind: str) -> dict[str, Any]:
    exempt = list(s.exempt_roles)
    # before contract nothing narrows the leads, so no view passes it by: the gate names those that will
    leads = present.leads(conn, s) if present.enforced(conn, s) else None
    hosts = [leads, *(oid for _, oid in present.children(conn, s))] if leads else []
    return {"leads": leads, "hosts": hosts, "schema": s.schema, "kind": kind, "exempt": exempt}


def _view(text: str, name: str) -> str | None:
    """The statement of a script that makes a view, without what it says of its options."""
    start = text.find(f"CREATE VIEW {name}")
    if start < 0:
        return None
    return "CREATE OR REPLACE VIEW" + text[start:].split(";", 1)[0].removeprefix("CREATE VIEW") + ";"
