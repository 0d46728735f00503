"""Servers once per session, a template database per profile and phase, one clone per test."""

from __future__ import annotations

import gc
import itertools
import os
import re
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from leadprotect import metrics, settings
from leadprotect.access import binding, context, places, routing, ways
from leadprotect.database import bound, statements, transactions, waiting
from leadprotect.doctor import likeness, shipped
from leadprotect.settings.load import _warn_once  # a process has one environment
from tests.hosts import ON_THE_OLDEST
from tests.support import children, durations, servers, sessions
from tests.support.database import Database
from tests.support.profiles import EXTRA, NIGHTLY, OLDEST, PROFILES, Profile
from tests.support.revisions import MIGRATE_HEAD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

NUMBERS = itertools.count(1)
STEPPING = {"owners_from": "column, activities", "owner_column": "seller"}
CHILDREN = {"lead_tables": children.LEAD_TABLES}
SET = {"stepping": STEPPING, "children": CHILDREN, "protected": CHILDREN}
"""Phase -> the settings that its databases have, beside those of the profile."""
MADE_OF = {"children": "expanded", "protected": "children", "left": "head"}
"""Phase -> the phase whose template becomes the one of it."""
QUICK = {None, PROFILES[0].name, "screens"}
"""Where --quick runs a test: the embedded server, or none."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="of each test its first case, on 18, and none that is slow")
    parser.addoption("--record", action="store_true", help="write tests/support/durations.json anew, from this run")


def pytest_configure(config: pytest.Config) -> None:
    """A shell starts what runs in the background with Ctrl-C ignored; programs of the tests would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.disable()  # until everything is collected: nothing of it is garbage
    for name in [name for name in os.environ if is_ours(name)]:
        del os.environ[name]
    if config.option.record and not hasattr(config, "workerinput"):  # of several processes the one that hears all
        config.pluginmanager.register(durations.Recorder())


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What was collected stays until the end: the collector need not look through it again and again."""
    gc.freeze()
    gc.enable()


def pytest_report_header() -> str:
    return "by night: everything" if NIGHTLY else "by day: what waits for `make nightly` is said in CONTRIBUTING.md"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The slow ones first, so that none begins when the other workers are through; with --quick, none of them.

    Quick is what says at once whether anything is broken at all: of each test its first case.
    """
    left_out = set() if NIGHTLY else by_night(items)
    if config.option.quick:
        left_out |= {item for item in items if durations.duration_of(item) or profile_of(item) not in QUICK}
        left_out |= later_cases([item for item in items if item not in left_out])
    if left_out:
        config.hook.pytest_deselected(items=[*left_out])
        items[:] = [item for item in items if item not in left_out]
    items.sort(key=durations.duration_of, reverse=True)
    keep_groups(config, items)


def later_cases(items: list[pytest.Item]) -> set[pytest.Item]:
    """Every case of a test but its first, on each profile."""
    firsts = {case_of(item): item for item in reversed(items)}
    return {item for item in items if firsts[case_of(item)] is not item}


def case_of(item: pytest.Item) -> tuple[str, str | None]:
    """The test without its case, and the profile that it runs on."""
    return item.nodeid.partition("[")[0], profile_of(item)


def profile_of(item: pytest.Item) -> str | None:
    """The name of the profile that a test runs on; None when it needs no database."""
    profile = params_of(item).get("profile")
    return profile.name if isinstance(profile, Profile) else None


def by_night(items: list[pytest.Item]) -> set[pytest.Item]:
    """Which of them are tried at night only.

    By day each case is on 18, and elsewhere each test with its first case: a case asks something else, and hardly ever
    something else of a server or of a name. Two shapes of a host are on the oldest server, too.
    """
    waiting = {item for item in items if waits(item)}
    elsewhere = [item for item in items if item not in waiting and profile_of(item) not in QUICK]
    return waiting | later_cases(
        [item for item in elsewhere if "shape" not in params_of(item) and not item.get_closest_marker("everywhere")]
    )


def waits(item: pytest.Item) -> bool:
    """Whether a marker says so, or it is a shape of a host that by day is on 18 alone.

    Of cases that are `crossed`, by day each value of each parameter is on 18.
    """
    elsewhere = profile_of(item) not in QUICK
    if item.get_closest_marker("nightly") or (elsewhere and item.get_closest_marker("nightly_elsewhere")):
        return True
    profiles = item.get_closest_marker("profiles")
    if profiles and PROFILES[-1].name in profiles.args and profile_of(item) in {oldest.name for oldest in OLDEST}:
        return True  # as where a test names no profiles: the oldest server is tried with the other names
    if item.get_closest_marker("crossed"):
        markers = item.iter_markers("parametrize")
        others = [marker for marker in markers if not is_first(params_of(item), *marker.args)]
        return len(others) > (0 if elsewhere else 1)
    shape = params_of(item).get("shape")
    return shape is not None and elsewhere and shape not in ON_THE_OLDEST


def params_of(item: pytest.Item) -> dict[str, object]:
    """What a test was given by name; nothing where it has no case."""
    callspec = getattr(item, "callspec", None)
    return callspec.params if callspec else {}


def is_first(given: dict[str, object], names: str | tuple[str, ...], cases: Iterable[object]) -> bool:
    """Whether a test was given the first case of a parameter."""
    found = given[names] if isinstance(names, str) else tuple(given[name] for name in names)
    return found == next(iter(cases))


def is_ours(variable: str) -> bool:
    """Whether an environment variable is a setting, and so another answer in every test."""
    return variable == "DATABASE_URL" or variable.startswith("LEADPROTECT_")


@pytest.fixture(autouse=True)
def process() -> Iterator[None]:
    """Each test finds what a new process has: no settings, no connections, nothing owed, nothing counted."""
    yield
    for name in [name for name in os.environ if is_ours(name)]:
        del os.environ[name]
    settings.current.cache_clear()
    settings.render.cache_clear()
    settings.names.cache_clear()
    _warn_once.cache_clear()
    for said in (context._replacing, context._set, places.living):  # noqa: SLF001
        said.cache_clear()
    # a process has one setting
    for kept in (likeness._names, likeness._claims, likeness._expressions, shipped.shipped, shipped.shipped_script):  # noqa: SLF001
        kept.cache_clear()
    likeness._neutral_roles.cache_clear()  # noqa: SLF001
    likeness._of_any_database.cache_clear()  # noqa: SLF001
    waiting._spawner.cache_clear()  # noqa: SLF001 - a process has the extra or lacks it
    ways.close()
    routing.dispose_routes()
    statements.owed.clear()
    # each ends with its connection or engine, which a failed test may still hold
    held: list[Any] = [context._standing, context._lasting, binding._bound, bound._of]  # noqa: SLF001
    for known in (*held, transactions._listeners, transactions._refused):  # noqa: SLF001
        known.clear()
    metrics._active.clear()  # noqa: SLF001 - a process never switches it off


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of a database runs on every profile; `@pytest.mark.profiles("pg18")` names fewer or others."""
    if "profile" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("profiles")
        known = {profile.name: profile for profile in [*PROFILES, *EXTRA]}
        wanted = marker.args if marker else [profile.name for profile in PROFILES]
        # a server that is not installed here is none to run on, a name that nobody knows is a mistake
        chosen = [known[name] for name in wanted if name in known or not re.fullmatch(r"pg1[5-9]", name)]
        metafunc.parametrize("profile", chosen, ids=lambda profile: profile.name, scope="session")


def keep_groups(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of a group go to one worker: pytest-xdist 3.8 writes the group where pytest 9.2 no longer reads it."""
    for item in items if config.getoption("loadgroup", default=False) else []:
        if (group := item.get_closest_marker("xdist_group")) and "@" not in item.nodeid.rpartition("]")[2]:
            item._id = type(item._id).parse(f"{item.nodeid}@{group.args[0]}")  # noqa: SLF001 - as pytest-xdist does


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
        sessions.close_all()  # before their servers end


@pytest.fixture(scope="session")
def second() -> Iterator[Callable[[], servers.Server]]:
    """A function that returns another server, with roles of its own, started on first use."""
    with ExitStack() as stack:
        started: list[servers.Server] = []

        def server() -> servers.Server:
            if not started:
                started.append(stack.enter_context(servers.embedded()))
            return started[0]

        yield server
        sessions.close_all()


@pytest.fixture(scope="session")
def templates() -> dict[tuple[str, str], str]:
    """Names of the template databases made so far, by profile (and server, where it is another) and phase."""
    return {}


@pytest.fixture
def make_database(
    profile: Profile,
    running: Callable[[int], servers.Server],
    templates: dict[tuple[str, str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., Database]]:
    """A function that makes a database of a phase: empty, host, expanded (migrate head), head, left, or one of `SET`.

    Stepping is a head whose leads have a column for the owner; children are tables that hold data of leads, at the
    migrate step, or protected at head; left is the base after a downgrade. `on` is another server than the profile's.
    """
    usual = running(profile.major)
    before: dict[str, str] = {}
    with ExitStack() as stack:

        def template(server: servers.Server, phase: str) -> str:
            key = (f"{profile.name}{'' if server is usual else f' on {server.host}'}", phase)
            if key not in templates:
                base = template(server, MADE_OF[phase]) if phase in MADE_OF else None
                templates[key] = make_template(server, profile, phase, monkeypatch, base)
            return templates[key]

        def make(phase: str = "head", *, on: servers.Server | None = None, **overrides: str) -> Database:
            server = on or usual
            name = f"t{next(NUMBERS)}_{os.getpid()}"
            janitor = janitor_of(server, name, template(server, phase))
            janitor.init()
            stack.callback(janitor.drop)
            before.update(sessions.roles(usual) | before)  # with those that the template has just brought
            database = Database(server, profile, name, SET.get(phase, {}) | overrides)
            use(database, monkeypatch)
            return database

        yield make
        ways.close()  # before its database is dropped
        after = sessions.roles(usual)
        # roles are the server's: what stays changed about one is met by the tests that come next
        assert {} == {name: after[name] for name in before.keys() & after.keys() if before[name] != after[name]}


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
    for name in [name for name in os.environ if is_ours(name)]:
        monkeypatch.delenv(name)
    for name, value in database.environment.items():
        monkeypatch.setenv(name, value)
    settings.current.cache_clear()


def make_template(
    server: servers.Server, profile: Profile, phase: str, monkeypatch: pytest.MonkeyPatch, base: str | None = None
) -> str:
    name = f"template_{profile.name}_{phase}"
    janitor_of(server, name, base).init()
    database = Database(server, profile, name, {**SET.get(phase, {})})
    if phase == "children":
        children.add(database)
    if phase == "protected":
        with monkeypatch.context() as patch:
            use(database, patch)
            database.upgrade("head", contract="require")
    if phase == "left":
        with monkeypatch.context() as patch:
            use(database, patch)
            database.downgrade()
    if base:
        return name
    if phase != "empty":
        database.create_host_tables()
    if phase == "stepping":
        database.sql("ALTER TABLE {leads} ADD seller {user_id_type}")
    with monkeypatch.context() as patch:
        use(database, patch)
        if phase == "expanded":
            database.upgrade(MIGRATE_HEAD)
        elif phase in {"head", "stepping"}:
            database.upgrade("head")
    if phase in {"expanded", "head", "stepping"}:
        database.create_logins()
    return name


def janitor_of(server: servers.Server, name: str, template: str | None) -> sessions.Janitor:
    return sessions.Janitor(server, name, template)
