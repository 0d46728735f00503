"""What `leadprotect validate` finds by running a chain: up, down and up again, its locks, and as a script."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from leadprotect.authoring.validate import ON_A_SERVER, Report, validate
from leadprotect.errors import ChainError
from tests.support.chains import Project
from tests.support.database import ROOT
from tests.support.profiles import NIGHTLY
from tests.support.revisions import REVISIONS

if TYPE_CHECKING:
    from pathlib import Path

LEADS = """
CREATE TABLE public.leads (id bigint PRIMARY KEY, territory text, kind text NOT NULL, at timestamptz, tags text[]);
CREATE TABLE public.visits (id bigserial PRIMARY KEY, lead bigint NOT NULL REFERENCES public.leads, note jsonb);
"""
FIRST, SECOND, INDEX, FILL, DROP = (
    "crm_0001_expand_visits", "crm_0002_expand_city", "crm_0003_expand_index", "crm_0004_migrate_city",
    "crm_0005_contract_kind",
)  # fmt: skip
ALTERED = {"public.leads": "AccessExclusiveLock"}
BUILT = {"public.leads": "ShareUpdateExclusiveLock"}
KEPT = "CREATE TABLE public.kept AS SELECT id, kind FROM public.leads; ALTER TABLE public.leads DROP COLUMN kind"
BACK = """
ALTER TABLE public.leads ADD COLUMN kind text;
UPDATE public.leads AS l SET kind = k.kind FROM public.kept AS k WHERE k.id = l.id;
ALTER TABLE public.leads ALTER COLUMN kind SET NOT NULL;
DROP TABLE public.kept
"""
CONCURRENTLY = """

def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = '100ms'")
        op.execute("CREATE INDEX CONCURRENTLY ix_leads ON public.leads (territory)")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = '100ms'")
        op.execute("DROP INDEX CONCURRENTLY public.ix_leads")
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Five revisions on tables that were there before, and nothing wrong with one."""
    made = Project(tmp_path / "crm")
    (made.folder / "before.sql").write_text(LEADS, encoding="utf-8")
    view = "CREATE VIEW public.v_visits AS SELECT lead FROM public.visits"
    made.add(FIRST, up=view, down="DROP VIEW public.v_visits")
    made.add(
        SECOND, FIRST, up="ALTER TABLE public.leads ADD COLUMN city text",
        down="ALTER TABLE public.leads DROP COLUMN city", locks={"upgrade": ALTERED, "downgrade": ALTERED},
    )  # fmt: skip
    file = made.add(INDEX, SECOND, locks={"upgrade": BUILT, "downgrade": BUILT})
    file.write_text(file.read_text(encoding="utf-8").partition("\n\ndef upgrade")[0] + CONCURRENTLY, encoding="utf-8")
    made.add(FILL, INDEX, up="UPDATE public.leads SET city = territory", down="UPDATE public.leads SET city = NULL")
    made.add(DROP, FILL, up=KEPT, down=BACK, locks={"upgrade": ALTERED, "downgrade": ALTERED})
    return made


def judged(project: Project) -> Report:
    return validate(before=project.folder / "before.sql", ini=project.ini)


def found(project: Project) -> set[tuple[str, str, int]]:
    return {(one.rule, one.file.stem, one.line) for one in judged(project).problems}


def change(project: Project, revision: str, before: str, after: str) -> None:
    path = project.versions / f"{revision}.py"
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after, 1), encoding="utf-8")


def test_a_chain_that_does_what_it_says_has_no_problem(project: Project) -> None:
    report = judged(project)
    assert ((), {}) == (report.problems, report.not_judged)
    assert {*ON_A_SERVER} <= {*report.rules}


ASKED = "op.get_bind().exec_driver_sql('SELECT 1').scalar()"
OTHERWISE = (
    "op.execute('CREATE VIEW public.b AS SELECT 1' if op.get_context().as_sql else 'CREATE VIEW public.a AS SELECT 1')"
)


def test_each_mistake_is_found_with_its_line(project: Project) -> None:
    change(project, FIRST, "CREATE VIEW", "CREATE OR REPLACE VIEW")
    change(project, FIRST, "DROP VIEW public.v_visits", "SELECT 1")
    change(project, SECOND, "'upgrade': {'public.leads': 'AccessExclusiveLock'}", "'upgrade': {}")
    change(project, INDEX, "'downgrade': {", "'downgrade': {'public.visits': 'ShareLock', ")
    change(project, FILL, "\"SET LOCAL lock_timeout = '100ms'\")", f'"SET LOCAL lock_timeout = 100")\n    {ASKED}')
    change(project, DROP, "SET kind = k.kind FROM", "SET kind = '' FROM")
    index = "CREATE INDEX ON public.visits (note)"
    project.add("crm_0006_contract_ix", DROP, up=index, down="DROP INDEX public.visits_note_idx")
    project.add("crm_0007_contract_ab", "crm_0006_contract_ix", down="DROP VIEW IF EXISTS public.a, public.b")
    change(project, "crm_0007_contract_ab", "100ms'\")", f"100ms'\")\n    {OTHERWISE}")
    assert {
        ("round-trip", FIRST, 29),
        ("declared-locks", SECOND, 17),
        ("declared-locks", INDEX, 17),
        ("offline-equals-online", FILL, 20),
        ("round-trip", DROP, 29),
        ("declared-locks", "crm_0006_contract_ix", 17),
        ("squawk", "crm_0006_contract_ix", 24),
        ("offline-equals-online", "crm_0007_contract_ab", 20),
    } == found(project)


@pytest.mark.parametrize(
    ("revision", "before", "after", "line", "said"),
    [
        (FIRST, "DROP VIEW public.v_visits", "SELECT 1", 20, "upgrade() fails after it was undone: relation"),
        (FIRST, "DROP VIEW public.v_visits", "DROP VIEW public.others", 29, "downgrade() fails: view"),
        (FIRST, "FROM public.visits", "FROM public.nothing", 20, "upgrade() fails: relation"),
    ],
    ids=["not again", "not undone", "not at all"],
)
def test_a_revision_that_fails_is_named_with_what_the_server_said(
    project: Project, revision: str, before: str, after: str, line: int, said: str
) -> None:
    change(project, revision, before, after)
    problem = next(one for one in judged(project).problems if one.rule == "round-trip" and said in one.problem)
    assert (f"{revision}.py", line) == (problem.file.name, problem.line)


def test_a_loss_that_is_declared_is_no_problem(project: Project) -> None:
    project.add("crm_0006_contract_new", DROP, up="CREATE TABLE public.new (id bigint)", down="DROP TABLE public.new")
    assert {("round-trip", "crm_0006_contract_new", 29)} == found(project)
    change(project, "crm_0006_contract_new", "locks = {", 'loses = {"public.new": "written by nobody yet"}\nlocks = {')
    assert set() == found(project)


@pytest.mark.skipif(not NIGHTLY, reason="by day tests/migrations hold each of our revisions against the same")
def test_our_own_chain_has_no_problem_on_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    report = validate()
    assert ((), {}, len(REVISIONS)) == (report.problems, report.not_judged, report.revisions)


def test_what_was_there_before_must_run(project: Project) -> None:
    (project.folder / "before.sql").write_text("CREATE TABLE (", encoding="utf-8")
    with pytest.raises(ChainError, match=r"before\.sql: syntax error"):
        judged(project)
