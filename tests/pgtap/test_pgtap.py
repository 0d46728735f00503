"""The same promises in plain SQL, for a DBA to read and to run: each file of this folder, by pgTAP."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.database import Database
from tests.support.profiles import EXTRA, PROFILES
from tests.support.programs import lacking
from tests.support.servers import installed

FOLDER = Path(__file__).parent
RESULT = re.compile(r"(ok|not ok) \d+ - (.*)")

# the package comes for installed servers; the embedded one has no extensions
INSTALLED = {p.name for p in [*PROFILES, *EXTRA] if p.major in installed() and not p.settings}
pytestmark = pytest.mark.profiles(*sorted(INSTALLED))


def results(database: Database, file: str) -> list[tuple[str, bool, str]]:
    """What psql says: description, whether it holds, and the lines that explain a failure."""
    if not database.sql("SELECT FROM pg_available_extensions WHERE name = 'pgtap'"):
        lacking("pgTAP", f"postgresql-{database.profile.major}-pgtap")
    psql = [str(database.server.programs / "psql"), "-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1"]
    done = subprocess.run([*psql, "-f", str(FOLDER / file), database.url], text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    found: list[tuple[str, bool, str]] = []
    for line in done.stdout.splitlines():
        if match := RESULT.match(line):
            found.append((match[2], match[1] == "ok", ""))
        elif line.startswith("#") and found:
            description, holds, why = found.pop()
            found.append((description, holds, f"{why}{line}\n"))
    assert f"1..{len(found)}" in done.stdout.splitlines()
    return found


def test_there_is_a_server_for_pgtap() -> None:
    if not installed():
        lacking("pgTAP", "postgresql postgresql-pgtap")


@pytest.mark.parametrize("file", sorted(path.name for path in FOLDER.glob("*.sql")))
def test_every_line_of_a_file_holds(database: Database, file: str, subtests: pytest.Subtests) -> None:
    for description, holds, why in results(database, file):
        with subtests.test(description):
            assert holds, why
    assert database.sql("SELECT FROM pg_extension WHERE extname = 'pgtap'") == []


def test_control_a_broken_schema_fails(database: Database) -> None:
    database.sql("ALTER TABLE {schema}.user_lead_assignments NO FORCE ROW LEVEL SECURITY")
    database.sql("GRANT INSERT ON {schema}.lead_access_audit TO {app}")
    assert 2 == sum(not holds for _, holds, _ in results(database, "policies.sql"))
