"""Our roles, who holds them, and the login for backups, as SQL for a cluster without: what pg_dump leaves out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from leadprotect.settings import Settings, ident, literal, render
from leadprotect.settings.codes import BACKUP
from leadprotect.settings.names import ROLE_COMMENT

if TYPE_CHECKING:
    from collections.abc import Iterator

_INHERITS = 160000  # from here on a membership has options of its own
_EXISTING = """
    SELECT r.rolname::text FROM pg_catalog.pg_roles AS r
    WHERE r.rolname = ANY (%s)
       OR starts_with(r.rolname::text, %s) AND shobj_description(r.oid, 'pg_authid') = %s
    """
_MEMBERS = """
    SELECT DISTINCT r.rolname::text, m.rolname::text, g.admin_option, {options}
    FROM pg_catalog.pg_auth_members AS g
    JOIN pg_catalog.pg_roles AS r ON r.oid = g.roleid JOIN pg_catalog.pg_roles AS m ON m.oid = g.member
    WHERE r.rolname = ANY (%s) ORDER BY 1, 2, 3
    """


@dataclass(frozen=True)
class Membership:
    """A grant of a role of ours; `inherits` and `sets` are None on a server that knows no such options."""

    role: str
    member: str
    admin: bool
    inherits: bool | None
    sets: bool | None


@dataclass(frozen=True)
class Roles:
    """Names of our roles, whether they exist here or not, and who holds them here.

    `backup` is the login that pg_dump needs: it passes row security, which no role of ours may.
    """

    names: tuple[str, ...]
    members: tuple[Membership, ...]
    backup: str


def our_roles(conn: psycopg.Connection[Any], s: Settings) -> Roles:
    """The offices, the roles of the territories that the database knows, and every membership of them."""
    backup = s.role(BACKUP)
    existing = conn.execute(_EXISTING, (list(s.roles), s.role(""), ROLE_COMMENT)).fetchall()
    names = sorted({*s.roles, *(name for (name,) in existing), *territory_roles(conn, s)})
    options = "g.inherit_option, g.set_option" if conn.info.server_version >= _INHERITS else "NULL, NULL"
    found = conn.execute(_MEMBERS.replace("{options}", options).encode(), ([*names, backup],)).fetchall()
    return Roles(tuple(names), tuple(Membership(*row) for row in found), backup)


def roles_sql(found: Roles) -> str:
    """A script for psql that makes the roles and memberships where they are missing, without passwords.

    A login that does not exist there is left out: it is the host's to make.
    """
    lines = ["-- Roles of leadprotect, without passwords: as a superuser, before pg_restore; twice does no harm."]
    for name in found.names:
        lines.append(_where(f"to_regrole({literal(ident(name))}) IS NULL", f"CREATE ROLE {ident(name)} NOLOGIN"))
        lines.append(f"COMMENT ON ROLE {ident(name)} IS {literal(ROLE_COMMENT)};")
    lines += _backup_sql(ident(found.backup))
    lines += (_where(f"to_regrole({literal(ident(one.member))}) IS NOT NULL", _grant(one)) for one in found.members)
    return "\n".join(lines)


def _backup_sql(login: str) -> list[str]:
    # no office: it holds no right of ours, and row security does not bind it
    return [
        "-- The login for pg_dump of the whole database; row security does not bind it, so it is nobody else's.",
        _where(f"to_regrole({literal(login)}) IS NULL", f"CREATE ROLE {login} LOGIN BYPASSRLS"),
        f"GRANT pg_read_all_data TO {login};",
    ]


def _where(condition: str, statement: str) -> str:
    return f"DO {literal(f'BEGIN IF {condition} THEN {statement}; END IF; END')};"


def _grant(one: Membership) -> str:
    return f"GRANT {ident(one.role)} TO {ident(one.member)}" + ", ".join(_options(one))


def _options(one: Membership) -> Iterator[str]:
    said = [("ADMIN", one.admin or None), ("INHERIT", one.inherits), ("SET", one.sets)]
    given = [f"{name} {'TRUE' if value else 'FALSE'}" for name, value in said if value is not None]
    if one.inherits is None and one.admin:
        given = ["ADMIN OPTION"]
    if given:
        yield f" WITH {', '.join(given)}"


def territory_roles(conn: psycopg.Connection[Any], s: Settings) -> list[str]:
    """Roles of those in the table; none where this login may not read it."""
    try:
        with conn.transaction():
            found = conn.execute(
                render("SELECT {schema}.territory_role(code) FROM {schema}.territories", s).encode()
            ).fetchall()
    except psycopg.errors.ProgrammingError:  # none of ours here, or not for this login
        return []
    return [role for (role,) in found]
