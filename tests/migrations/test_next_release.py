"""A release after the first: its chain begins with expand again, behind the contract of the one before."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from alembic import command
from click.testing import CliRunner

from leadprotect import phases
from leadprotect.cli import main
from leadprotect.doctor.status import status
from leadprotect.migration.rollback import rollback
from tests.support.database import ROOT
from tests.support.revisions import CONTRACT, HEAD, MIGRATE_HEAD, REVISIONS

if TYPE_CHECKING:
    from pathlib import Path

    from alembic.config import Config

    from tests.support.database import Database

pytestmark = pytest.mark.profiles("pg18")

NUMBER = len(REVISIONS) + 1
EXPAND, CONTRACT_AGAIN = f"lp_{NUMBER:04}_expand_notes", f"lp_{NUMBER + 1:04}_contract_notes"
PLANTED = """
from alembic import op

from leadprotect.settings import sql

revision = "{revision}"
down_revision = "{down_revision}"
branch_labels = None
depends_on = None
phase = "{phase}"


def upgrade() -> None:
    op.execute(sql("CREATE VIEW {{schema}}.{revision} AS SELECT 1 AS note"))


def downgrade() -> None:
    op.execute(sql("DROP VIEW {{schema}}.{revision}"))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Our migrations with a second release behind them, as a later version carries them."""
    copy = tmp_path / "migrations"
    shutil.copytree(ROOT / "migrations", copy, ignore=shutil.ignore_patterns("__pycache__"))
    for revision, below in ((EXPAND, HEAD), (CONTRACT_AGAIN, EXPAND)):
        text = PLANTED.format(revision=revision, down_revision=below, phase=phases.phase(revision))
        (copy / "versions" / f"{revision}.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr(phases, "version_path", lambda: str(copy / "versions"))
    return copy


def config(database: Database, folder: Path, **x: str) -> Config:
    made = database.config(**x)
    made.set_main_option("script_location", str(folder))
    return made


def close_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEADPROTECT_OBSERVATION_WINDOW", "7 days")


def test_what_is_enforced_is_said_while_the_next_release_expands(database: Database, folder: Path) -> None:
    command.upgrade(config(database, folder), EXPAND)
    with database.connect("operator") as conn:
        found = status(conn)
    assert (EXPAND, "contract") == (found.revision, found.phase)
    assert (CONTRACT_AGAIN,) == found.pending
    shown = CliRunner().invoke(main, ["status"], catch_exceptions=False).output
    assert "phase     contract" in shown
    assert "Gate of contract" in shown  # it is what the next upgrade asks


def test_at_the_head_no_gate_is_shown_because_nothing_asks_it(database: Database, folder: Path) -> None:
    command.upgrade(config(database, folder), "head")
    with database.connect("operator") as conn:
        assert ((), CONTRACT_AGAIN) == (status(conn).pending, status(conn).revision)
    assert "Gate of contract" not in CliRunner().invoke(main, ["status"], catch_exceptions=False).output


def test_the_gate_holds_the_contract_of_the_next_release_too(
    database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    close_the_gate(monkeypatch)
    command.upgrade(config(database, folder), "head")
    assert f"stopped before {CONTRACT_AGAIN}, its gate is closed: " in caplog.text
    assert EXPAND == database.revision()


def test_contract_may_be_held_back_in_each_release(database: Database, folder: Path) -> None:
    command.upgrade(config(database, folder, contract="hold"), "head")
    assert EXPAND == database.revision()


def test_the_next_release_waits_behind_a_contract_that_its_gate_holds(
    host: Database, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    close_the_gate(monkeypatch)
    command.upgrade(config(host, folder), "head")
    assert f"stopped before {CONTRACT}, its gate is closed: " in caplog.text
    assert MIGRATE_HEAD == host.revision()


def test_the_last_safe_revision_is_that_before_the_first_contract(database: Database, folder: Path) -> None:
    command.upgrade(config(database, folder), "head")
    done = rollback(config=config(database, folder))
    assert (CONTRACT_AGAIN, MIGRATE_HEAD, ()) == (done.before, done.after, done.problems)


def test_undoing_what_a_later_release_migrated_pauses_no_backfill(database: Database, folder: Path) -> None:
    revision = EXPAND.replace("expand", "migrate")
    (folder / "versions" / f"{CONTRACT_AGAIN}.py").unlink()
    text = (folder / "versions" / f"{EXPAND}.py").read_text(encoding="utf-8")
    (folder / "versions" / f"{EXPAND}.py").unlink()
    (folder / "versions" / f"{revision}.py").write_text(
        text.replace(EXPAND, revision).replace('"expand"', '"migrate"'), encoding="utf-8"
    )
    asks = "SELECT request FROM {schema}.backfill_jobs ORDER BY territory"
    command.upgrade(config(database, folder), "head")
    assert revision == database.revision()
    database.sql("UPDATE {schema}.backfill_jobs SET started_at = now() - interval '1 minute', ended_at = NULL")
    command.downgrade(config(database, folder), HEAD)
    assert (HEAD, ["run", "run"]) == (database.revision(), database.sql(asks))
