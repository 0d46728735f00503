"""Who can become whom: our roles, the services that hold them, and what passes row security by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadprotect.database.memberships import grants, revokes, revokes_grant_option, revokes_whole
from leadprotect.doctor import present
from leadprotect.doctor.finding import Fault, check
from leadprotect.migration.roles import territory_roles
from leadprotect.preflight.applied import made_with
from leadprotect.preflight.names_taken import empowered_roles
from leadprotect.settings import Settings, ident, literal
from leadprotect.settings.codes import OFFICES
from leadprotect.settings.names import ROLE_COMMENT

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

_SET_OPTION = 160000  # from here on the admin option alone is no membership
# A service is a login that reaches our app role by memberships that somebody granted; a superuser is a member of
# everything and no service for that, and the admin option alone, that a role's maker has, is none either. Nor is who
# may not connect here: our roles are the cluster's, and another database has services of its own. As JSON, since an
# older server's memberships have no options.
_SERVICES = """
    WITH RECURSIVE reached AS (
      SELECT r.oid FROM pg_roles AS r WHERE r.rolname = %(app)s
      UNION SELECT g.member FROM reached JOIN pg_auth_members AS g ON g.roleid = reached.oid
      WHERE to_jsonb(g) @> '{"inherit_option": true}' OR to_jsonb(g) @> '{"set_option": true}'
        OR NOT to_jsonb(g) ? 'set_option')
    SELECT l.* FROM reached JOIN pg_roles AS l ON l.oid = reached.oid
    WHERE l.rolcanlogin AND has_database_privilege(l.oid, current_database(), 'CONNECT')
    """
# the admin option alone is another check's, and a role of ours that holds another is one, too
_GROUPS = """
    SELECT m.rolname::text, r.rolname::text FROM pg_auth_members AS g
    JOIN pg_roles AS r ON r.oid = g.roleid JOIN pg_roles AS m ON m.oid = g.member
    WHERE r.rolname = ANY (%(ours)s) AND NOT m.rolcanlogin AND m.rolname <> ALL (%(ours)s)
      AND (to_jsonb(g) @> '{"inherit_option": true}' OR to_jsonb(g) @> '{"set_option": true}'
        OR NOT to_jsonb(g) ? 'set_option')
    GROUP BY 1, 2 ORDER BY 1, 2
    """
_POWERS = {
    "rolsuper": "SUPERUSER",
    "rolbypassrls": "BYPASSRLS",
    "rolcreaterole": "CREATEROLE",
    "rolreplication": "REPLICATION",
}
# what reads or runs past the privileges of tables
_PREDEFINED = {
    "pg_execute_server_program": "danger",
    "pg_read_server_files": "danger",
    "pg_write_server_files": "danger",
    "pg_write_all_data": "warning",
    "pg_read_all_data": "warning",
}


@check("danger", "Whoever becomes our owner can switch off every guard; who owns the leads too, only by intent.")
def owner_reachable(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A login that can act as the owner of our objects; a warning for who migrates, and for a group that holds it."""
    query = """
        SELECT l.rolname::text, r.rolname::text, coalesce((
                 SELECT pg_has_role(l.oid, c.relowner, 'MEMBER') FROM pg_class AS c WHERE c.oid = %(leads)s), false)
        FROM pg_roles AS l JOIN pg_roles AS r ON r.rolname = ANY (%(ours)s)
        WHERE l.rolcanlogin AND NOT l.rolsuper AND pg_has_role(l.oid, r.oid, 'MEMBER')
          AND has_database_privilege(l.oid, current_database(), 'CONNECT') ORDER BY 1, 2
        """
    values = {"leads": present.leads(conn, s), "ours": [s.role("owner"), s.role("reader")]}
    for login, role, migrates in conn.execute(query, values).fetchall():
        yield Fault(
            f"login {login}",
            f"it can act as {role}" + (": needed for a migration, and given back after it" if migrates else ""),
            " ".join(revokes(conn, role, login)),
            "warning" if migrates else None,
        )
    for group, role in conn.execute(_GROUPS, values).fetchall():
        what = f"whoever becomes a member of it can act as {role}"
        yield Fault(f"role {group}", what, " ".join(revokes_whole(conn, role, group)), "warning")


@check("danger", "Whoever held it has lost what it stands for, and a new one of the name would have nobody in it.")
def role_missing(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A role of ours, of an office or of a territory, that is gone or bears another name."""
    wanted = dict.fromkeys([*(s.role(office) for office in OFFICES), *territory_roles(conn, s)])
    query = "SELECT name FROM unnest(%s::text[]) AS name WHERE to_regrole(quote_ident(name)) IS NULL ORDER BY 1"
    for (role,) in conn.execute(query, (list(wanted),)).fetchall():
        renamed = f"-- where it was renamed, instead: ALTER ROLE ... RENAME TO {ident(role)};"
        made = f"CREATE ROLE {ident(role)} NOLOGIN; COMMENT ON ROLE {ident(role)} IS {literal(ROLE_COMMENT)};"
        yield Fault(f"role {role}", "there is no such role", f"{made}  {renamed}")


@check("danger", "A role that is to be a name for rights has rights or a login of its own.", needs=None)
def role_powers(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A role of ours with a login, powers, or groups of its own."""
    for role in _ours(conn, s):
        statements: list[str] = []
        problems = empowered_roles(conn, [role], statements)
        yield from (Fault(f"role {role}", problem, " ".join(statements)) for problem in problems)


@check("warning", "Whoever may grant it can make himself a member.")
def admin_option_alone(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A login that may grant a role of ours and is no member of it itself."""
    if conn.info.server_version < _SET_OPTION:
        return
    reachable = [s.role("owner"), s.role("reader")]
    query = """
        SELECT r.rolname::text, m.rolname::text, pg_get_userbyid(g.grantor)::text
        FROM pg_auth_members AS g JOIN pg_roles AS r ON r.oid = g.roleid JOIN pg_roles AS m ON m.oid = g.member
        WHERE r.rolname = ANY (%s) AND g.admin_option AND NOT g.inherit_option AND NOT g.set_option AND NOT m.rolsuper
          AND NOT (m.rolcanlogin AND r.rolname = ANY (%s))  -- owner_reachable names those
        ORDER BY 1, 2
        """
    for role, member, grantor in conn.execute(query, (_ours(conn, s), reachable)).fetchall():
        mends = " ".join(revokes_grant_option(conn, role, member, grantor))
        yield Fault(f"role {member}", f"it may grant {role}, without being a member", mends)


@check("danger", "Row security does not bind it, or it can grant itself what is not bound.")
def service_unbound(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A service that has or can become SUPERUSER, BYPASSRLS, CREATEROLE or REPLICATION; who has BYPASSRLS unnamed."""
    columns = ", ".join(f"r.{column}" for column in _POWERS)
    # SET ROLE gives what no membership inherits
    query = f"""
        SELECT v.rolname::text, r.rolname::text, {columns} FROM ({_SERVICES}) AS v JOIN pg_roles AS r
          ON r.oid = v.oid OR NOT v.rolsuper AND pg_has_role(v.oid, r.oid, 'MEMBER') ORDER BY 1, 2
        """
    for login, role, *powers in conn.execute(query.encode(), {"app": s.role("app")}).fetchall():
        held = ", ".join(word for word, has in zip(_POWERS.values(), powers, strict=True) if has)
        if held and role == login:
            mends = f"ALTER ROLE {ident(login)} {' '.join('NO' + word for word in held.split(', '))};"
            yield Fault(f"login {login}", f"it is a service and has {held}", mends)
        elif held:
            mends = " ".join(revokes(conn, role, login))
            yield Fault(f"login {login}", f"it is a service and can become {role}, which has {held}", mends)
    if present.enforced(conn, s):
        yield from _unnamed(conn, s)


def _unnamed(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """Whom the gate would not have let pass: it asks whether that is meant."""
    query = f"""
        SELECT l.rolname::text FROM pg_roles AS l JOIN pg_class AS c ON c.oid = %(leads)s
        WHERE l.rolcanlogin AND l.rolbypassrls AND NOT l.rolsuper AND NOT pg_has_role(l.oid, c.relowner, 'MEMBER')
          AND l.rolname <> ALL (%(exempt)s) AND l.oid NOT IN (SELECT v.oid FROM ({_SERVICES}) AS v)
          AND has_database_privilege(l.oid, current_database(), 'CONNECT')
          AND (has_table_privilege(l.oid, c.oid, 'SELECT, INSERT, UPDATE, DELETE')
            OR has_any_column_privilege(l.oid, c.oid, 'SELECT, INSERT, UPDATE')) ORDER BY 1
        """
    exempt = {*s.exempt_roles, *(made_with(conn, s) or s).exempt_roles, s.role("backup")}
    values = {"leads": present.leads(conn, s), "exempt": sorted(exempt), "app": s.role("app")}
    for (login,) in conn.execute(query.encode(), values).fetchall():
        mends = f"ALTER ROLE {ident(login)} NOBYPASSRLS;  -- or name it in exempt_roles"
        yield Fault(f"login {login}", f"it has BYPASSRLS and privileges on {s.leads_table}", mends)


@check("danger", "Row security does not bind the owner of a table unless it is forced.", needs="enforced")
def service_owns_leads(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A service that owns the leads or lead_tables, or can become who does, where row security is not forced."""
    query = f"""
        SELECT v.rolname::text, pg_get_userbyid(c.relowner)::text FROM ({_SERVICES}) AS v, pg_class AS c
        WHERE c.oid = %(table)s AND NOT c.relforcerowsecurity AND pg_has_role(v.oid, c.relowner, 'MEMBER')
          AND NOT v.rolsuper ORDER BY 1
        """
    children = [(child.table, oid) for child, oid in present.children(conn, s)]
    for name, oid in [(s.leads_table, present.leads(conn, s)), *children]:
        for login, owner in conn.execute(query.encode(), {"app": s.role("app"), "table": oid}).fetchall():
            own = f"{' '.join(revokes(conn, s.role('app'), login))}  -- or set host_rls = force and force it"
            mends = own if login == owner else " ".join(revokes(conn, owner, login))
            yield Fault(f"login {login}", f"it is a service and owns {name} (as {owner})", mends)


@check("danger", "What is named there is bound by no policy of ours.", needs="settings")
def exempt_role_reachable(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A service that can become a role of the setting exempt_roles."""
    query = f"""
        SELECT v.rolname::text, e.rolname::text
        FROM ({_SERVICES}) AS v JOIN pg_roles AS e ON e.rolname = ANY (%(exempt)s)
        WHERE NOT v.rolsuper AND pg_has_role(v.oid, e.oid, 'MEMBER') ORDER BY 1, 2
        """
    exempt = {*s.exempt_roles, *(made_with(conn, s) or s).exempt_roles}
    values = {"app": s.role("app"), "exempt": sorted(exempt)}
    for login, role in conn.execute(query.encode(), values).fetchall():
        mends = " ".join(revokes(conn, role if role != login else s.role("app"), login))
        yield Fault(f"login {login}", f"it is a service and can become {role}, which is exempt", mends)


@check("danger", "It reads files or runs programs of the server; or (a warning) every table, as row security allows.")
def service_predefined_role(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A service that holds pg_execute_server_program, the files' roles, pg_read_all_data or pg_write_all_data."""
    query = f"""
        SELECT v.rolname::text, p.rolname::text
        FROM ({_SERVICES}) AS v JOIN pg_roles AS p ON p.rolname = ANY (%(roles)s)
        WHERE NOT v.rolsuper AND pg_has_role(v.oid, p.oid, 'MEMBER') ORDER BY 1, 2
        """
    values = {"app": s.role("app"), "roles": list(_PREDEFINED)}
    for login, role in conn.execute(query.encode(), values).fetchall():
        level = _PREDEFINED[role]
        mends = " ".join(revokes(conn, role, login))
        yield Fault(f"login {login}", f"it is a service and holds {role}", mends, level)  # type: ignore[arg-type]


@check("warning", "It is admitted nowhere: it sees no lead of any territory.")
def service_without_territory(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A service that neither holds nor can become the role of a territory."""
    query = f"""
        SELECT v.rolname::text FROM ({_SERVICES}) AS v
        WHERE NOT v.rolsuper AND NOT EXISTS (
          SELECT FROM pg_roles AS t WHERE t.rolname = ANY (%(territories)s) AND pg_has_role(v.oid, t.oid, 'MEMBER'))
        ORDER BY 1
        """
    offices = {s.role(office) for office in OFFICES}
    territories = [role for role in _ours(conn, s) if role not in offices]
    for (login,) in conn.execute(query.encode(), {"app": s.role("app"), "territories": territories}).fetchall():
        mends = f"{grants(conn, [territories[0]], login)}  -- or the territory that it serves" if territories else None
        yield Fault(f"login {login}", f"it is a member of {s.role('app')} and of no territory", mends)


@check("warning", "Its membership does not count: it is denied everything until it sets a role that inherits.")
def service_does_not_inherit(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A login that was granted our app role itself, and does not inherit it."""
    query = """
        SELECT m.rolname::text, r.rolname::text
        FROM pg_auth_members AS g JOIN pg_roles AS r ON r.oid = g.roleid JOIN pg_roles AS m ON m.oid = g.member
        WHERE r.rolname = %s AND m.rolcanlogin AND NOT m.rolsuper AND NOT pg_has_role(m.oid, r.oid, 'USAGE')
          AND has_database_privilege(m.oid, current_database(), 'CONNECT')
          AND (NOT g.admin_option OR pg_has_role(m.oid, r.oid, 'SET')) ORDER BY 1
        """
    if conn.info.server_version < _SET_OPTION:
        query = query.replace(" OR pg_has_role(m.oid, r.oid, 'SET')", "")
    for login, role in conn.execute(query.encode(), (s.role("app"),)).fetchall():
        yield Fault(f"login {login}", f"it does not inherit {role}", grants(conn, [role], login))


def _ours(conn: psycopg.Connection[Any], s: Settings) -> list[str]:
    """Our roles in this cluster: those of the settings, and those that a territory added later has."""
    query = """
        SELECT r.rolname::text FROM pg_roles AS r
        WHERE r.rolname = ANY (%s) OR starts_with(r.rolname::text, %s)
          AND shobj_description(r.oid, 'pg_authid') = %s ORDER BY 1
        """
    return [role for (role,) in conn.execute(query, (list(s.roles), s.role(""), ROLE_COMMENT)).fetchall()]
