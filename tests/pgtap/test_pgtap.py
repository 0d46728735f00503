"""The same promises in plain SQL, for a DBA to read and to run: leadprotect/pgtap, by whatever runs pgTAP."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import leadprotect
from leadprotect.migration.territories import add_territory
from tests.support.database import Database
from tests.support.profiles import EXTRA, PROFILES
from tests.support.programs import lacking
from tests.support.servers import installed

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER = Path(leadprotect.__file__).parent / "pgtap"
FILES = sorted(FOLDER.glob("test_*.sql"))
RESULT = re.compile(r"(ok|not ok) \d+ - (.*)")
FAILED = 3
"""What psql exits with under ON_ERROR_STOP."""

# the package comes for installed servers; the embedded one has no extensions
INSTALLED = {p.name for p in [*PROFILES, *EXTRA] if p.major in installed()}
PLAIN = {p.name for p in [*PROFILES, *EXTRA] if p.major in installed() and not p.settings}
pytestmark = pytest.mark.profiles(*sorted(PLAIN))


def psql(database: Database, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run psql on the database, with its settings as variables."""
    if not database.sql("SELECT FROM pg_available_extensions WHERE name = 'pgtap'"):
        lacking("pgTAP", f"postgresql-{database.profile.major}-pgtap")
    command = [str(database.server.programs / "psql"), "-X", *variables(database), *arguments, database.url]
    return subprocess.run(command, text=True, capture_output=True, check=False)


def variables(database: Database) -> list[str]:
    return [f"-v{name}={value}" for name, value in database.profile.settings.items()]


def results(output: str) -> list[tuple[str, bool, str]]:
    """Description, whether it holds, and the lines that explain a failure."""
    found: list[tuple[str, bool, str]] = []
    for line in output.splitlines():
        if match := RESULT.match(line):
            found.append((match[2], match[1] == "ok", ""))
        elif line.startswith("#") and found:
            description, holds, why = found.pop()
            found.append((description, holds, f"{why}{line}\n"))
    return found


def failed(output: str) -> list[str]:
    return [description for description, holds, _ in results(output) if not holds]


def test_there_is_a_server_for_pgtap() -> None:
    if not installed():
        lacking("pgTAP", "postgresql postgresql-pgtap")


def test_every_assertion_holds_and_nothing_stays_behind(database: Database, subtests: pytest.Subtests) -> None:
    done = psql(database, "-f", str(FOLDER / "all.sql"))
    found = results(done.stdout)
    assert len(found) >= 150
    for description, holds, why in found:
        with subtests.test(description):
            assert holds, why
    assert (done.returncode, done.stderr) == (0, "")
    assert database.sql("SELECT FROM pg_extension WHERE extname = 'pgtap'") == []
    assert database.sql("SELECT count(*) FROM {leads}") == [0]


@pytest.mark.profiles(*sorted(INSTALLED - PLAIN))
def test_names_and_types_are_those_of_the_settings(database: Database) -> None:
    done = psql(database, "-f", str(FOLDER / "all.sql"))
    assert (failed(done.stdout), done.returncode, done.stderr) == ([], 0, "")


def test_it_is_right_after_a_territory_was_added(database: Database) -> None:
    with database.connect() as conn:
        add_territory(conn, "AT", name="Austria", currency="EUR")
    done = psql(database, "-f", str(FOLDER / "all.sql"))
    assert (failed(done.stdout), done.returncode) == ([], 0)
    assert "territory AT has its role" in done.stdout


CONTROLS = {
    "the owner is not forced": (
        "ALTER TABLE {schema}.user_lead_assignments NO FORCE ROW LEVEL SECURITY",
        "row security is enabled and forced everywhere but where Alembic keeps its revision",
    ),
    "a service writes the audit": (
        "GRANT INSERT ON {schema}.lead_access_audit TO {app}",
        "nobody but our owner may do more than read",
    ),
    "a guard is off": (
        "ALTER TABLE {leads} DISABLE TRIGGER {audit_edit}",
        "audit_edit guards the leads, in a session that replicates, too",
    ),
    "the border admits to whatever is declared": (
        "CREATE OR REPLACE FUNCTION {schema}.admitted_territory() RETURNS text LANGUAGE sql STABLE RETURN 'CH'",
        "and to no other, whatever is declared",
    ),
    "nothing is recorded": (
        "CREATE OR REPLACE FUNCTION {schema}.bounded(said text) RETURNS text LANGUAGE sql IMMUTABLE RETURN said",
        "a note has no control characters",
    ),
}


@pytest.mark.parametrize("what", CONTROLS)
def test_control_what_is_broken_fails_and_says_so_by_the_exit_code(database: Database, what: str) -> None:
    script, description = CONTROLS[what]
    database.sql_script(script)
    found = [psql(database, "-f", str(FOLDER / "all.sql")), *(alone(database, file) for file in FILES)]
    assert FAILED == found[0].returncode
    assert any(description in failed(done.stdout) for done in found[1:])


def alone(database: Database, file: Path) -> subprocess.CompletedProcess[str]:
    """One file by itself: its assertions speak, the exit code does not."""
    return psql(database, "-q", "-t", "-A", "-f", str(file))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_runs_alone(database: Database, file: Path) -> None:
    done = alone(database, file)
    assert (failed(done.stdout), done.returncode, done.stderr) == ([], 0, "")
    assert f"1..{len(results(done.stdout))}" in done.stdout.splitlines()


RUNNERS: dict[str, Callable[[Database], list[str]]] = {
    "pg_prove": lambda database: [
        *("pg_prove", "--psql-bin", str(database.server.programs / "psql")),
        *("--host", database.server.host, "--username", "postgres", "--dbname", database.name),
    ],
    "pytest-pgtap": lambda database: [
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-c", "/dev/null"),
        f"--rootdir={FOLDER}",
        f"--pgtap-uri={database.url}",
    ],
}


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.nightly_elsewhere("by day every assertion holds there")
def test_other_runners_pass_and_fail_with_it(database: Database, runner: str) -> None:
    if runner == "pg_prove" and not shutil.which("pg_prove"):
        lacking("pg_prove", "libtap-parser-sourcehandler-pgtap-perl")
    if not database.sql("SELECT FROM pg_available_extensions WHERE name = 'pgtap'"):
        lacking("pgTAP", f"postgresql-{database.profile.major}-pgtap")
    command = [*RUNNERS[runner](database), *map(str, FILES)]
    good = subprocess.run(command, text=True, capture_output=True, check=False, cwd=FOLDER)
    assert good.returncode == 0, good.stdout + good.stderr
    database.sql_script(CONTROLS["a guard is off"][0])
    bad = subprocess.run(command, text=True, capture_output=True, check=False, cwd=FOLDER)
    assert bad.returncode != 0, bad.stdout


def test_what_every_file_begins_with_is_the_same() -> None:
    """A file runs alone, so each brings the names of the settings along."""
    texts = [file.read_text() for file in FILES]
    begins = {text[text.index("BEGIN;") : text.index("'SELECT max(code)")] for text in texts}
    assert len(begins) == 1
