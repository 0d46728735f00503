"""Our revisions in the Alembic environment of a host, as `alembic init` makes it."""

from __future__ import annotations

import re
from contextlib import chdir
from typing import TYPE_CHECKING

import pytest
from alembic import command
from alembic.config import Config

import leadprotect
from tests.support.alembic import alembic
from tests.support.database import ROOT
from tests.support.revisions import HEAD, MIGRATE_HEAD, NAMED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.database import Database

OWN = """
from alembic import op
revision = "{name}"
down_revision = {below!r}
branch_labels = None
depends_on = None
def upgrade():
    op.execute("CREATE TABLE public.{name} ()")
def downgrade():
    op.execute("DROP TABLE public.{name}")
"""
FURTHER_BACK = pytest.mark.nightly("by day the refusal is met before the first index that contract builds")
CONFIGURE = re.compile(r"context\.configure\(\s+connection=connection.*?\)", re.DOTALL)


def documented(language: str) -> str:
    """The lines that docs/explanation/numbering.md tells a host to write."""
    page = (ROOT / "docs/explanation/numbering.md").read_text(encoding="utf-8")
    return str(re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)[0])


def environment(folder: Path, database: Database, *, prepared: bool) -> None:
    """A host with two revisions of its own, and in `prepared` the lines that the documentation names."""
    with chdir(folder):
        command.init(Config("alembic.ini"), "mig")
    for name, below in (("host_1", None), ("host_2", "host_1")):
        (folder / "mig/versions" / f"{name}.py").write_text(OWN.format(name=name, below=below))
    ini, env = folder / "alembic.ini", folder / "mig/env.py"
    ours = documented("ini").replace("<leadprotect.version_path()>", leadprotect.version_path())
    locations = next(line for line in ours.splitlines() if line.startswith("version_locations"))
    url = database.url.replace("postgresql:", "postgresql+psycopg:").replace("%", "%%")
    text = re.sub(r"(?m)^sqlalchemy.url = .*$", lambda _: f"sqlalchemy.url = {url}\n{locations}", ini.read_text())
    assert "\npath_separator = os\n" in text
    ini.write_text(text + "\n" + ours[ours.index("[leadprotect]") :])
    if prepared:
        assert CONFIGURE.search(env.read_text())
        wanted = documented("python").strip().replace("\n", "\n        ")
        env.write_text(CONFIGURE.sub(wanted, env.read_text()))


def applied(database: Database) -> set[str]:
    """The heads in the host's version table; empty before the first upgrade."""
    if database.sql("SELECT to_regclass('public.alembic_version') IS NULL") == [True]:
        return set()
    return set(database.sql("SELECT version_num FROM public.alembic_version"))


@pytest.fixture
def ours(make_database: Callable[..., Database]) -> Database:
    return make_database("host", version_table="alembic_version", version_table_schema="public")


@pytest.mark.profiles("pg18", "other_names")
def test_a_host_upgrades_both_branches_with_its_own_env_py(ours: Database, tmp_path: Path) -> None:
    environment(tmp_path, ours, prepared=True)
    ours.activity(ours.lead("DE"), ours.user(1))

    stopped = alembic(ours, "upgrade", "heads", cwd=tmp_path)

    assert stopped.returncode != 0
    messages = stopped.stdout + stopped.stderr
    assert "Traceback" not in messages
    assert "FAILED: the gate of contract is closed: 1 leads in DE have a qualifying activity but no owner" in messages
    assert "leadprotect backfill DE" in messages
    assert MIGRATE_HEAD in applied(ours)
    own = alembic(ours, "upgrade", "host_2", cwd=tmp_path)  # whatever ours waits for
    assert (own.returncode, applied(ours)) == (0, {"host_2", MIGRATE_HEAD})
    leadprotect.backfill(ours.url, ["DE", "CH"])
    done = alembic(ours, "upgrade", "heads", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert applied(ours) == {"host_2", HEAD}

    back = alembic(ours, "downgrade", "base", cwd=tmp_path)
    assert back.returncode == 0, back.stderr
    assert applied(ours) == set()
    grants = ours.sql("SELECT relacl::text FROM pg_class WHERE oid = 'public.alembic_version'::regclass")[0]
    assert ours.settings.role("operator") not in str(grants)


@pytest.mark.profiles("pg18")
def test_one_transaction_for_all_is_refused_before_anything_is_touched(ours: Database, tmp_path: Path) -> None:
    environment(tmp_path, ours, prepared=False)
    refused = alembic(ours, "upgrade", "heads", cwd=tmp_path)
    assert refused.returncode != 0
    messages = refused.stdout + refused.stderr
    assert "Traceback" not in messages
    assert "FAILED: leadprotect's revisions need a transaction each" in messages
    assert "transaction_per_migration=True" in messages
    assert ours.sql("SELECT to_regnamespace({schema_name}) IS NULL AND to_regclass('public.host_1') IS NULL") == [True]
    assert applied(ours) == set()


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("standing", [MIGRATE_HEAD, pytest.param(NAMED["expand_rules"], marks=FURTHER_BACK)])
def test_an_env_py_that_lost_the_line_is_refused_before_an_index_is_touched(
    ours: Database, tmp_path: Path, standing: str
) -> None:
    environment(tmp_path, ours, prepared=True)
    assert alembic(ours, "upgrade", standing, cwd=tmp_path).returncode == 0
    env = tmp_path / "mig/env.py"
    env.write_text(env.read_text().replace("transaction_per_migration=True", ""))
    refused = alembic(ours, "upgrade", HEAD, cwd=tmp_path)
    assert "FAILED: leadprotect's revisions need a transaction each" in refused.stdout + refused.stderr
    assert applied(ours) == {standing}
