"""Whoever may create in a schema of the path plants what fits better than PostgreSQL's own; a DBA must never run it."""

from __future__ import annotations

import ast
import io
from dataclasses import replace
from datetime import UTC, date, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from alembic import command
from click.testing import CliRunner
from sqlalchemy import create_engine, pool
from sqlalchemy.exc import DBAPIError

import leadprotect
from leadprotect.audit import anchors, history, partitions, seals
from leadprotect.audit.export import export
from leadprotect.audit.verification import verify_audit
from leadprotect.cli import main
from leadprotect.database import opening
from leadprotect.settings import configured
from leadprotect.settings.databases import TerritoryDatabase
from tests.conftest import janitor_of
from tests.support.hijacking import PACKAGE, hijacked, honest, plant
from tests.support.revisions import MIGRATE_HEAD
from tests.support.tracing import in_a_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.database import Database
    from tests.support.profiles import Profile

PROFILES = pytest.mark.profiles("pg18", "pg15")
NAMES_TOO = pytest.mark.profiles("pg18", "pg15", "other_names")
AT_HOME = pytest.mark.xdist_group("planted host")
"""One worker plants in a host, and copies that."""
# file of the package -> why it connects without a pin
UNPINNED = {
    "authoring/locktrace.py": "a server of our own, on which nobody else is",
    "authoring/walk.py": "a server of our own, on which nobody else is",
    "lab/traffic.py": "plays the host's application, which finds what its login finds",
    "lab/servers.py": "a server of our own, on which nobody else is",
    "lab/demo/server.py": "a server of our own, on which nobody else is",
    "lab/bench/access.py": "a server of our own, on which nobody else is",
    "lab/bench/border.py": "a server of our own, on which nobody else is",
    "lab/bench/comparison.py": "a server of our own, on which nobody else is",
    "lab/bench/backfill.py": "a server of our own, on which nobody else is",
    "lab/bench/scale.py": "a server of our own, on which nobody else is",
    "lab/bench/service.py": "a server of our own, on which nobody else is",
    "access/routing.py": "the service's own engines: we name everything whole there, as a test below tries",
    "fleet/figures.py": "a server of our own, on which nobody else is",
    "testing.py": "a server of the tests' own, and on it a service as its tests have it",
}
PINS = {"open_connection", "pin", "pin_session"}
OPENS = {
    *("psycopg.connect", "psycopg.Connection.connect", "psycopg.AsyncConnection.connect", "Connection.connect"),
    *("create_engine", "sqlalchemy.create_engine", "create_async_engine", "ConnectionPool", "AsyncConnectionPool"),
    *("engine.connect", "engine.raw_connection", "engine.begin"),
}


def openings(source: str) -> Iterator[tuple[str, bool]]:
    """Each function that connects by itself, and whether what it opens is pinned."""
    module = ast.parse(source)
    methods = [method for part in module.body if isinstance(part, ast.ClassDef) for method in part.body]
    for node in [*module.body, *methods]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            called = {ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)}
            if called & OPENS:
                yield node.name, bool(called & PINS)


def test_every_place_that_connects_pins_what_it_opens() -> None:
    found = {
        f"{file.relative_to(PACKAGE)}: {name}": pinned
        for file in sorted(PACKAGE.rglob("*.py"))
        for name, pinned in openings(file.read_text(encoding="utf-8"))
        if str(file.relative_to(PACKAGE)) not in UNPINNED
    }
    pinned_by_its_caller = {"migration/connections.py: _checked_out", "access/ways.py: _connected"}
    assert {name for name, pinned in found.items() if not pinned} == pinned_by_its_caller
    assert "database/opening.py: open_connection" in found
    assert {str(PACKAGE / name) for name in UNPINNED} <= {str(file) for file in PACKAGE.rglob("*.py")}


@pytest.mark.parametrize(
    "source",
    [
        "def ask(url):\n    return psycopg.connect(url)",
        "def ask(url):\n    return create_engine(url)",
        "def ask(url):\n    with ConnectionPool(url) as pool:\n        pass",
        "def ask(engine):\n    return engine.raw_connection()",
    ],
)
def test_a_place_that_pins_nothing_would_be_found(source: str) -> None:
    assert list(openings(source)) == [("ask", False)]


def run(*arguments: str) -> str:
    """A command of ours in this process; what it says where it fails."""
    done = CliRunner().invoke(main, list(arguments))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.output if done.exit_code else ""


LIFE = (
    *("status", "status --json", "territory add AT --name Austria --currency EUR --vat 20", "backfill DE CH --dry-run"),
    *("backfill DE CH", "backfill DE --verify", "backfill status", "backfill pause DE", "backfill resume DE", "status"),
    *("audit partitions --ahead 4", "audit seal", "audit list", "audit list --outcome DENY", "audit verify"),
    *("audit detach --before 2020-01",),
)


@pytest.fixture
def planted_host(make_database: Callable[..., Database], templates: dict[tuple[str, str], str]) -> Database:
    """A host in which somebody planted everything before the first revision, made once and copied.

    The database's owner plants operators for every pair of types that PostgreSQL leaves to a cast.
    """
    database = make_database("host")
    key = (database.profile.name, "planted host")
    if key not in templates:
        template = replace(database, name=f"template_{database.profile.name}_planted_host")
        janitor_of(database.server, template.name, templates[database.profile.name, "host"]).init()
        plant(template)
        templates[key] = template.name
    return make_database(key[1])


@PROFILES
@AT_HOME
@pytest.mark.nightly_elsewhere("by day a service's calls meet the same plants there")
def test_no_command_of_a_dba_runs_what_somebody_planted(planted_host: Database, tmp_path: Any) -> None:
    host = planted_host
    lead = host.lead("DE")
    host.activity(lead, host.user(1))
    host.lead("CH")
    host.upgrade(MIGRATE_HEAD)
    said = {line: run(*line.split()) for line in LIFE}
    host.upgrade("head")
    said |= {line: run(*line.split()) for line in ("status", f"audit who {lead} --at 2026-02-01T00:00Z")}
    said["export"] = run("audit", "export", "--output", str(tmp_path / "audit.jsonl"))
    said["rollback"] = run("rollback", "--to", "base")
    said["purge"] = run("purge", "--yes")
    assert {} == {line: output for line, output in said.items() if "hijack" in output}
    assert not hijacked(host)


@PROFILES
@AT_HOME
@pytest.mark.nightly_elsewhere("by day a service's calls meet the same plants there")
def test_without_the_pin_the_same_command_runs_it(planted_host: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    expanded = planted_host
    expanded.upgrade(MIGRATE_HEAD)
    command = ("backfill", "DE", "CH", "--dry-run")
    assert run(*command) == ""
    assert not hijacked(expanded)
    monkeypatch.setitem(opening.PINNED, "search_path", '"$user", public')
    assert "SQLSTATE P0001" in run(*command)
    assert hijacked(expanded)


@PROFILES
@AT_HOME
@pytest.mark.nightly_elsewhere("by day a service's calls meet the same plants there")
def test_an_engine_of_the_host_is_pinned_as_well_and_goes_back_as_it_came(planted_host: Database) -> None:
    host = planted_host
    host.lead("DE")
    first = iter([partial(honest, host)])  # what it asks first of a server is its own affair

    def connected() -> psycopg.Connection[Any]:
        return next(first, partial(psycopg.connect, host.url))()

    engine = create_engine("postgresql+psycopg://", creator=connected, poolclass=pool.QueuePool, pool_size=5)
    engine.connect().close()
    engine.dispose()
    config = host.config()
    config.attributes["connection"] = engine
    command.upgrade(config, "head")
    assert not hijacked(host)
    with engine.connect() as conn:
        assert conn.exec_driver_sql("SHOW search_path").scalar() == '"$user", public'
    engine.dispose()


@PROFILES
def test_a_script_pins_what_it_runs_under(host: Database) -> None:
    script = host.render()
    before, _, _ = script.partition("CREATE SCHEMA")
    assert [name for name in opening.PINNED if f"SET {name} = " not in before] == []


# --- on a connection of the caller


PATHS = {"first": "public", "last": "public, pg_catalog"}
"""pg_catalog is asked first where the path does not name it; a path that names it last prefers what was planted."""


# one worker plants for a path, and copies that
each_path = pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.xdist_group(f"planted {name}")) for name, path in PATHS.items()],
    ids=PATHS,
)


def ask(database: Database, path: str, monkeypatch: pytest.MonkeyPatch, leads: dict[str, Any]) -> None:
    """What services call, with each kind of answer; raises where something planted is called."""
    one, two, options = database.user(1), database.user(2), f"-c search_path={path.replace(' ', '')}"
    for traced in (False, True):
        in_a_trace(monkeypatch, 7 * traced)
        with psycopg.connect(database.login_url("manager_de"), options=options) as conn:
            with leadprotect.acting_as(conn, two, "DE", "request"), leadprotect.acting_as(conn, one, "DE"):
                assert leadprotect.can_edit(conn, leads["mine"])
                assert leadprotect.can_edit_many(conn, [leads["mine"], leads["other"]])[leads["mine"]]
                assert leadprotect.editable_leads(conn).leads
                assert leadprotect.explain(conn, leads["other"], user_id=two).allowed
                assert leadprotect.assert_edit(conn, leads["mine"], note="call").allowed
                for denied in (leads["other"], leads["swiss"]):
                    with pytest.raises(leadprotect.LeadAccessDenied):
                        leadprotect.assert_edit(conn, denied)
                for change in (leadprotect.assign, leadprotect.transfer):
                    assert change(conn, leads["free"], two).allowed
                assert leadprotect.release(conn, leads["free"]).allowed
                assert leadprotect.claim(conn, leads["free"]).allowed
                assert leadprotect.share(
                    conn, leads["free"], two, effective_to=datetime(2999, 1, 1, tzinfo=UTC)
                ).allowed
                assert leadprotect.unshare(conn, leads["free"], two).allowed
                assert leadprotect.assert_edit_many(conn, [leads["mine"], leads["free"]], note="call")
                assert leadprotect.assign_many(conn, [leads["free"]], two)
                assert leadprotect.transfer_all(conn, two, one, note="call", limit=5)
                assert leadprotect.transfer(conn, leads["other"], two).allowed
                assert leadprotect.release(conn, leads["free"]).allowed
            assert leadprotect.territory(conn, "DE").currency == "EUR"


def leads_of(database: Database) -> dict[str, Any]:
    one, two = database.user(1), database.user(2)
    return {
        "mine": database.lead("DE", owner=one),
        "other": database.lead("DE", owner=two),
        "free": database.lead("DE"),
        "swiss": database.lead("CH", owner=one),
    }


@pytest.fixture(scope="session")
def standing() -> dict[tuple[str, str], dict[str, Any]]:
    """The leads of the planted databases that tests copy, by profile and path."""
    return {}


@pytest.fixture
def planted(
    path: str,
    profile: Profile,
    make_database: Callable[..., Database],
    templates: dict[tuple[str, str], str],
    standing: dict[tuple[str, str], dict[str, Any]],
) -> tuple[Database, dict[str, Any]]:
    """A database in which somebody planted everything after one edit was recorded, and its leads.

    Planting takes seconds, so it is done once for each path, and copied.
    """
    key = (profile.name, f"planted, {path}")
    if key not in templates:
        database = make_database()
        template = replace(
            database, name=f"template_{profile.name}_planted_{'last' if 'pg_catalog' in path else 'first'}"
        )
        janitor_of(database.server, template.name, templates[profile.name, "head"]).init()
        standing[key] = leads_of(template)
        with template.acting("seller_de", 1) as conn:
            leadprotect.assert_edit(conn, standing[key]["mine"])
        plant(template, shadow="pg_catalog" in path)
        templates[key] = template.name
    return make_database(key[1]), standing[key]


@NAMES_TOO
@each_path
def test_no_call_of_a_service_runs_what_somebody_planted(
    planted: tuple[Database, dict[str, Any]], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, leads = planted
    ask(database, path, monkeypatch, leads)
    assert not hijacked(database)


@PROFILES
@each_path
@pytest.mark.nightly_elsewhere("by day a service's calls meet the same plants there")
def test_an_engine_of_a_territory_runs_nothing_planted_though_its_path_is_the_login_s(
    planted: tuple[Database, dict[str, Any]], path: str
) -> None:
    """It is the service's own, on its hot path: what we say there names everything whole."""
    database, leads = planted
    one, two = database.user(1), database.user(2)
    has_path(database, "pg_catalog")
    url = database.login_url("manager_de")
    configured(replace(database.settings, databases=(TerritoryDatabase(url, ("DE",)),)))
    engine = leadprotect.route("DE")
    engine.connect().close()  # what SQLAlchemy asks a server first is its own affair
    engine.dispose()
    has_path(database, path)
    asked = [("DE", leads["mine"]), ("DE", leads["other"])]
    assert {asked[0]: True, asked[1]: False} == leadprotect.can_edit_many(leadprotect.route, asked, user_id=one)
    with engine.begin() as conn, leadprotect.acting_as(conn, one, "DE"):
        assert leadprotect.can_edit(conn, leads["mine"])
        assert leadprotect.assert_edit_many(conn, [leads["mine"]], note="call")
        assert leadprotect.assign_many(conn, [leads["free"]], two)
        with pytest.raises(leadprotect.LeadAccessDenied):
            leadprotect.assert_edit(conn, leads["other"])
    assert not hijacked(database)
    # control: a statement of the host that does not is run by whoever planted
    with engine.connect() as conn, pytest.raises(DBAPIError, match="hijacked as"):
        conn.exec_driver_sql("SELECT 1 FROM pg_catalog.pg_class WHERE oid = 'public'::pg_catalog.regnamespace")
    assert hijacked(database)


def has_path(database: Database, path: str) -> None:
    """Sessions of the service begin with this path."""
    login = database.profile.login("manager_de")
    with honest(database) as conn:
        conn.execute(f'ALTER ROLE "{login}" IN DATABASE "{database.name}" SET search_path = {path}'.encode())


@NAMES_TOO
@each_path
def test_no_question_of_an_auditor_runs_it_either(planted: tuple[Database, dict[str, Any]], path: str) -> None:
    database, lead, options = planted[0], planted[1]["mine"], f"-c search_path={path.replace(' ', '')}"
    with psycopg.connect(database.login_url("operator"), options=options, autocommit=True) as conn:
        assert seals.seal(conn)
        assert list(partitions.detach(conn, date(2020, 1, 1))) == []
        partitions.create_partitions(conn, ahead=5)
    with psycopg.connect(database.login_url("auditor_both"), options=options) as conn:
        assert history.who_could_edit(conn, lead, datetime.now(UTC)).rights
        assert history.attempts(conn, lead_id=lead, user_id=database.user(1), outcome="ALLOW").attempts
        assert verify_audit(conn).intact
        assert anchors.anchor(conn).chains
        for sealed in (True, False):
            assert export(conn, io.StringIO(), sealed=sealed, since=datetime(2020, 1, 1, tzinfo=UTC)).rows == 1
        assert conn.execute("SHOW search_path").fetchone() == (path.replace(" ", ""),)
    assert not hijacked(database)


@NAMES_TOO
@each_path
def test_an_operator_that_is_not_named_whole_would_be_the_planted_one(
    planted: tuple[Database, dict[str, Any]], path: str
) -> None:
    database = planted[0]
    query = "SELECT 1 FROM pg_catalog.pg_class WHERE oid = 'public'::pg_catalog.regnamespace"
    with psycopg.connect(database.url, options=f"-c search_path={path.replace(' ', '')}") as conn:
        with pytest.raises(psycopg.errors.RaiseException, match="hijacked as postgres"):
            conn.execute(query)
    with honest(database) as conn:
        conn.execute(query)
    assert hijacked(database)
