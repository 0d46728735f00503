"""Memberships: given so that they count, and taken away as they were given, by whichever group and grantor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadprotect.database.statements import row
from leadprotect.settings import ident

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg

    from leadprotect.database.drivers import AnyConnection

_GRANTORS = 160000  # from here on each grantor's grant is one of its own, and REVOKE takes back one of them only
# a second GRANT changes the options that it names, and no other: https://www.postgresql.org/docs/current/sql-grant.html
_INHERITING = """
    SELECT m.rolinherit AND NOT EXISTS (
             SELECT FROM pg_catalog.pg_auth_members AS g JOIN pg_catalog.pg_roles AS r ON r.oid = g.roleid
             WHERE g.member = m.oid AND r.rolname = ANY (%s)
               AND NOT coalesce((pg_catalog.to_jsonb(g) ->> 'inherit_option')::pg_catalog.bool, true)),
           pg_catalog.current_setting('server_version_num')::pg_catalog.int4 >= %s
    FROM pg_catalog.pg_roles AS m WHERE m.rolname = %s
    """
_HELD = """
    SELECT r.rolname::text, CASE WHEN {modern} AND g.grantor <> 10
             THEN pg_catalog.pg_get_userbyid(g.grantor)::text END, g.admin_option AND {modern}
    FROM pg_catalog.pg_auth_members AS g JOIN pg_catalog.pg_roles AS r ON r.oid = g.roleid
    JOIN pg_catalog.pg_roles AS m ON m.oid = g.member
    WHERE m.rolname = %(member)s AND (r.rolname = %(role)s OR NOT %(itself)s AND EXISTS (
      SELECT FROM pg_catalog.pg_roles AS t
      WHERE t.rolname = %(role)s AND pg_catalog.pg_has_role(r.oid, t.oid, 'MEMBER')))
    ORDER BY r.rolname <> %(role)s, r.rolname, g.grantor <> g.member, g.grantor
    """
# what somebody granted goes with his own right to grant it: https://www.postgresql.org/docs/current/sql-revoke.html
_HANGING = """
    WITH RECURSIVE hanging AS (
      SELECT d.roleid, d.member, d.admin_option, d.inherit_option, d.set_option
      FROM pg_catalog.pg_auth_members AS d JOIN pg_catalog.pg_roles AS r ON r.oid = d.roleid
      JOIN pg_catalog.pg_roles AS b ON b.oid = d.grantor
      WHERE r.rolname = %(role)s AND b.rolname = %(member)s
      UNION SELECT d.roleid, d.member, d.admin_option, d.inherit_option, d.set_option
      FROM hanging AS h JOIN pg_catalog.pg_auth_members AS d
        ON d.roleid = h.roleid AND d.grantor = h.member AND h.admin_option)
    SELECT m.rolname::text, pg_catalog.json_strip_nulls(pg_catalog.json_build_object(
      'ADMIN', nullif(bool_or(h.admin_option AND m.rolname <> %(member)s), false),
      'INHERIT', bool_or(h.inherit_option), 'SET', bool_or(h.set_option)))
    FROM hanging AS h JOIN pg_catalog.pg_roles AS m ON m.oid = h.member GROUP BY 1 ORDER BY 1
    """


def grants(conn: AnyConnection, roles: Sequence[str], member: str, *, or_rather: Sequence[str] = ()) -> str:
    """What a superuser runs so that `member` holds `roles`, and acts with them without SET ROLE.

    `or_rather` are roles that may be meant instead of the last one. A login that made our roles is a member of them
    that inherits nothing, and so is who was created NOINHERIT: a plain GRANT would leave it so.
    """
    inherits, modern = row(conn, _INHERITING, ([*roles], _GRANTORS, member))
    beside = f" /* or {', '.join(map(ident, or_rather))} */" if or_rather else ""
    grant = f"GRANT {', '.join(map(ident, roles))}{beside} TO {ident(member)}"
    if inherits:
        return f"{grant};"
    return f"{grant} WITH INHERIT TRUE;" if modern else f"{grant}; ALTER ROLE {ident(member)} INHERIT;"


def revokes(conn: psycopg.Connection[Any], role: str, member: str) -> list[str]:
    """What a superuser runs so that `member` no longer holds `role`, nor a group by which it did.

    Whom it granted the role in its turn keeps it, by the superuser's own grant.
    """
    made: list[str] = []
    for group, grantor, grants in _held(conn, role, member, itself=False):
        hanging = _hanging(conn, group, member) if grants else {}
        made += [grant for name, grant in hanging.items() if name != member]
        made.append(_revoke("", group, member, grantor, cascade=bool(hanging)))
    return made or [_revoke("", role, member, None)]


def revokes_grant_option(conn: psycopg.Connection[Any], role: str, member: str, grantor: str) -> list[str]:
    """What a superuser runs so that `member` may no longer grant `role`; who holds it by `member` keeps it."""
    hanging = _hanging(conn, role, member)
    option = "ADMIN OPTION FOR " if member in hanging else ""  # without it nothing is left of the membership
    return [*hanging.values(), _revoke(option, role, member, grantor, cascade=bool(hanging))]


def revokes_whole(conn: psycopg.Connection[Any], role: str, member: str) -> list[str]:
    """What a superuser runs so that neither `member` holds `role` nor who got it from `member`."""
    held = _held(conn, role, member, itself=True)
    return [_revoke("", role, member, grantor, cascade=grants) for _, grantor, grants in held]


def _held(conn: psycopg.Connection[Any], role: str, member: str, *, itself: bool) -> list[tuple[str, str | None, bool]]:
    query = _HELD.replace("{modern}", str(conn.info.server_version >= _GRANTORS).lower())
    return conn.execute(query.encode(), {"role": role, "member": member, "itself": itself}).fetchall()


def _hanging(conn: psycopg.Connection[Any], role: str, member: str) -> dict[str, str]:
    """Who holds the role by `member`, and the grant of a superuser that keeps it for him."""
    found = conn.execute(_HANGING, {"role": role, "member": member}).fetchall()
    return {
        name: f"GRANT {ident(role)} TO {ident(name)} WITH "
        + ", ".join(f"{option} {str(value).upper()}" for option, value in options.items())
        + ";"
        for name, options in found
    }


def _revoke(what: str, role: str, member: str, grantor: str | None, *, cascade: bool = False) -> str:
    by = f" GRANTED BY {ident(grantor)}" if grantor else ""
    return f"REVOKE {what}{ident(role)} FROM {ident(member)}{by}{' CASCADE' if cascade else ''};"
