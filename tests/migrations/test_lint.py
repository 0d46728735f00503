"""What linters and pytest-alembic have to say about the chain of revisions."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_alembic import Config
from pytest_alembic.tests import test_single_head_revision, test_up_down_consistency, test_upgrade
from sqlalchemy import create_engine, pool

from leadprotect import phases
from leadprotect.preflight.leftovers import _KEPT
from leadprotect.preflight.standing import _TABLES
from tests.support.database import ROOT
from tests.support.revisions import REVISIONS, SCRIPTS, before

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alembic.script import Script
    from sqlalchemy import Engine

    from tests.support.database import Database

__all__ = ["test_single_head_revision", "test_up_down_consistency", "test_upgrade"]

pytestmark = pytest.mark.profiles("pg18")
test_up_down_consistency = pytest.mark.nightly("tests/migrations/test_round_trip.py goes each step down by day")(
    test_up_down_consistency
)

EXCLUDED = tomllib.loads((ROOT / ".squawk.toml").read_text(encoding="utf-8"))["excluded_rules"]
# A downgrade drops and moves what its upgrade made; the services that call meanwhile deny.
UNDOING = ["ban-drop-function", "ban-drop-schema", "ban-drop-table", "ban-drop-view", "ban-set-schema"]


@pytest.fixture
def alembic_config(host: Database) -> Config:
    return Config(alembic_config=host.config())


@pytest.fixture
def alembic_engine(host: Database) -> Iterator[Engine]:
    engine = create_engine(host.url.replace("postgresql://", "postgresql+psycopg://"), poolclass=pool.NullPool)
    yield engine
    engine.dispose()


def squawk(script: str, *more_excluded: str) -> str:
    excluded = ",".join([*EXCLUDED, *more_excluded])
    command = ["squawk", "--config", str(ROOT / ".squawk.toml"), "--reporter", "gcc", "--exclude", excluded]
    done = subprocess.run(command, input=script, text=True, capture_output=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.revision)
def test_squawk_has_no_complaint(host: Database, script: Script) -> None:
    below = script.down_revision or "base"
    assert squawk(host.script("upgrade", f"{below}:{script.revision}")) == ""
    assert squawk(host.script("downgrade", f"{script.revision}:{below}"), *UNDOING) == ""


def test_squawk_would_complain_about_a_lock_that_stops_the_host() -> None:
    assert "require-concurrent-index-creation" in squawk(
        "SET lock_timeout = '1s';\nCREATE INDEX ix ON public.leads (id);\n"
    )


def test_revisions_are_one_chain_with_readable_names() -> None:
    for number, script in enumerate(SCRIPTS, start=1):
        assert re.fullmatch(rf"lp_{number:04}_(expand|migrate|contract)(_[a-z]+)+", script.revision)
        assert len(script.revision) <= 32
        assert Path(script.path).stem == script.revision
        assert script.module.phase == script.revision.split("_")[2]
        assert script.down_revision == (REVISIONS[number - 2] if number > 1 else None)


def test_preflight_knows_which_revision_makes_and_takes_back_which_table() -> None:
    texts = {script.revision: Path(script.path).read_text(encoding="utf-8") for script in SCRIPTS}
    made = {revision: re.findall(r"CREATE TABLE \{schema\}\.(\w+) \(", text) for revision, text in texts.items()}
    assert {revision: tables for revision, tables in made.items() if tables} == {
        revision: tables.split() for revision, tables in _TABLES.items()
    }
    undone = {revision: [name for name in tables if moves(texts[revision], name)] for revision, tables in made.items()}
    assert [tables for tables in undone.values() if tables] == [[*tables] for tables in _KEPT]


def moves(text: str, table: str) -> bool:
    """Whether a revision moves a table to the quarantine instead of dropping it."""
    return not re.search(rf"DROP TABLE \{{schema\}}\.{table};", text)


def test_a_phase_comes_before_the_one_it_follows_only_after_a_contract() -> None:
    assert [] == out_of_order([script.module.phase for script in SCRIPTS])


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        (["expand", "migrate", "contract", "expand", "expand", "contract"], []),
        (["expand", "contract", "migrate", "contract"], []),
        (["expand", "migrate", "expand"], [("migrate", "expand")]),
    ],
)
def test_a_release_begins_anew_and_keeps_the_order(found: list[str], wrong: list[tuple[str, str]]) -> None:
    assert wrong == out_of_order(found)


def out_of_order(found: list[str]) -> list[tuple[str, str]]:
    """Neighbours of which the second belongs before the first, and no release has ended between them."""
    back = [(one, two) for one, two in pairwise(found) if phases.ORDER.index(two) < phases.ORDER.index(one)]
    return [pair for pair in back if pair[0] != "contract"]


def test_what_the_ids_tell_is_what_alembic_has_linked() -> None:
    assert REVISIONS == [*phases.chain()]
    assert [script.module.phase for script in SCRIPTS] == [phases.phase(revision) for revision in phases.chain()]
    for phase in phases.ORDER:
        assert before(phase) == [*phases.before(phase)]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.revision)
def test_a_revision_imports_nothing_of_leadprotect_but_its_settings(script: Script) -> None:
    tree = ast.parse(Path(script.path).read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    ours = {name for name in imported if name and name.startswith("leadprotect")}
    assert "leadprotect.settings" in ours
    assert {name for name in ours if not f"{name}.".startswith("leadprotect.settings.")} == set()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.revision)
def test_a_revision_says_why_which_locks_and_how_it_is_undone(script: Script) -> None:
    for title in ("Why: ", "Locks on host tables: ", "Undone by: "):
        assert f"\n\n{title}" in script.doc or f"\n\n{title}" in (script.module.__doc__ or "")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.revision)
def test_no_table_and_no_type_is_created_only_if_it_is_missing(script: Script) -> None:
    assert (
        re.findall(
            r"(TABLE|TYPE|INDEX|VIEW|FUNCTION)\s+IF\s+NOT\s+EXISTS", Path(script.path).read_text(encoding="utf-8")
        )
        == []
    )


REDEFINED = re.compile(r"AT TIME ZONE 'UTC'|date_trunc\([^\n]*'UTC'\)")


def test_no_text_calls_a_zone_by_a_name_that_a_session_can_redefine() -> None:
    """Since PostgreSQL 18 ``SET TimeZone = '<UTC>-12'`` makes UTC another zone; nothing does that to Etc/UTC."""
    sources = [*(ROOT / "leadprotect").rglob("*.py"), *(ROOT / "migrations").rglob("*.py")]
    assert {} == {
        str(file): found for file in sources if (found := REDEFINED.findall(file.read_text(encoding="utf-8")))
    }
    assert REDEFINED.search("SELECT now() AT TIME ZONE 'UTC'")
