"""What must be true of a database before a revision touches it; each finding names its remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadprotect.database.catalog import one
from leadprotect.errors import PreflightError
from leadprotect.preflight.host_tables import host, visibility
from leadprotect.preflight.leftovers import leftovers
from leadprotect.preflight.names_taken import later_strangers, strangers
from leadprotect.preflight.rights import missing_owner, rights

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    import psycopg

    from leadprotect.settings import Settings

# first minor version of each major without a known row-security CVE (CVE-2024-10976, CVE-2025-8713)
SAFE_MINOR = {15: 14, 16: 10, 17: 6}
_PROBES = 20
_POOLED = (
    "database_url leads to a transaction pooler (PgBouncer or the like), and a migration needs sessions of its own: "
    "set DATABASE_URL to the server itself, or to a pool in session mode"
)


def check_before_migration(conn: psycopg.Connection[Any], settings: Settings, *, fresh: bool) -> None:
    """Refuse, before anything is touched, what would fail halfway.

    `fresh` means that no revision is applied yet. Raises `PreflightError` with every finding.
    """
    problems: list[str] = []
    statements: list[str] = []
    policies: list[str] = []
    check_server(conn)
    problems += host(conn, settings)
    problems += rights(conn, settings, statements)
    problems += visibility(conn, settings, policies)
    if policies:
        statements += [*missing_owner(conn, settings), *policies]
    if fresh:
        problems += strangers(conn, settings, statements)
    else:
        problems += later_strangers(conn, settings)
    problems += leftovers(conn, settings)
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
