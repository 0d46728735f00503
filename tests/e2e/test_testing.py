"""The pytest plugin, as the how-to shows it to a service: in a folder of its own, by a pytest of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from leadprotect.lab.commands import inherited

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = Path(__file__).parents[2] / "docs/how-to/test-a-service.md"
CONFTEST, TEST, HOST = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)

CRM = """
import leadprotect, psycopg
from sqlalchemy import text

def rename(conn, lead, company):
    leadprotect.assert_edit(conn, lead)
    conn.execute(text("UPDATE leads SET company = :c WHERE id = :id"), {"c": company, "id": lead})

def create_tables(url):
    with psycopg.connect(url) as conn:
        conn.execute("CREATE TABLE leads (id uuid PRIMARY KEY, territory text, company text, stars int NOT NULL)")
        conn.execute("CREATE TABLE activities (id bigint PRIMARY KEY, lead_id uuid, "
                     "user_id uuid, kind text, created_at timestamptz)")
"""
BLIND = CRM.replace("    leadprotect.assert_edit(conn, lead)\n", "")

MORE = """
import os
import leadprotect, psycopg, pytest
from sqlalchemy import create_engine, text

def test_what_is_shared_may_be_edited_and_who_is_suspended_edits_nothing(protected):
    anna, bert = protected.user(), protected.user()
    lead = protected.lead("CH", owner=anna, stars=3)
    protected.share(lead, bert, "CH")
    with protected.acting_as(bert, "CH") as conn:
        assert leadprotect.assert_edit(conn, lead).reason == "collaborator"
    protected.assert_audited(lead, reason="collaborator", user_id=bert)
    protected.suspend(anna, "CH")
    with protected.assert_denied("suspended"), protected.acting_as(anna, "CH") as conn:
        leadprotect.assert_edit(conn, lead)

def test_a_denial_of_plain_sql_counts(protected):
    lead = protected.lead("DE", stars=1)
    with protected.assert_denied("unassigned"), protected.acting_as(protected.user()) as conn:
        conn.execute(text("SELECT leadprotect.assert_edit_and_audit(:id)"), {"id": lead})

def test_nothing_denied_another_reason_and_no_record_fail_and_say_why(protected):
    lead = protected.lead("DE", owner=(anna := protected.user()), stars=1)
    with pytest.raises(AssertionError, match="nothing was denied"), protected.assert_denied():
        pass
    with pytest.raises(AssertionError, match="for another reason: not_found, not not_owner"):
        with protected.assert_denied("not_owner"), protected.acting_as(anna, "CH") as conn:
            leadprotect.assert_edit(conn, lead)
    with pytest.raises(AssertionError, match="no record of EDIT ALLOW about lead .*\\n  ASSIGN ALLOW manager"):
        protected.assert_audited(lead)
    with pytest.raises(psycopg.errors.DivisionByZero), protected.assert_denied():
        with psycopg.connect(protected.url) as conn:
            conn.execute("SELECT 1 / 0")

def test_an_application_that_reads_the_environment_is_connected_and_sees_no_lead_of_a_test_before(protected):
    assert os.environ["DATABASE_URL"] == protected.url
    with create_engine(protected.sqlalchemy_url).connect() as conn:
        assert conn.scalar(text("SELECT current_user")) == "leadprotect_test_service"
        leadprotect.check_startup(conn)
    with psycopg.connect(protected.admin_url) as conn:
        assert conn.execute("SELECT count(*) FROM leads").fetchone() == (0,)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "conftest.py").write_text(CONFTEST, encoding="utf-8")
    (tmp_path / "crm.py").write_text(CRM, encoding="utf-8")
    (tmp_path / "test_rename.py").write_text(TEST, encoding="utf-8")
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Callable[[], str]:
    """Run pytest as a user does."""

    def ran() -> str:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-W",
            "error",
            "--import-mode=append",
        ]
        # the plugins of this suite are not a service's, and take most of a second
        environment = inherited({"PYTHONPATH": str(folder), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})
        return subprocess.run(
            command, cwd=folder, env=environment, text=True, capture_output=True, check=False, timeout=200
        ).stdout

    return ran


def test_the_ten_lines_of_the_page_pass_and_fail_without_the_assertion(folder: Path, run: Callable[[], str]) -> None:
    (folder / "blind.py").write_text(BLIND, encoding="utf-8")
    (folder / "test_blind.py").write_text(re.sub(r"\bcrm\b", "blind", TEST), encoding="utf-8")
    told = run()
    assert "1 failed, 1 passed" in told, told
    assert "FAILED test_blind.py" in told
    assert "nothing was denied" in told


def test_a_host_of_one_s_own_is_protected_by_what_the_page_says(folder: Path, run: Callable[[], str]) -> None:
    (folder / "conftest.py").write_text(CONFTEST + "\n" + HOST, encoding="utf-8")
    (folder / "test_rename.py").write_text(MORE, encoding="utf-8")
    told = run()
    assert "4 passed" in told, told
