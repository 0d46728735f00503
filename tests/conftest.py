"""Servers once per session, a template database per profile and phase, one clone per test."""

from __future__ import annotations

import itertools
import os
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from pytest_postgresql.janitor import DatabaseJanitor

from leadprotect import settings
from leadprotect.access import denials
from tests.support import servers
from tests.support.database import MIGRATE_HEAD, Database
from tests.support.profiles import EXTRA, PROFILES, Profile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NUMBERS = itertools.count(1)


def pytest_configure() -> None:
    """A shell starts what runs in the background with Ctrl-C ignored; programs of the tests would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of a database runs on every profile; `@pytest.mark.profiles("pg18")` names fewer or others."""
    if "profile" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("profiles")
        known = {profile.name: profile for profile in [*PROFILES, *EXTRA]}
        chosen = [known[name] for name in marker.args] if marker else PROFILES
        metafunc.parametrize("profile", chosen, ids=lambda profile: profile.name, scope="session")


@pytest.fixture(scope="session")
def running() -> Iterator[Callable[[int], servers.Server]]:
    """A function that returns the server of a major version, started on first use."""
    with ExitStack() as stack:
        started: dict[int, servers.Server] = {}

        def server(major: int) -> servers.Server:
            if major not in started:
                start = servers.embedded() if major not in servers.installed() else servers.system(major)
                started[major] = stack.enter_context(start)
            return started[major]

        yield server


@pytest.fixture(scope="session")
def templates() -> dict[tuple[str, str], str]:
    """Names of the template databases made so far, by profile and phase."""
    return {}


@pytest.fixture
def make_database(
    profile: Profile,
    running: Callable[[int], servers.Server],
    templates: dict[tuple[str, str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., Database]]:
    """A function that makes a database of a phase: empty, host, expanded (migrate head) or head."""
    server = running(profile.major)
    with ExitStack() as stack:

        def make(phase: str = "head", **overrides: str) -> Database:
            if (profile.name, phase) not in templates:
                templates[profile.name, phase] = make_template(server, profile, phase, monkeypatch)
            name = f"t{next(NUMBERS)}_{os.getpid()}"
            janitor = janitor_of(server, name, templates[profile.name, phase])
            janitor.init()
            stack.callback(janitor.drop)
            database = Database(server, profile, name, overrides)
            use(database, monkeypatch)
            return database

        yield make
        denials.close()
        settings.current.cache_clear()


@pytest.fixture
def database(make_database: Callable[..., Database]) -> Database:
    """A database at head."""
    return make_database("head")


@pytest.fixture
def expanded(make_database: Callable[..., Database]) -> Database:
    """A database at the migrate step: everything but contract."""
    return make_database("expanded")


@pytest.fixture
def host(make_database: Callable[..., Database]) -> Database:
    """A database with the host's tables, before the first revision."""
    return make_database("host")


def use(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it the database of this process: library, command line and Alembic read the environment."""
    for name in [name for name in os.environ if name.startswith("LEADPROTECT_")]:
        monkeypatch.delenv(name)
    for name, value in database.environment.items():
        monkeypatch.setenv(name, value)
    settings.current.cache_clear()


def make_template(server: servers.Server, profile: Profile, phase: str, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"template_{profile.name}_{phase}"
    janitor_of(server, name, None).init()
    database = Database(server, profile, name)
    if phase != "empty":
        database.create_host_tables()
    with monkeypatch.context() as patch:
        use(database, patch)
        if phase == "expanded":
            database.upgrade(MIGRATE_HEAD)
        elif phase == "head":
            database.upgrade("head")
    if phase in {"expanded", "head"}:
        database.create_logins()
    return name


def janitor_of(server: servers.Server, name: str, template: str | None) -> DatabaseJanitor:
    return DatabaseJanitor(user="postgres", host=server.host, port=5432, dbname=name, template_dbname=template)
