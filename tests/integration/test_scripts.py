"""What `leadprotect scripts` writes runs as it stands, by pgbench and by psql, on the database of a user."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from leadprotect import settings
from leadprotect.cli import main
from tests.support.programs import lacking

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.database import Database

FAILED = 3
"""What psql exits with under ON_ERROR_STOP."""


@pytest.fixture
def owned(database: Database) -> Database:
    """Leads of two sellers in DE, and one in CH."""
    for number in (1, 2, 1):
        database.lead("DE", owner=database.user(number))
    database.lead("CH", owner=database.user(3))
    return database


def scripts(folder: Path, *arguments: str) -> tuple[int, str]:
    ran = CliRunner().invoke(main, ["scripts", str(folder), *arguments])
    return ran.exit_code, ran.output


def program(database: Database, name: str, *arguments: str, login: str = "") -> subprocess.CompletedProcess[str]:
    url = database.login_url(login) if login else database.url
    command = [str(database.server.programs / name), *arguments, url]
    return subprocess.run(command, text=True, capture_output=True, check=False)


@pytest.mark.parametrize("login", ["", "seller_de"])
def test_both_run_as_they_stand(owned: Database, tmp_path: Path, login: str) -> None:
    code, said = scripts(tmp_path)
    assert (0, True) == (code, said.startswith("3 leads of DE, each with its owner.")), said
    checks = program(owned, "pgbench", "-n", "-f", f"{tmp_path}/lead_check.sql", "-c", "2", "-t", "5", login=login)
    assert 0 == checks.returncode, checks.stderr
    assert "number of failed transactions: 0 (0.000%)" in checks.stdout
    tests = program(owned, "psql", "-X", "-f", f"{tmp_path}/lead_protection_tests.sql", login=login)
    assert (0, "") == (tests.returncode, tests.stderr), tests.stdout
    assert 13 == len(re.findall(r"^ok \d+ - ", tests.stdout, re.MULTILINE)), tests.stdout
    assert [] == owned.audit()


@pytest.mark.profiles("pg18")
def test_a_login_of_the_territory_can_write_them(
    owned: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", owned.login_url("seller_ch"))
    settings.current.cache_clear()
    code, said = scripts(tmp_path, "--json")
    assert 0 == code, said
    assert ("CH", 1) == (json.loads(said)["territory"], json.loads(said)["leads"])


@pytest.mark.profiles("pg18")
def test_a_login_of_no_territory_is_told_the_grant_and_of_no_backfill(
    owned: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = owned.profile.login("auditor")
    owned.sql(f'GRANT SELECT ON {{leads}} TO "{login}"')
    monkeypatch.setenv("DATABASE_URL", owned.login_url("auditor"))
    settings.current.cache_clear()
    code, said = scripts(tmp_path)
    named = f'TO "{login}"'
    assert (1, True, False) == (code, "a DBA can run: GRANT" in said and named in said, "backfill" in said), said


BROKEN = {
    "whoever asks may edit": (
        "CREATE OR REPLACE FUNCTION {schema}.can_edit_lead(lead uuid) RETURNS boolean LANGUAGE sql RETURN true",
        "without a context nobody may edit",
    ),
    "row security is off": ("ALTER TABLE {leads} DISABLE ROW LEVEL SECURITY", "row security is on for the leads"),
    "an owner has changed": ("UPDATE {schema}.user_lead_assignments SET user_id = '{other}'", "its owner's to edit"),
}


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("what", BROKEN)
def test_control_what_is_broken_fails_and_says_so_by_the_exit_code(owned: Database, tmp_path: Path, what: str) -> None:
    statement, said = BROKEN[what]
    assert 0 == scripts(tmp_path)[0]
    owned.sql(statement.replace("{other}", owned.user(9)))
    done = program(owned, "psql", "-X", "-f", f"{tmp_path}/lead_protection_tests.sql")
    assert FAILED == done.returncode, done.stdout
    assert re.search(rf"^not ok \d+ - .*{said}", done.stdout, re.MULTILINE), done.stdout
    assert "assertions do not hold" in done.stderr


@pytest.mark.profiles("pg15")
def test_on_a_copy_the_whole_suite_runs_from_the_same_file(owned: Database, tmp_path: Path) -> None:
    if not owned.sql("SELECT FROM pg_available_extensions WHERE name = 'pgtap'"):
        lacking("pgTAP", "postgresql-15-pgtap")
    assert 0 == scripts(tmp_path)[0]
    done = program(owned, "psql", "-X", "-v", "suite=on", "-f", f"{tmp_path}/lead_protection_tests.sql")
    assert (0, "") == (done.returncode, done.stderr), done.stdout[-2000:]
    assert len(re.findall(r"^ok \d+ - ", done.stdout, re.MULTILINE)) > 150


@pytest.mark.profiles("pg18")
def test_nothing_is_written_over_and_nobody_s_leads_are_no_scripts(database: Database, tmp_path: Path) -> None:
    code, said = scripts(tmp_path)
    assert (1, True) == (code, "no lead of CH or DE has an owner that this login sees: leadprotect backfill" in said), (
        said
    )
    database.lead("DE", owner=database.user(1))
    assert 0 == scripts(tmp_path)[0]
    code, said = scripts(tmp_path)
    assert (1, True) == (code, "is there already: --force writes it anew" in said)
    assert 0 == scripts(tmp_path, "--force", "--territory", "DE")[0]
    code, said = scripts(tmp_path, "--force", "--territory", "AT")
    assert (1, True) == (code, "there is no 'AT'; known are CH, DE" in said)
