"""A pytest plugin for services: a protected database for each test, somebody who acts in it, and what must be denied.

Switched on by ``pytest_plugins = ["leadprotect.testing"]`` in a conftest.py; the settings are those of the alembic.ini
from which pytest is started. Needs the extra testing.
"""

from __future__ import annotations

import itertools
from argparse import Namespace
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode
from uuid import uuid4

import psycopg
import pytest
from alembic import command
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import create_engine, exc
from sqlalchemy.pool import NullPool

from leadprotect.access import ways
from leadprotect.access.context import acting_as
from leadprotect.access.ownership import assign, share
from leadprotect.access.protections import suspend
from leadprotect.errors import LeadAccessDenied
from leadprotect.lab import servers
from leadprotect.migration.rollback import alembic_config
from leadprotect.settings import current, ident, render
from leadprotect.settings.names import territory_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection

SERVICE, MANAGER = "leadprotect_test_service", "leadprotect_test_manager"
"""Logins: one of a service for every territory, one that is a manager, too."""

DENIED = "LP403"
_TEMPLATE = "leadprotect_test_template"

HOST_TABLES = """
CREATE TABLE {leads} (
  {lead_id} {lead_id_type} PRIMARY KEY,
  {territory} text,
  company text NOT NULL DEFAULT 'Muster GmbH'
);
CREATE TABLE {activities} (
  {activity_id} bigserial PRIMARY KEY,
  {activity_lead_id} {lead_id_type} NOT NULL REFERENCES {leads} ON DELETE CASCADE,
  {activity_user_id} {user_id_type},
  {activity_kind} text NOT NULL,
  {activity_at} timestamptz NOT NULL DEFAULT now()
);
"""


@dataclass(frozen=True)
class Protected:
    """A database at head. `admin_url` is a superuser's, the others are those of a service and of a manager.

    URLs are libpq's; for SQLAlchemy, `sqlalchemy_url` names its driver.
    """

    admin_url: str
    url: str
    manager_url: str
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1), repr=False)

    @property
    def sqlalchemy_url(self) -> str:
        """The service's, for `sqlalchemy.create_engine` and its async twin."""
        return self.url.replace("postgresql://", "postgresql+psycopg://", 1)

    @contextmanager
    def acting_as(self, user_id: Any, territory: str = "DE", *, manager: bool = False) -> Iterator[Connection]:
        """A transaction of the service (or of a manager) in which the user acts; committed if the block ends well."""
        url = self.manager_url if manager else self.url
        engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url), poolclass=NullPool)
        with engine.begin() as conn, acting_as(conn, user_id, territory):
            yield conn

    # --- factories

    def user(self) -> str:
        """A user whom nobody has met, in the type of the setting user_id_type."""
        number = next(self._numbers)
        return {"uuid": str(uuid4()), "text": f"user {number}"}.get(current().user_id_type, str(number))

    def lead(self, territory: str | None = "DE", owner: Any = None, **columns: Any) -> Any:
        """A lead of the host, with these columns; with `owner`, a manager has assigned it to him. Returns its id."""
        s = current()
        number = next(self._numbers)
        ids: dict[str, Any] = {"uuid": uuid4(), "text": f"lead {number}"}
        values = {s.lead_id_column: ids.get(s.lead_id_type, number), territory_columns(s)[0]: territory} | columns
        names, marks = ", ".join(map(ident, values)), ", ".join(["%s"] * len(values))
        statement = render(f"INSERT INTO {{leads}} ({names}) VALUES ({marks}) RETURNING {{lead_id}}", s)
        with psycopg.connect(self.admin_url) as conn:
            ((lead_id,),) = conn.execute(statement, list(values.values())).fetchall()
        if owner is not None:
            self.assign(lead_id, owner, str(territory))
        return lead_id

    def assign(self, lead_id: Any, user_id: Any, territory: str = "DE") -> None:
        """A manager gives the lead to the user."""
        with self.acting_as(self.user(), territory, manager=True) as conn:
            assign(conn, lead_id, user_id)

    def share(self, lead_id: Any, user_id: Any, territory: str = "DE") -> None:
        """A manager lets the user edit the lead, too."""
        with self.acting_as(self.user(), territory, manager=True) as conn:
            share(conn, lead_id, user_id)

    def suspend(self, user_id: Any, territory: str = "DE") -> None:
        """A manager suspends the user."""
        with self.acting_as(self.user(), territory, manager=True) as conn:
            suspend(conn, user_id)

    # --- what must be

    @contextmanager
    def assert_denied(self, reason: str | None = None) -> Iterator[None]:
        """Fail unless the block ends with a denial, for this reason where one is named; from Python or SQL."""
        try:
            yield
        except LeadAccessDenied as denied:
            found: str | None = denied.decision.reason
        except (psycopg.Error, exc.DBAPIError) as error:
            origin = error.orig if isinstance(error, exc.DBAPIError) else error
            if not isinstance(origin, psycopg.Error) or origin.sqlstate != DENIED:
                raise
            found = origin.diag.message_detail
        else:
            raise AssertionError(
                "nothing was denied; an UPDATE that a policy hides changes 0 rows, so assert before it"
            )
        if reason not in (None, found):
            raise AssertionError(f"it was denied for another reason: {found}, not {reason}")

    def assert_audited(
        self,
        lead_id: Any,
        action: str = "EDIT",
        outcome: str = "ALLOW",
        *,
        reason: str | None = None,
        user_id: Any = None,
    ) -> None:
        """Fail unless the audit has such a row about the lead; the message shows what it has."""
        statement = (
            "SELECT action::text, outcome::text, reason, user_id::text FROM {schema}.lead_access_audit "
            "WHERE lead_id::text = %s ORDER BY id"
        )
        with psycopg.connect(self.admin_url) as conn:
            found = conn.execute(render(statement, current()), (str(lead_id),)).fetchall()
        wanted = (action, outcome, reason, None if user_id is None else str(user_id))
        for row in found:
            if all(want in (None, has) for want, has in zip(wanted, row, strict=True)):
                return
        shown = "\n".join("  " + " ".join(map(str, row)) for row in found) or "  nothing"
        asked = " ".join(str(part) for part in wanted if part is not None)
        raise AssertionError(f"no record of {asked} about lead {lead_id}; the audit has:\n{shown}")


@pytest.fixture(scope="session")
def protected_server() -> Iterator[str]:
    """URL of a superuser's on the server: an embedded one, as long as the session lasts. Override it to name yours."""
    with servers.embedded(servers.FAST) as server:
        yield server.url()


@pytest.fixture(scope="session")
def protected_host() -> Callable[[str], None]:
    """A function that makes the host's tables in the database of an URL: the smallest. Override it to run yours."""

    def make(url: str) -> None:
        with psycopg.connect(url, autocommit=True) as conn:
            for schema in {name.split(".")[0] for name in (current().leads_table, current().activities_table)}:
                conn.execute(f"CREATE SCHEMA IF NOT EXISTS {ident(schema)}")
            conn.execute(render(HOST_TABLES, current()))

    return make


@pytest.fixture(scope="session")
def protected_template(protected_server: str, protected_host: Callable[[str], None]) -> Iterator[str]:
    """Name of a database at head, that each test's is a copy of."""
    name = f"{_TEMPLATE}_{uuid4().hex}"
    with _database(protected_server, name) as url, pytest.MonkeyPatch.context() as patch:
        _use(patch, url)
        patch.setenv("LEADPROTECT_OBSERVATION_WINDOW", "0")
        protected_host(url)
        _upgrade()
        with psycopg.connect(url, autocommit=True) as conn:
            _make_logins(conn)
        current.cache_clear()
        yield name


@pytest.fixture
def protected(protected_server: str, protected_template: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Protected]:
    """A database at head of its own. DATABASE_URL names it, with the login of a service."""
    name = f"leadprotect_test_{uuid4().hex}"
    with _database(protected_server, name, protected_template) as url:
        made = Protected(url, _url(url, user=SERVICE), _url(url, user=MANAGER))
        _use(monkeypatch, made.url)
        yield made
        ways.close()
    current.cache_clear()


@contextmanager
def _database(server: str, name: str, template: str = "template1") -> Iterator[str]:
    """A database as long as the block lasts; its URL."""
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {ident(name)} TEMPLATE {ident(template)}")
    try:
        yield _url(server, dbname=name)
    finally:
        with psycopg.connect(server, autocommit=True) as conn:
            conn.execute(f"DROP DATABASE {ident(name)} WITH (FORCE)")


def _url(url: str, **changed: str) -> str:
    """The same way to the server, as an URL, for another database or login."""
    given = conninfo_to_dict(make_conninfo(url, **changed))
    return "postgresql:///?" + urlencode({key: str(value) for key, value in given.items()}, quote_via=quote)


def _use(patch: pytest.MonkeyPatch, url: str) -> None:
    patch.setenv("DATABASE_URL", url)
    current.cache_clear()


def _upgrade() -> None:
    config = alembic_config()
    config.cmd_opts = Namespace(x=["contract=require"])
    command.upgrade(config, "heads")


def _make_logins(conn: psycopg.Connection[Any]) -> None:
    s = current()
    roles = ", ".join(map(ident, (s.role("app"), *map(s.territory_role, s.territories))))
    schemas = ", ".join({ident(name.split(".")[0]) for name in (s.leads_table, s.activities_table)})
    for login in (SERVICE, MANAGER):
        if not conn.execute("SELECT FROM pg_catalog.pg_roles WHERE rolname = %s", (login,)).fetchall():
            conn.execute(f"CREATE ROLE {login} LOGIN")
        conn.execute(f"GRANT {roles} TO {login}")
        conn.execute(f"GRANT USAGE ON SCHEMA {schemas} TO {login}")
        conn.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schemas} TO {login}")
        conn.execute(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schemas} TO {login}")
    conn.execute(f"GRANT {ident(s.role('manager'))} TO {MANAGER}")
