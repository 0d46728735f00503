"""What a session begins with: settings of roles and databases, and who may set what is not his."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadprotect.database.privileges import Object, revoking
from leadprotect.doctor.finding import Fault, check
from leadprotect.settings import Settings, ident
from leadprotect.settings.values import of_setting

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

_PRESETS = """
    SELECT r.rolname::text, d.datname::text, split_part(setting, '=', 1), substr(setting, strpos(setting, '=') + 1)
    FROM pg_db_role_setting AS p CROSS JOIN LATERAL unnest(p.setconfig) AS setting
    LEFT JOIN pg_roles AS r ON r.oid = p.setrole LEFT JOIN pg_database AS d ON d.oid = p.setdatabase
    WHERE (p.setdatabase = 0 OR d.datname = current_database()) AND lower(split_part(setting, '=', 1)) = ANY (%s)
    ORDER BY 1, 2, 3
    """


@check("danger", "Sessions act for somebody, or in a territory, without having said so.", needs=None)
def preset_context(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A setting of the context (user, territory, correlation) that a role or a database begins its sessions with."""
    names = [of_setting(name)[0].lower() for name in (s.user_guc, s.territory_guc, s.correlation_guc)]
    yield from _found(conn, names)


@check("danger", "Triggers that do not fire ALWAYS are silent in such sessions, the host's among them.", needs=None)
def preset_replication_role(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A role or database whose sessions begin with session_replication_role."""
    del s
    yield from _found(conn, ["session_replication_role"])


@check("warning", "Names mean something else there, or reads fail instead of being narrowed.", needs=None)
def preset_names(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A role or database whose sessions begin with another search_path or row_security."""
    del s
    yield from _found(conn, ["search_path", "row_security"])


@check("danger", "Triggers of the host are silent for whoever sets it, and ours are the only ones left.", needs=None)
def replication_role_granted(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A role that is no superuser and may set session_replication_role, for itself or by ALTER SYSTEM for all."""
    del s
    query = """
        SELECT DISTINCT p.oid, coalesce(r.rolname::text, 'PUBLIC'), acl.privilege_type FROM pg_parameter_acl AS p
        CROSS JOIN LATERAL aclexplode(p.paracl) AS acl LEFT JOIN pg_roles AS r ON r.oid = acl.grantee
        WHERE p.parname = 'session_replication_role' AND coalesce(NOT r.rolsuper, true)
        ORDER BY 2, 3 DESC
        """
    for oid, role, privilege in conn.execute(query).fetchall():
        on = Object("parameter", oid, "PARAMETER session_replication_role")
        yield Fault(
            f"role {role}",
            f"it may {'alter' if privilege == 'ALTER SYSTEM' else 'set'} session_replication_role",
            revoking(conn, on, role, privilege),
        )


def _found(conn: psycopg.Connection[Any], names: list[str]) -> Iterator[Fault]:
    for role, database, name, value in conn.execute(_PRESETS, (names,)).fetchall():
        if role and database:
            where, command = f"role {role} in {database}", f"ROLE {ident(role)} IN DATABASE {ident(database)}"
        elif role:
            where, command = f"role {role}", f"ROLE {ident(role)}"
        elif database:
            where, command = f"database {database}", f"DATABASE {ident(database)}"
        else:
            where, command = "every role", "ROLE ALL"
        yield Fault(where, f"its sessions begin with {name} = {value}", f"ALTER {command} RESET {_setting(name)};")


def _setting(name: str) -> str:
    return ".".join(ident(part) for part in name.split("."))
