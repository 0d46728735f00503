"""The way down that each revision leaves: for a version that does not know it, and as a script for psql."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest
from alembic import command
from click.testing import CliRunner

from leadprotect import phases
from leadprotect.cli import main
from leadprotect.errors import RollbackError
from leadprotect.migration.rollback import SAFE, rollback
from leadprotect.settings import current
from tests.migrations.test_next_release import CONTRACT_AGAIN, EXPAND, config, folder
from tests.support.fingerprint import contents, difference, fingerprint
from tests.support.revisions import HEAD, MIGRATE_HEAD, NAMED, REVISIONS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.database import Database

__all__ = ["folder"]

UNDO = "{schema}.revision_undo"


@pytest.fixture
def newer(database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    """A database that a later release has upgraded, seen by this one."""
    with monkeypatch.context() as later:
        later.setattr(phases, "version_path", lambda: str(folder / "versions"))
        command.upgrade(config(database, folder), "head")
    monkeypatch.undo()
    for name, value in database.environment.items():
        monkeypatch.setenv(name, value)
    return database


def standing(database: Database) -> dict[str, str]:
    with database.connect(autocommit=True) as conn:
        return fingerprint(conn, database.settings)


def rows(database: Database) -> dict[str, list[str]]:
    with database.connect(autocommit=True) as conn:
        return contents(conn, database.settings)


def psql(database: Database, script: str) -> subprocess.CompletedProcess[str]:
    program = str(database.server.programs / "psql")
    return subprocess.run([program, "-X", database.url], input=script, capture_output=True, text=True, check=False)


def script_to(target: str) -> str:
    printed = CliRunner().invoke(main, ["rollback", "--sql", "--to", target], catch_exceptions=False)
    assert 0 == printed.exit_code, printed.output
    return printed.stdout


def test_every_revision_leaves_its_way_down_and_takes_it_along(
    host: Database, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "alembic.runtime.migration"):
        host.upgrade("head")
    assert 1 == caplog.text.count("Context impl")  # and nobody is told how a way down was rendered
    assert [*REVISIONS] == host.sql(f"SELECT revision FROM {UNDO} ORDER BY 1")
    assert [None, *REVISIONS[:-1]] == host.sql(f"SELECT down_revision FROM {UNDO} ORDER BY revision")
    host.downgrade(MIGRATE_HEAD)
    assert MIGRATE_HEAD == host.sql(f"SELECT max(revision) FROM {UNDO}")[0]


@pytest.mark.profiles("pg18")
def test_a_release_undoes_what_a_later_one_applied(newer: Database) -> None:
    newer.lead("DE", owner=newer.user(1))
    assert CONTRACT_AGAIN == newer.revision()
    ready = CliRunner().invoke(main, ["status", "--ready"])
    assert (0, "ready\n") == (ready.exit_code, ready.stdout)
    before = rows(newer)

    done = rollback()

    assert (CONTRACT_AGAIN, SAFE, ()) == (done.before, done.after, done.problems)
    assert SAFE == newer.revision()
    assert [CONTRACT_AGAIN, EXPAND] == [event.what.split()[1].strip(",") for event in done.timeline[1:3]]
    after = rows(newer)
    kept = {
        name: found for name, found in before.items() if not name.endswith("_row_security")
    }  # contract's own memory
    assert {} == difference(kept, after)
    newer.upgrade("head")  # forward again, with what this release knows
    assert HEAD == newer.revision()


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("target", [EXPAND, HEAD])
def test_a_release_goes_back_to_a_revision_between(newer: Database, target: str) -> None:
    done = rollback(target)
    assert (target, ()) == (done.after, done.problems)
    assert target == newer.revision()


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize(
    "attack",
    [
        "UPDATE {schema}.revision_undo SET statements = statements || 'CREATE TABLE public.pwned ()'::text",
        f"UPDATE {{schema}}.revision_undo SET down_revision = 'lp_0001_expand_territories' WHERE revision = '{EXPAND}'",
    ],
    ids=["statements", "down_revision"],
)
def test_a_way_down_that_somebody_changed_is_not_executed(newer: Database, attack: str) -> None:
    newer.sql(attack)
    before = standing(newer)
    with pytest.raises(RollbackError, match=r"somebody changed it\. Nothing was undone"):
        rollback()
    refused = CliRunner().invoke(main, ["rollback", "--sql"])
    assert (1, "") == (refused.exit_code, refused.stdout)
    assert (CONTRACT_AGAIN, before) == (newer.revision(), standing(newer))


@pytest.mark.profiles("pg18")
def test_control_what_would_stand_there_is_executed_where_its_hash_is_right(newer: Database) -> None:
    """Whoever can write the table runs what he likes: so nobody but our owner can, and doctor looks."""
    from leadprotect.migration.undo import Undo, keeping  # noqa: PLC0415 - the attacker's

    planted = Undo(CONTRACT_AGAIN, EXPAND, ("CREATE TABLE public.pwned ()",), {})
    newer.sql_script(keeping(planted, newer.settings))
    rollback(EXPAND)
    assert [True] == newer.sql("SELECT to_regclass('public.pwned') IS NOT NULL")


def test_nobody_but_operators_reads_it_and_nobody_writes_it(database: Database) -> None:
    query = """
        SELECT r.rolname || ' ' || p.privilege FROM pg_roles AS r, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE',
          'TRUNCATE', 'TRIGGER']) AS p (privilege)
        WHERE starts_with(r.rolname, %s) AND has_table_privilege(r.oid, %s, p.privilege)
        """
    prefix = database.settings.role("")
    found = database.sql(query, prefix, database.text("{schema}.revision_undo"))
    owners = {
        f"{database.settings.role('owner')} {one}" for one in ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE")
    }
    owners.add(f"{database.settings.role('owner')} TRIGGER")
    assert {*owners, f"{database.settings.role('operator')} SELECT"} == set(found)


# --- psql


@pytest.mark.profiles("pg18", "other_names")
def test_the_script_does_what_alembic_does(
    make_database: Callable[..., Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_alembic, by_psql = make_database("head"), make_database("head")
    for target in (MIGRATE_HEAD, "base"):
        monkeypatch.setenv("DATABASE_URL", by_alembic.url)
        by_alembic.downgrade(target)
        monkeypatch.setenv("DATABASE_URL", by_psql.url)
        current.cache_clear()
        ran = psql(by_psql, script_to(target))
        assert 0 == ran.returncode, ran.stderr
        assert {} == difference(standing(by_alembic), standing(by_psql))
        assert by_alembic.revision() == by_psql.revision()
    by_psql.upgrade("head")
    assert HEAD == by_psql.revision()


@pytest.mark.profiles("pg18")
def test_the_script_stops_at_an_error_and_the_same_one_goes_on(database: Database) -> None:
    script = script_to(SAFE)
    stopped = psql(database, re.sub(r"(?=DROP TABLE \S+\.host_row_security)", "SELECT 1/0; ", script))
    assert 3 == stopped.returncode
    assert "division by zero" in stopped.stderr
    between = database.revision()
    assert between not in (HEAD, SAFE)
    ran = psql(database, script)
    assert (0, SAFE) == (ran.returncode, database.revision()), ran.stderr
    again = psql(database, script)
    assert (0, "") == (again.returncode, again.stderr)


@pytest.mark.profiles("pg18")
def test_the_script_of_an_older_release_undoes_what_a_later_one_applied(newer: Database) -> None:
    ran = psql(newer, script_to(SAFE))
    assert (0, SAFE) == (ran.returncode, newer.revision()), ran.stderr


@pytest.mark.profiles("pg18")
def test_the_script_waits_for_a_lock_and_lets_the_others_work_meanwhile(database: Database) -> None:
    triggers = NAMED["contract_triggers"]
    target = REVISIONS[REVISIONS.index(triggers) - 1]
    script = script_to(target).replace("failed = 60", "failed = 2")
    with database.connect() as conn:
        database.query(conn, "LOCK TABLE {activities} IN ROW EXCLUSIVE MODE")
        stopped = psql(database, script)
        assert 3 == stopped.returncode
        assert "no lock on the tables of the host" in stopped.stderr
        assert triggers == database.revision()
    assert 0 == psql(database, script).returncode
    assert target == database.revision()
