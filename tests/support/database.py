"""One database of a test: what a host application and its users would do with it."""

from __future__ import annotations

import io
import itertools
import json
import re
import threading
import uuid
from argparse import Namespace
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, pool

from leadprotect import acting_as
from leadprotect.settings import Settings, parse, render
from tests.support import sessions
from tests.support.profiles import HOST_TABLES, HOST_USERS, LOGINS, Profile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from tests.support.servers import Server

ROOT = Path(__file__).parents[2]
HARMLESS = re.compile(
    r"\s*(SELECT|INSERT|UPDATE|DELETE|TRUNCATE|CREATE|DROP|GRANT|REVOKE|COMMENT|REASSIGN"
    r"|ALTER (?!ROLE|USER|DATABASE|SYSTEM))\b"
)
"""Statements that leave their session as it was, and whose effect an older session has, too: a new one costs more."""


@lru_cache(maxsize=16)
def parsed(given: str) -> Settings:
    """Settings of a database and of its further activities, as JSON; they are asked for with every statement."""
    return parse(*json.loads(given))


@dataclass
class Database:
    """A database of its own, on the server of a profile."""

    server: Server
    profile: Profile
    name: str
    overrides: dict[str, str] = field(default_factory=dict)
    sections: dict[str, dict[str, str]] = field(default_factory=dict)  # of further tables of activities
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def url(self) -> str:
        return self.server.url(self.name)

    @property
    def environment(self) -> dict[str, str]:
        given = {"observation_window": "0"} | self.profile.settings | self.overrides
        return {f"LEADPROTECT_{key.upper()}": value for key, value in given.items()} | {"DATABASE_URL": self.url}

    @property
    def settings(self) -> Settings:
        given = {"observation_window": "0", "database_url": self.url} | self.profile.settings | self.overrides
        return parsed(json.dumps([given, self.sections]))

    # --- connections

    def login_url(self, login: str) -> str:
        return self.server.url(self.name, self.profile.login(login))

    def connect(self, login: str | None = None, *, autocommit: bool = False) -> psycopg.Connection[Any]:
        """Connect as one of LOGINS, or as the superuser."""
        url = self.login_url(login) if login else self.url
        return psycopg.connect(url, autocommit=autocommit)

    @contextmanager
    def engine(self, login: str | None = None) -> Iterator[Engine]:
        url = self.login_url(login) if login else self.url
        engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url), poolclass=pool.NullPool)
        yield engine
        engine.dispose()

    def text(self, statement: str) -> str:
        """Fill in {schema}, {leads} and their kin."""
        return render(statement, self.settings)

    def sql(self, statement: str, *params: Any) -> list[Any]:
        """Run one statement as the superuser; rows as tuples, or as values when there is one column."""
        shared = HARMLESS.match(statement) and threading.current_thread() is threading.main_thread()
        if shared:
            return self.query(sessions.session(self.url), statement, *params)
        with self.connect(autocommit=True) as conn:
            return self.query(conn, statement, *params)

    def query(self, conn: psycopg.Connection[Any], statement: str, *params: Any) -> list[Any]:
        """The same on a connection of the test."""
        cursor = conn.execute(self.text(statement), params or None)
        if cursor.description is None:
            return []
        found = cursor.fetchall()
        return [row[0] for row in found] if len(cursor.description) == 1 else found

    def context(self, conn: psycopg.Connection[Any], user: str | None, territory: str | None) -> None:
        """What a service does in plain SQL at the begin of a transaction."""
        self.query(conn, "SELECT {schema}.set_context(%s::text, %s::text)", user, territory)

    @contextmanager
    def acting(self, login: str, number: int, territory: str = "DE") -> Iterator[psycopg.Connection[Any]]:
        """A connection of one of LOGINS that acts as `user(number)`."""
        with self.connect(login) as conn, acting_as(conn, self.user(number), territory):
            yield conn

    # --- the host's data

    def user(self, number: int) -> str:
        kinds = {"uuid": str(uuid.UUID(int=number)), "text": f"seller {number}"}
        return kinds.get(self.settings.user_id_type, str(number))

    def new_id(self) -> Any:
        number = next(self._numbers)
        kinds = {"uuid": uuid.UUID(int=0xA0000000 << 64 | number), "text": f"lead {number:06}"}
        return kinds.get(self.settings.lead_id_type, number)

    def lead(self, territory: str | None = "DE", owner: str | None = None) -> Any:
        """Insert a lead; with `owner`, it is assigned by hand."""
        lead = self.new_id()
        self.sql("INSERT INTO {leads} ({lead_id}, {territory}) VALUES (%s, %s)", lead, territory)
        if owner:
            self.sql(
                "INSERT INTO {schema}.user_lead_assignments (lead_id, territory, user_id, source) "
                "VALUES (%s, %s, %s, 'assign')",
                *(lead, territory, owner),
            )
        return lead

    def activity(
        self, lead: Any, user: str | None, kind: str = "QUALIFIED_CALL", at: datetime | str | None = "2026-01-01"
    ) -> Any:
        return self.sql(
            "INSERT INTO {activities} ({activity_lead_id}, {activity_user_id}, {activity_kind}, {activity_at}) "
            "VALUES (%s, %s, %s, %s) RETURNING {activity_id}",
            *(lead, user, kind, at),
        )[0]

    def rule(self, user: str, protection: str, lead: Any = None, territory: str = "DE", **more: Any) -> None:
        columns = {"user_id": user, "territory": territory, "protection": protection, "lead_id": lead} | more
        names = ", ".join(columns)
        marks = ", ".join(["%s"] * len(columns))
        self.sql(f"INSERT INTO {{schema}}.lead_protection_rules ({names}) VALUES ({marks})", *columns.values())

    def owner(self, lead: Any, territory: str = "DE") -> str | None:
        """Who owns the lead, as the assignments have it."""
        found = self.sql(
            "SELECT user_id::text FROM {schema}.user_lead_assignments WHERE lead_id = %s AND territory = %s",
            *(lead, territory),
        )
        return found[0] if found else None

    def audit(self, columns: str = "action::text, outcome::text, reason") -> list[Any]:
        return self.sql(f"SELECT {columns} FROM {{schema}}.lead_access_audit ORDER BY id")

    # --- migrations

    def config(self, output: io.StringIO | None = None, /, **x: str) -> Config:
        """Alembic's config as the command line would make it; the settings come from the environment."""
        arguments = Namespace(x=[f"{key}={value}" for key, value in x.items()])
        config = Config(str(ROOT / "alembic.ini"), output_buffer=output, cmd_opts=arguments)
        config.attributes["configure_logger"] = False
        for name, section in self.sections.items():
            for key, value in section.items():
                config.set_section_option(f"leadprotect.activities.{name}", key, value.replace("%", "%%"))
        return config

    def upgrade(self, revision: str = "head", **x: str) -> None:
        command.upgrade(self.config(**x), revision)

    def downgrade(self, revision: str = "base", **x: str) -> None:
        command.downgrade(self.config(**x), revision)

    def render(self, revision: str = "head") -> str:
        """The script of `alembic upgrade --sql`."""
        return self.script("upgrade", revision)

    def script(self, direction: str, revision: str, **x: str) -> str:
        """The script of `alembic upgrade --sql` or `alembic downgrade --sql`."""
        output = io.StringIO()
        getattr(command, direction)(self.config(output, **x), revision, sql=True)
        return output.getvalue()

    def revision(self) -> str | None:
        """The revision that is applied."""
        s = self.settings
        with self.connect() as conn:
            table = f'"{s.version_table_schema}"."{s.version_table}"'
            if conn.execute("SELECT to_regclass(%s)", (table,)).fetchone() == (None,):
                return None
            row = conn.execute(f"SELECT version_num FROM {table}").fetchone()
            return row[0] if row else None

    # --- set-up

    def create_host_tables(self) -> None:
        self.sql_script(HOST_TABLES)

    def sql_script(self, script: str) -> None:
        with self.connect(autocommit=True) as conn:
            conn.execute(self.text(script))

    def create_logins(self) -> None:
        """Logins are cluster-wide, their grants on the host's tables are this database's."""
        for login, offices in LOGINS.items():
            name = self.profile.login(login)
            if not self.sql("SELECT FROM pg_roles WHERE rolname = %s", name):
                self.sql(f'CREATE ROLE "{name}" LOGIN')
            for office in offices:
                self.sql(f'GRANT "{self.settings.role(office)}" TO "{name}"')
        users = ", ".join(f'"{self.profile.login(login)}"' for login in HOST_USERS)
        self.sql_script(
            "GRANT USAGE ON SCHEMA crm TO " + users + ";"
            "GRANT SELECT, INSERT, UPDATE, DELETE ON {leads}, {activities} TO " + users + ";"
            "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public, crm TO " + users
        )
