"""A small host with models and an Alembic of its own, and leadprotect from an installed wheel, in the three ways."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.conftest import janitor_of
from tests.support.database import ROOT
from tests.support.profiles import NIGHTLY
from tests.support.revisions import HEAD, MIGRATE_HEAD, NAMED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.database import Database

pytestmark = [
    pytest.mark.xdist_group("packaging"),
    pytest.mark.profiles("pg18"),
    pytest.mark.timeout(300),
]

MODELS = """
import sqlalchemy as sa

metadata = sa.MetaData()
leads = sa.Table(
    "leads", metadata,
    sa.Column("id", sa.Uuid, primary_key=True), sa.Column("territory", sa.String(20)), sa.Column("company", sa.Text),
    sa.Index("ix_leads_company", "company"),
)
activities = sa.Table(
    "activities", metadata,
    sa.Column("id", sa.BigInteger, primary_key=True), sa.Column("lead_id", sa.Uuid, sa.ForeignKey("leads.id")),
    sa.Column("user_id", sa.Uuid), sa.Column("kind", sa.Text, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True)),
)
"""
CONFIGURE = re.compile(r"context\.configure\(\s+connection=connection.*?\)", re.DOTALL)
WAYS = ("an ini of its own", "one version table", "two version tables")
PAGE = ROOT / "docs/how-to/live-beside-your-own-alembic.md"


def documented(way: str, language: str) -> str:
    """The lines that the how-to tells a host to write."""
    part = PAGE.read_text(encoding="utf-8").split(f"## {way.capitalize()}\n")[1].split("\n## ")[0]
    return str(re.findall(rf"```{language}\n(.*?)```", part, re.DOTALL)[0])


@dataclass(frozen=True)
class Project:
    """A host's folder; `ours` are the words before a command that is about our revisions."""

    python: Path
    folder: Path
    database: Database
    ours: tuple[str, ...]

    def run(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return self._asked("-m", "alembic", *words, **environ)

    def _asked(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DATABASE_URL")}
        return subprocess.run(
            [self.python, *words],
            cwd=self.folder,
            env=outside | {"PYTHONPATH": str(self.folder), "LEADPROTECT_OBSERVATION_WINDOW": "0"} | environ,
            capture_output=True,
            text=True,
            check=False,
        )

    def done(self, *words: str, **environ: str) -> str:
        ran = self.run(*words, **environ)
        assert 0 == ran.returncode, ran.stdout + ran.stderr
        return ran.stdout + ran.stderr

    def done_in_turn(self, *commands: tuple[str, ...], **environ: str) -> str:
        """The same of several commands, in one process: most of what one costs is its begin."""
        ran = self._asked("-c", f"from alembic.config import main\nfor words in {commands!r}: main(words)", **environ)
        assert 0 == ran.returncode, ran.stdout + ran.stderr
        return ran.stdout + ran.stderr

    def applied(self) -> set[str]:
        found: set[str] = set()
        for table in ("public.alembic_version", "leadprotect.alembic_version"):
            if self.database.sql("SELECT to_regclass(%s) IS NOT NULL", table) == [True]:
                found |= set(self.database.sql(f"SELECT version_num FROM {table}"))
        return found


@dataclass
class Begun:
    """What each project begins with: the host's folder, the template of its database, where our revisions are."""

    folder: Path
    database: str = ""
    ours: str = ""


@pytest.fixture(scope="session")  # tests of other modules come between
def begun(tmp_path_factory: pytest.TempPathFactory) -> Begun:
    """Made by the first project, copied by the others."""
    return Begun(tmp_path_factory.mktemp("begun") / "host")


@pytest.fixture
def project(
    request: pytest.FixtureRequest, python: Path, make_database: Callable[..., Database], begun: Begun, tmp_path: Path
) -> Project:
    """The host's first revision is made by autogenerate and applied; the how-to's lines are in its files."""
    way = request.param
    database = make_database("empty")
    made = Project(python, tmp_path / "host", database, ("-c", "leadprotect.ini") if way == WAYS[0] else ())
    if not begun.ours:
        begin(made, begun)
    else:
        shutil.copytree(begun.folder, made.folder)
        here(made)
        copy = janitor_of(database.server, database.name, begun.database)
        copy.drop()
        copy.init()
    adopt(made, way, begun.ours)
    return made


def begin(project: Project, begun: Begun) -> None:
    """A host with models, Alembic's own folder and a first revision; kept as it is before we come."""
    project.folder.mkdir()
    (project.folder / "models.py").write_text(MODELS)
    project.done("init", "mig")
    here(project)
    env = project.folder / "mig/env.py"
    text = env.read_text().replace("target_metadata = None", "from models import metadata as target_metadata")
    env.write_text(text)
    project.done("revision", "--autogenerate", "-m", "host", "--rev-id", "host_1")
    project.done("upgrade", "head")
    shutil.copytree(project.folder, begun.folder)
    begun.database = f"begun_{os.getpid()}"
    janitor_of(project.database.server, begun.database, project.database.name).init()
    begun.ours = subprocess.check_output(
        [project.python, "-c", "import leadprotect; print(leadprotect.version_path())"], cwd=project.folder, text=True
    ).strip()


def here(project: Project) -> None:
    """Write into its ini which database it has."""
    ini = project.folder / "alembic.ini"
    url = project.database.url.replace("postgresql:", "postgresql+psycopg:").replace("%", "%%")
    ini.write_text(re.sub(r"(?m)^sqlalchemy.url = .*$", lambda _: f"sqlalchemy.url = {url}", ini.read_text()))


def adopt(project: Project, way: str, ours: str) -> None:
    ini, env = project.folder / "alembic.ini", project.folder / "mig/env.py"
    wanted = documented(way, "ini").replace("<leadprotect.version_path()>", ours)
    if way == WAYS[0]:
        (project.folder / "leadprotect.ini").write_text(
            wanted + f"\n[leadprotect]\ndatabase_url = {project.database.url}\n"
        )
    else:
        locations, _, section = wanted.partition("[leadprotect]")
        line = next(line for line in locations.splitlines() if line.startswith("version_locations"))
        text = ini.read_text().replace("sqlalchemy.url =", f"{line}\nsqlalchemy.url =", 1)
        ini.write_text(f"{text}\n[leadprotect]{section}\ndatabase_url = {project.database.url.replace('%', '%%')}\n")
    imports, call = documented(way, "python").split("\n\n", 1)
    text = env.read_text()
    text = CONFIGURE.sub(lambda _: call[call.index("context.configure(") :].strip().replace("\n", "\n        "), text)
    text = text.replace(
        "target_metadata=target_metadata,\n", "target_metadata=target_metadata, include_schemas=everything,\n"
    )
    before = call[: call.index("context.configure(")]
    head = f"import os\n{imports}\neverything = bool(os.environ.get('EVERYTHING'))\n{before}"
    env.write_text(text.replace("def run_migrations_offline", f"{head}\ndef run_migrations_offline", 1))


SILENT = "No new upgrade operations detected"


def silent_after(project: Project, *command: str, whole: bool = False) -> None:
    """After a command `alembic check` has nothing to say of all schemas; the whole is what it says of its own, too."""
    assert SILENT in project.done_in_turn(command, ("check",), EVERYTHING="yes")
    if not whole:
        return
    made = ("revision", "--autogenerate", "-m", "nothing", "--head", "host_1", "--rev-id", "host_2")
    assert SILENT in project.done_in_turn(("check",), made)
    (file,) = (project.folder / "mig/versions").glob("host_2*")
    upgrade = file.read_text().split("def upgrade")[1]
    assert 2 == upgrade.count("pass")
    assert [] == re.findall(r"op\.\w+", upgrade)
    file.unlink()


@pytest.mark.parametrize("project", WAYS, indirect=True)
def test_autogenerate_is_silent_about_us_in_each_phase(project: Project) -> None:
    if NIGHTLY:  # nothing of ours is there
        silent_after(project, "current", whole=True)
    apart = bool(project.ours)  # by day the phase before contract, and the file that is made, are asked about one way
    for revision in (NAMED["expand_rules"], MIGRATE_HEAD) if NIGHTLY else (MIGRATE_HEAD,) if apart else ():
        silent_after(project, *project.ours, "upgrade", revision, whole=NIGHTLY)
        assert {"host_1", revision} == project.applied()
    silent_after(project, *project.ours, "upgrade", "heads", whole=NIGHTLY or apart)
    assert {"host_1", HEAD} == project.applied()
    # control: without our lines autogenerate would drop what is ours
    env = project.folder / "mig/env.py"
    documented_lines = env.read_text()
    without = re.sub(r"include_\w+=leadprotect\.include_\w+,?|\*\*environment.beside\(\),?", "", documented_lines)
    env.write_text(without)
    refused = project.run("check", EVERYTHING="yes")
    assert 0 != refused.returncode
    assert "remove_table" in refused.stdout + refused.stderr or "not up to date" in refused.stdout + refused.stderr
    env.write_text(documented_lines)
    silent_after(project, *project.ours, "downgrade", "leadprotect@base")
    assert {"host_1"} == project.applied()


@pytest.mark.parametrize("project", WAYS[2:], indirect=True)
def test_a_closed_gate_holds_our_branch_and_not_the_hosts(project: Project) -> None:
    project.database.sql("INSERT INTO leads (id, territory) VALUES (gen_random_uuid(), 'DE')")
    project.database.sql(
        "INSERT INTO activities (id, lead_id, user_id, kind) "
        "SELECT 1, id, gen_random_uuid(), 'QUALIFIED_CALL' FROM leads"
    )
    later = ("revision", "-m", "later", "--head", "host_1", "--rev-id", "host_2")
    said = project.done_in_turn(later, ("upgrade", "heads"))
    assert "its gate is closed" in said
    assert {"host_2", MIGRATE_HEAD} == project.applied()
    assert SILENT in project.done_in_turn(("check",), ("downgrade", "host_1"))
    assert {"host_1", MIGRATE_HEAD} == project.applied()
    project.done("downgrade", "base")
    assert set() == project.applied()


HARMS = (
    "DROP TABLE leadprotect.alembic_version",
    "DELETE FROM leadprotect.alembic_version",
    "UPDATE leadprotect.alembic_version SET version_num = 'lp_0003_expand_audit'",
)


@pytest.mark.parametrize("project", [WAYS[0], WAYS[2]], indirect=True)
def test_a_version_table_that_says_less_than_stands_is_answered_with_the_stamp_to_run(project: Project) -> None:
    """Lost, emptied or stamped; by day where the table is, and what was done to it, are two questions."""
    project.done(*project.ours, "upgrade", "leadprotect@head")
    for harm in HARMS if NIGHTLY or project.ours else HARMS[:1]:
        project.database.sql(harm)
        refused = project.run(*project.ours, "upgrade", "leadprotect@head")
        said = refused.stdout + refused.stderr
        assert 0 != refused.returncode, harm
        assert "Traceback" not in said
        assert f"Run: alembic stamp {HEAD}" in said
        project.done(*project.ours, "stamp", HEAD)
        assert {"host_1", HEAD} == project.applied()
    project.done(*project.ours, "upgrade", "leadprotect@head")
