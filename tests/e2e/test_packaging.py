from __future__ import annotations

import os
import subprocess
import threading
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from alembic.script import ScriptDirectory

import leadprotect
from leadprotect.settings import files
from tests.migrations.test_next_release import CONTRACT_AGAIN
from tests.support.database import ROOT
from tests.support.revisions import HEAD, MIGRATE_HEAD, NAMED
from tests.support.rules import SHIPPED

if TYPE_CHECKING:
    from tests.support.database import Database

# one worker makes what all of them look at
pytestmark = pytest.mark.xdist_group("packaging")

INI = """
[alembic]
script_location = leadprotect:migrations
path_separator = os
"""


def said_by(command: list[str | Path], folder: Path, **environment: str) -> str:
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=outside | environment, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout.strip()


def test_the_wheel_carries_what_a_host_needs_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    revisions = {f"leadprotect/migrations/versions/{path.name}" for path in Path(files.version_path()).glob("*.py")}
    assert revisions == {name for name in names if name.startswith("leadprotect/migrations/versions/")}
    assert {"leadprotect/migrations/env.py", "leadprotect/migrations/script.py.mako", "leadprotect/py.typed"} <= set(
        names
    )
    suite = {f"leadprotect/pgtap/{name}.sql" for name in ("all", "test_structure", "test_decisions", "test_audit")}
    assert suite == {name for name in names if name.startswith("leadprotect/pgtap/")}
    assert {"leadprotect", wheel.name.split("-py3")[0] + ".dist-info"} == {name.split("/")[0] for name in names}
    assert [] == [name for name in names if "__pycache__" in name]


def test_version_path_points_into_the_checkout() -> None:
    assert str(ROOT / "migrations" / "versions") == files.version_path()


def test_version_path_points_into_the_installed_package(python: Path, tmp_path: Path) -> None:
    told = said_by([python, "-c", "import leadprotect; print(leadprotect.version_path())"], tmp_path)
    assert told.endswith("site-packages/leadprotect/migrations/versions")
    assert Path(told).is_relative_to(python.parents[1].resolve())
    assert (Path(told) / f"{NAMED['expand_territories']}.py").is_file()


def test_the_installed_command_tells_its_version(python: Path, tmp_path: Path, wheel: Path) -> None:
    version = wheel.name.split("-")[1]
    assert f"leadprotect, version {version}" == said_by([python.with_name("leadprotect"), "--version"], tmp_path)


def test_the_installed_command_writes_the_rules_that_the_package_ships(python: Path, tmp_path: Path) -> None:
    told = said_by([python.with_name("leadprotect"), "gate", "render", "-o", "rules"], tmp_path)
    assert (tmp_path / "rules").is_dir()
    assert sorted(path.name for path in (tmp_path / "rules").iterdir()) == sorted(
        Path(line).name for line in told.splitlines()
    )
    shipped = (SHIPPED / "micrometer.yaml").read_text(encoding="utf-8")
    assert shipped == (tmp_path / "rules" / "leadprotect.yaml").read_text(encoding="utf-8")


@pytest.mark.profiles("pg18")
def test_alembic_upgrades_from_the_installed_package(python: Path, host: Database, tmp_path: Path) -> None:
    """A host application that has no checkout names the package in its own alembic.ini."""
    (tmp_path / "alembic.ini").write_text(INI, encoding="utf-8")
    said_by([python, "-m", "alembic", "upgrade", "head"], tmp_path, **host.environment)
    assert ScriptDirectory.from_config(host.config()).get_current_head() == host.revision()


@pytest.mark.profiles("pg18")
def test_a_host_lists_our_revisions_beside_its_own(python: Path, tmp_path: Path, host: Database) -> None:
    """`version_path()` in the host's own version_locations."""
    folder = said_by([python, "-c", "import leadprotect; print(leadprotect.version_path())"], tmp_path)
    ini = f"{INI}version_locations = {tmp_path}/own{os.pathsep}{folder}\n"
    (tmp_path / "alembic.ini").write_text(ini, encoding="utf-8")
    (tmp_path / "own").mkdir()
    head = ScriptDirectory.from_config(host.config()).get_current_head()
    assert f"{head} (leadprotect) (head)" == said_by([python, "-m", "alembic", "heads"], tmp_path, **host.environment)


class Traffic(threading.Thread):
    """A seller who edits his lead and another's, as services do, until it is ended; keeps every surprise."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self.database, self.user = database, database.user(1)
        self.own, self.foreign = database.lead("DE", owner=self.user), database.lead("DE", owner=database.user(2))
        self.ended = threading.Event()
        self.edits, self.denials = 0, 0
        self.surprises: list[str] = []

    def run(self) -> None:
        while not self.ended.wait(0.05):
            try:
                self.edit()
            except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
                self.surprises.append(repr(error))

    def edit(self) -> None:
        with self.database.connect("seller_de") as conn, leadprotect.acting_as(conn, self.user, "DE"):
            leadprotect.assert_edit(conn, self.own)
            query = "UPDATE {leads} SET {territory} = {territory} WHERE {lead_id} = %s RETURNING 1"
            self.edits += len(self.database.query(conn, query, self.own))
            self.denials += not leadprotect.can_edit(conn, self.foreign)


@pytest.mark.profiles("pg18")
@pytest.mark.timeout(300)
def test_an_older_image_rolls_back_what_a_newer_one_applied_while_sellers_work(
    python: Path, python_of_tomorrow: Path, database: Database, tmp_path: Path
) -> None:
    """Old and new image, there and back and there again: the old one knows nothing of the newest revisions."""
    (tmp_path / "alembic.ini").write_text(INI, encoding="utf-8")
    old, new = python.with_name("leadprotect"), python_of_tomorrow.with_name("leadprotect")
    alembic: list[str | Path] = [python_of_tomorrow, "-m", "alembic"]
    traffic = Traffic(database)
    traffic.start()
    try:
        said_by([*alembic, "upgrade", "head"], tmp_path, **database.environment)
        assert CONTRACT_AGAIN == database.revision()
        assert "ready" == said_by([old, "status", "--ready"], tmp_path, **database.environment)

        said_by([old, "rollback", "--to", HEAD], tmp_path, **database.environment)
        assert HEAD == database.revision()
        assert "ready" == said_by([new, "status", "--ready"], tmp_path, **database.environment)

        said_by([*alembic, "upgrade", "head"], tmp_path, **database.environment)
        told = said_by([old, "rollback"], tmp_path, **database.environment)
        assert "verified: no table of leadprotect was open after any step, and every row is there" in told
        assert MIGRATE_HEAD == database.revision()
        assert "ready" == said_by([old, "status", "--ready"], tmp_path, **database.environment)

        said_by([*alembic, "upgrade", "head"], tmp_path, **database.environment)
        said_by([new, "rollback"], tmp_path, **database.environment)
        said_by([python, "-m", "alembic", "upgrade", "head"], tmp_path, **database.environment)
        assert HEAD == database.revision()
    finally:
        traffic.ended.set()
        traffic.join()
    assert [] == traffic.surprises
    assert traffic.edits == traffic.denials > 10
