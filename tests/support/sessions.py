"""Sessions of the superuser that outlive a statement, and the databases that are made and dropped over them.

A new session costs the server more than most statements of a test do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from leadprotect.settings import ident

if TYPE_CHECKING:
    from tests.support.servers import Server

OWNER = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s"
_sessions: dict[str, psycopg.Connection[Any]] = {}


def session(url: str) -> psycopg.Connection[Any]:
    """The session of this process there; a new one if a test has ended the last."""
    conn = _sessions.get(url)
    if conn is None or conn.closed or not _answers(conn):
        # what a test changes about a table must not meet a plan that was made before
        conn = _sessions[url] = psycopg.connect(url, autocommit=True, prepare_threshold=None)
    return conn


def close(url: str) -> None:
    if conn := _sessions.pop(url, None):
        conn.close()


def close_all() -> None:
    for url in [*_sessions]:
        close(url)


def _answers(conn: psycopg.Connection[Any]) -> bool:
    try:
        conn.execute("")
    except psycopg.OperationalError:
        conn.close()
        return False
    return True


@dataclass(frozen=True)
class Janitor:
    """Makes a database like a template, or an empty one, and drops it."""

    server: Server
    dbname: str
    template: str | None

    def init(self) -> None:
        """A copy is made of files, since through the log it costs twice as much; its owner is the template's."""
        conn, like = session(self.server.url()), ""
        if self.template:
            close(self.server.url(self.template))
            conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (self.template,))
            owners = conn.execute(OWNER, (self.template,)).fetchall()
            like = f" OWNER {ident(owners[0][0])} TEMPLATE {ident(self.template)} STRATEGY file_copy"
        conn.execute(f"CREATE DATABASE {ident(self.dbname)}{like}".encode())

    def drop(self) -> None:
        """Whoever is still there is sent away."""
        close(self.server.url(self.dbname))
        session(self.server.url()).execute(f"DROP DATABASE IF EXISTS {ident(self.dbname)} WITH (FORCE)".encode())
