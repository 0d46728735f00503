"""What must be true of a database before a revision touches it; each finding names its remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadprotect.database import replication
from leadprotect.database.catalog import one
from leadprotect.errors import PreflightError
from leadprotect.preflight.host_tables import host, visibility
from leadprotect.preflight.leftovers import foreign_quarantine, leftovers
from leadprotect.preflight.names_taken import later_strangers, strangers
from leadprotect.preflight.rights import missing_role, rights

if TYPE_CHECKING:
    import psycopg

    from leadprotect.settings import Settings

# first minor version of each major without a known row-security CVE (CVE-2024-10976, CVE-2025-8713)
SAFE_MINOR = {15: 14, 16: 10, 17: 6}


def check_before_migration(conn: psycopg.Connection[Any], settings: Settings, *, fresh: bool) -> None:
    """Refuse, before anything is touched, what would fail halfway.

    `fresh` means that no revision is applied yet. Raises `PreflightError` with every finding.
    """
    check_server(conn)
    statements: list[str] = []
    problems = host(conn, settings) + rights(conn, settings, statements)
    problems += whole(conn, settings, statements, fresh=fresh)
    if problems:
        raise PreflightError(problems, list(dict.fromkeys(statements)))


def whole(conn: psycopg.Connection[Any], settings: Settings, statements: list[str], *, fresh: bool) -> list[str]:
    """What is wrong with the database, whoever migrates it: hidden rows, names that are taken, and what was left."""
    policies: list[str] = []
    problems = visibility(conn, settings, policies)
    if policies:
        statements += [*missing_role(conn, settings, "reader"), *policies]
    if fresh:
        problems += strangers(conn, settings, statements)
    else:
        problems += later_strangers(conn, settings)
    return problems + (foreign_quarantine(conn, settings, statements) or leftovers(conn, settings))


def check_server(conn: psycopg.Connection[Any]) -> None:
    """Refuse a server on which no migration can run, up or down; raises `PreflightError`."""
    problem = server_problem(conn)
    if not problem and one(conn, "SELECT current_setting('transaction_read_only')") == "on":
        me = str(one(conn, "SELECT current_user"))
        problem = f"the sessions of {me} in this database are read-only (default_transaction_read_only): a DBA meant it"
    if problem:
        raise PreflightError([problem])


def server_problem(conn: psycopg.Connection[Any]) -> str | None:
    """Why no migration can run on this server, whatever the session may do; None where one can."""
    problem = version_problem(conn.info.server_version)
    if not problem and (standby := replication.standby(conn)):
        named = f", {standby.primary}" if standby.primary else ""
        problem = f"this server is a read replica: run the migration on the primary{named}"
    return problem


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
