"""Sessions of the superuser that outlive a statement, and the databases that are made and dropped over them.

A new session costs the server more than most statements of a test do.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql
from pytest_postgresql.janitor import DatabaseJanitor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.servers import Server

OWNER = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s"
ROLES = """SELECT rolname, (rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication, rolbypassrls,
    rolconnlimit, setconfig)::text
FROM pg_roles LEFT JOIN pg_db_role_setting ON (setrole, setdatabase) = (pg_roles.oid, 0)"""
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


def roles(server: Server) -> dict[str, str]:
    """What each role of a server may do, and with which settings its sessions begin in every database."""
    return dict(session(server.url("postgres")).execute(ROLES).fetchall())


def _answers(conn: psycopg.Connection[Any]) -> bool:
    try:
        conn.execute("")
    except psycopg.OperationalError:
        conn.close()
        return False
    return True


class Janitor(DatabaseJanitor):
    """Makes a database like a template, or an empty one, and drops it, over a session that is there anyway.

    A copy is made of files, since through the log it costs twice as much; its owner is the template's.
    """

    def __init__(self, server: Server, name: str, template: str | None) -> None:
        super().__init__(user="postgres", host=server.host, port=5432, dbname=name, template_dbname=template)
        self.server = server

    def init(self) -> None:
        if self.template_dbname:
            close(self.server.url(self.template_dbname))
        super().init()

    def drop(self) -> None:
        close(self.server.url(self.dbname))
        super().drop()

    @contextmanager
    def cursor(self, dbname: str | None = None) -> Iterator[psycopg.Cursor[Any]]:
        with session(self.server.url(dbname or self.maintenance_dbname)).cursor() as cursor:
            yield cursor

    def _build_create_database_sql(self) -> sql.Composed:
        statement = super()._build_create_database_sql()
        if not self.template_dbname:
            return statement
        with self.cursor() as cursor:
            owners = cursor.execute(OWNER, (self.template_dbname,)).fetchall()
        return statement + sql.SQL(" OWNER {} STRATEGY file_copy").format(sql.Identifier(owners[0][0]))
