"""What an upgrade would refuse with before anything is touched: the same questions as its own, all of them at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg

from leadprotect import phases
from leadprotect.database.catalog import one, relation
from leadprotect.errors import LeadProtectError, PreflightError, ProtectionUnavailable
from leadprotect.migration import undo
from leadprotect.preflight import check
from leadprotect.preflight.host_tables import host
from leadprotect.preflight.installed import check_installed
from leadprotect.preflight.rights import rights
from leadprotect.preflight.version_table import check_may_write, check_version_table
from leadprotect.settings import ident

if TYPE_CHECKING:
    from collections.abc import Callable

    from leadprotect.settings import Settings


@dataclass
class Refusals:
    """`problems` are finished sentences, `statements` what a DBA can run against them, `unseen` what was not judged."""

    problems: list[str] = field(default_factory=list)
    statements: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)

    def ask(self, conn: psycopg.Connection[Any], question: Callable[[], object]) -> None:
        """Keep what it refuses with, in a savepoint of its own."""
        try:
            with conn.transaction():
                question()
        except PreflightError as refused:
            self.problems = list(dict.fromkeys([*self.problems, *refused.problems]))
            self.statements = list(dict.fromkeys([*self.statements, *refused.statements]))
        except (ProtectionUnavailable, psycopg.errors.InsufficientPrivilege) as error:
            self.unseen.append(f"whether it would be refused: {str(error).splitlines()[0]}")
        except LeadProtectError as refused:
            self.problems.append(str(refused))


def refusals(conn: psycopg.Connection[Any], s: Settings, present: str | None) -> Refusals:
    """What `alembic upgrade head` would refuse with at the revision `present`; empty where it would begin."""
    found = Refusals()
    migrates = may_migrate(conn, s)
    waiting = phases.pending(present)
    found.problems += _server(conn, found)
    found.ask(conn, lambda: check_version_table(conn, s, ours=True))
    found.ask(conn, lambda: check_installed(conn, s, applied=present is not None))
    if present is not None and present not in phases.chain():
        found.problems.append(f"revision {present} is of a newer version of leadprotect, which this one does not know")
    if not waiting:
        return found
    if migrates:
        found.ask(conn, lambda: _rights(conn, s, present))
    else:
        me = one(conn, "SELECT current_user")
        found.unseen.append(
            f"what the login that migrates may do: {me} is no member of {s.role('owner')}, so it is another one"
        )
    found.ask(conn, lambda: _whole(conn, s, fresh=present is None))
    return found


def may_migrate(conn: psycopg.Connection[Any], s: Settings) -> bool:
    """Whether this login is the one to be judged: it acts for our owner, or nobody has migrated here yet."""
    query = "SELECT coalesce(pg_has_role(to_regrole(%s)::oid, 'USAGE'), true)"
    return relation(conn, s.schema, "territories") is None or bool(one(conn, query, ident(s.role("owner"))))


def _server(conn: psycopg.Connection[Any], found: Refusals) -> list[str]:
    """The transaction that asks is read-only by itself: only what somebody set for the login's sessions counts."""
    if problem := check.server_problem(conn):
        return [problem]
    query = "SELECT source FROM pg_settings WHERE name = 'default_transaction_read_only' AND setting = 'on'"
    source = one(conn, query)
    if source in ("client", "session"):
        found.unseen.append(
            "whether a session without default_transaction_read_only may write: this one was asked not to"
        )
    elif source:
        me = one(conn, "SELECT current_user")
        return [f"the sessions of {me} in this database are read-only (default_transaction_read_only): a DBA meant it"]
    return []


def _rights(conn: psycopg.Connection[Any], s: Settings, present: str | None) -> None:
    if relation(conn, s.version_table_schema, s.version_table):
        check_may_write(conn, s)
    if reason := undo.contradicted(conn, s, [present] if present else []):
        raise PreflightError([reason])
    statements: list[str] = []
    if problems := rights(conn, s, statements):
        raise PreflightError(problems, statements)


def _whole(conn: psycopg.Connection[Any], s: Settings, *, fresh: bool) -> None:
    statements: list[str] = []
    problems = host(conn, s) + check.whole(conn, s, statements, fresh=fresh)
    if problems:
        raise PreflightError(problems, statements)
