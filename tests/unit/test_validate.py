"""`leadprotect validate`: mistakes planted in a chain, each found with its line; those of a server are in tests/e2e."""

from __future__ import annotations

import json
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from leadprotect.authoring import validate as validation
from leadprotect.authoring.chain import read_chain
from leadprotect.authoring.reports import as_github, as_sarif, as_text
from leadprotect.authoring.rules import released
from leadprotect.authoring.validate import OF_FILES, ON_A_SERVER, validate
from leadprotect.cli import main
from leadprotect.errors import ChainError
from tests.support.chains import Project
from tests.support.database import ROOT
from tests.support.revisions import REVISIONS

RULES = [*(rule.__name__.replace("_", "-") for rule in OF_FILES), *ON_A_SERVER]
LAST = "crm_0003_contract_drop"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A chain that nothing is wrong with."""
    made = Project(tmp_path)
    made.add("crm_0001_expand_tables", up="CREATE TABLE public.notes (id bigint)", down="DROP TABLE public.notes")
    made.add("crm_0002_migrate_fill", "crm_0001_expand_tables")
    made.add(LAST, "crm_0002_migrate_fill", up="DROP TABLE public.notes", down="CREATE TABLE public.notes (id bigint)")
    monkeypatch.chdir(tmp_path)
    return made


def found(project: Project) -> list[tuple[str, str, int]]:
    problems = validate(static=True, ini=project.ini).problems
    return [(one.rule, one.file.name, one.line) for one in problems]


def change(project: Project, before: str, after: str, file: str = LAST) -> str:
    path = project.versions / f"{file}.py"
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after, 1), encoding="utf-8")
    return path.name


def test_a_clean_chain_has_no_problem(project: Project) -> None:
    assert [] == found(project)


def test_our_own_chain_has_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    report = validate(static=True)
    assert (0, len(REVISIONS), ()) == (report.exit_code, report.revisions, report.problems)


# --- what stands in the samples that people copy


def test_a_placeholder_that_was_left_for_the_number(project: Project) -> None:
    project.add("crm_VXXX_contract_at", LAST)
    assert [("ids", 12), ("placeholders", 12)] == [(rule, line) for rule, _, line in dict.fromkeys(found(project))]


@pytest.mark.parametrize("left", ["TODO: say why", "<NAME OF THE TABLE>", "VXXX", "${message}"])
def test_a_placeholder_that_was_left_in_the_text(project: Project, left: str) -> None:
    file = change(project, "somebody needs it", left)
    assert [("placeholders", file, 3)] == found(project)


@pytest.mark.parametrize("answer", ["...", ""])
def test_a_question_that_was_not_answered(project: Project, answer: str) -> None:
    file = change(project, "taking it back.", answer)
    assert [("placeholders", file, 7)] == found(project)


def test_a_number_that_is_taken_twice(project: Project) -> None:
    project.add("crm_0003_contract_rows", LAST)
    assert [("numbering", "crm_0003_contract_rows.py", 12)] == found(project)


@pytest.mark.parametrize(
    ("sql", "line"),
    [
        ("CREATE TABLE IF NOT EXISTS public.a (id bigint)", 24),
        ("SELECT 1;\n        CREATE UNIQUE INDEX CONCURRENTLY\n        IF NOT EXISTS a ON public.a (id)", 25),
        ("ALTER TABLE public.a ADD COLUMN IF NOT EXISTS b int", 24),
    ],
)
def test_what_is_created_only_where_it_is_missing(project: Project, sql: str, line: int) -> None:
    file = change(project, "DROP TABLE public.notes", sql)
    assert [("if-not-exists", file, line)] == found(project)


def test_what_alembic_s_own_words_create_only_where_it_is_missing(project: Project) -> None:
    file = change(
        project,
        'op.execute("SET LOCAL lock_timeout',
        'x = dict(if_not_exists=True)\n    op.execute("SET LOCAL lock_timeout',
    )
    assert [("if-not-exists", file, 21)] == found(project)


@pytest.mark.parametrize(("way", "line"), [("upgrade", 21), ("downgrade", 30)])
def test_a_revision_that_waits_for_locks_without_an_end(project: Project, way: str, line: int) -> None:
    file = change(
        project,
        f"def {way}() -> None:\n    op.execute(\"SET LOCAL lock_timeout = '100ms'\")",
        f"def {way}() -> None:\n    pass",
    )
    assert [("lock-timeout", file, line)] == [(rule, name, at - 1) for rule, name, at in found(project)]


@pytest.mark.parametrize(
    ("environment", "silent"),
    [
        ("from leadprotect.migration import environment\n\nenvironment.run()\n", True),
        ('connection.execute(text("SET lock_timeout = 100"))\n', True),
        ('connection.execute(text("SET LOCAL lock_timeout = 100"))\n', False),  # ends with the first revision
        ("context.run_migrations()\n", False),
    ],
    ids=["ours", "for each", "for the first", "none"],
)
def test_an_environment_may_set_the_limit_for_every_revision(
    project: Project, environment: str, *, silent: bool
) -> None:
    (project.folder / "mig/env.py").write_text(environment, encoding="utf-8")
    change(project, "SET LOCAL lock_timeout = '100ms'", "SELECT 1")
    assert ([] if silent else ["lock-timeout"]) == [rule for rule, *_ in found(project)]


# --- the chain


def test_two_heads(project: Project) -> None:
    file = project.add("crm_0004_contract_rows", "crm_0002_migrate_fill").name
    assert [("one-head", file, 13)] == found(project)


def test_a_gap(project: Project) -> None:
    file = change(project, 'down_revision = "crm_0002_migrate_fill"', 'down_revision = "crm_0002_migrate_lost"')
    assert {("one-head", file, 13)} == {one for one in found(project) if one[2] == 13 and one[1] == file}


def test_a_merge(project: Project) -> None:
    project.add("crm_0004_contract_rows", LAST)
    file = change(
        project,
        f'down_revision = "{LAST}"',
        f'down_revision = ("{LAST}", "crm_0002_migrate_fill")',
        "crm_0004_contract_rows",
    )
    assert [("one-head", file, 13)] == found(project)


def test_a_file_that_is_not_named_after_its_revision(project: Project) -> None:
    project.add("crm_0004_contract_rows", LAST, file="rows")
    assert [("ids", "rows.py", 12)] == found(project)


def test_an_id_that_the_version_table_can_t_hold(project: Project) -> None:
    file = project.add("crm_0004_contract_" + "a" * 15, LAST).name
    assert [("ids", file, 12)] == found(project)


def test_a_phase_that_is_not_the_id_s(project: Project) -> None:
    file = change(project, 'phase = "contract"', 'phase = "migrate"')
    assert [("ids", file, 16)] == found(project)


def test_an_id_with_another_prefix(project: Project) -> None:
    file = project.add("erp_0004_contract_rows", LAST).name
    assert [("ids", file, 12)] == found(project)


def test_a_phase_before_the_one_it_follows(project: Project) -> None:
    change(project, "crm_0002_migrate_fill", "crm_0003_expand_at")
    project.add("crm_0003_expand_at", "crm_0002_migrate_fill")
    (project.versions / f"{LAST}.py").unlink()
    assert [("phases-in-order", "crm_0003_expand_at.py", 16)] == found(project)


def test_a_number_that_is_left_out(project: Project) -> None:
    file = project.add("crm_0005_contract_rows", LAST).name
    assert [("numbering", file, 12)] == found(project)


def test_a_history_without_numbers_is_left_in_peace(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.add("ae1027a6acf", file="ae1027a6acf_first")
    project.add("crm_0001_expand_at", "ae1027a6acf")
    assert [] == found(project)


# --- what a revision holds


def test_a_definer_that_finds_its_names_where_the_caller_points(project: Project) -> None:
    sql = "CREATE FUNCTION public.f() RETURNS int LANGUAGE plpgsql SECURITY DEFINER{} AS $$ BEGIN END $$"
    file = change(project, "DROP TABLE public.notes", sql.format(""))
    assert [("definers", file, 24)] == found(project)
    change(project, "SECURITY DEFINER", "SECURITY DEFINER SET search_path = pg_catalog")
    assert [] == found(project)


def test_an_import_that_changes_with_every_version(project: Project) -> None:
    file = change(project, "from alembic import op", "from alembic import op\n\nfrom leadprotect.access import checks")
    assert [("imports", file, 12)] == found(project)


def test_a_revision_that_was_released_and_is_edited(project: Project) -> None:
    code, said = told(project, "validate", "--release")
    assert (0, f"frozen in {project.folder}/mig/released.json\n") == (code, said)
    assert [] == found(project)
    file = change(project, "public.notes", "public.others")
    (project.versions / "crm_0001_expand_tables.py").rename(project.folder / "gone.py")
    change(project, 'down_revision = "crm_0001_expand_tables"', "down_revision = None", "crm_0002_migrate_fill")
    those = [one for one in found(project) if one[0] == "released"]
    assert {("crm_0002_migrate_fill.py", 1), (file, 1), ("released.json", 2)} == {one[1:] for one in those}


def test_other_ends_of_lines_are_no_edit(project: Project) -> None:
    released.write_manifest(project.chain)
    path = project.versions / f"{LAST}.py"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert [] == found(project)


def test_a_chain_with_a_problem_is_not_frozen(project: Project) -> None:
    project.add("crm_0004_contract_rows", LAST, file="rows")
    with pytest.raises(ChainError, match=r"nothing was frozen: .*rows\.py:12: ids"):
        validation.freeze(ini=project.ini)


def test_our_own_revisions_are_as_they_were_released_and_frozen_all_together() -> None:
    chain = read_chain(ini=ROOT / "alembic.ini")
    frozen = [*released.read_manifest(chain)]
    assert ([], [one.id for one in chain.revisions[: len(frozen)]]) == ([*released.released(chain)], frozen)


# --- how it is said


@pytest.fixture
def broken(project: Project) -> Project:
    """One problem, and its line is known."""
    change(project, "DROP TABLE public.notes", "CREATE TABLE IF NOT EXISTS public.a (id bigint)")
    return project


def told(project: Project, *arguments: str) -> tuple[int, str]:
    ran = CliRunner().invoke(main, ["-c", str(project.ini), *arguments], catch_exceptions=False)
    return ran.exit_code, ran.stdout


def test_text_tells_place_problem_and_solution(broken: Project) -> None:
    code, said = told(broken, "validate", "--static")
    first, second, last = said.splitlines()
    assert 1 == code
    assert first.startswith(f"mig/versions/{LAST}.py:24: if-not-exists: TABLE IF NOT EXISTS ")
    assert second == "    create it plainly: where it exists, the upgrade stops before it is stamped"
    assert last == f"1 problem: 3 revisions, {len(OF_FILES)} rules"


def test_json_tells_the_same(broken: Project) -> None:
    code, said = told(broken, "validate", "--static", "--json")
    (problem,) = json.loads(said)["problems"]
    assert (1, {"rule", "file", "line", "problem", "solution"}) == (code, set(problem))
    assert (f"{LAST}.py", 24) == (Path(problem["file"]).name, problem["line"])


def test_github_tells_one_annotation_a_line(broken: Project) -> None:
    line = as_github(validate(static=True, ini=broken.ini))
    assert line.startswith(f"::error file=mig/versions/{LAST}.py,line=24,title=if-not-exists::TABLE IF NOT EXISTS")


def test_sarif_tells_rule_place_and_message(broken: Project) -> None:
    run = json.loads(as_sarif(validate(static=True, ini=broken.ini)))["runs"][0]
    (result,) = run["results"]
    assert "if-not-exists" == result["ruleId"]
    assert {"startLine": 24} == result["locations"][0]["physicalLocation"]["region"]
    assert [rule.__name__.replace("_", "-") for rule in OF_FILES] == [
        rule["id"] for rule in run["tool"]["driver"]["rules"]
    ]


def test_what_could_not_be_judged_is_exit_code_2(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "find_spec", lambda _: None)
    report = validate(ini=project.ini)
    assert (2, [*ON_A_SERVER]) == (report.exit_code, [*report.not_judged])
    assert "not judged: round-trip: it needs a server: pip install 'leadprotect[testing]'" in as_text(report)
    assert "::warning title=round-trip::not judged" in as_github(report)
    assert not json.loads(as_sarif(report))["runs"][0]["invocations"][0]["executionSuccessful"]


def test_a_chain_that_can_t_run_is_not_run(project: Project) -> None:
    project.add("crm_0004_contract_rows", "crm_0002_migrate_fill")
    report = validate(ini=project.ini)
    assert (1, [*ON_A_SERVER]) == (report.exit_code, [*report.not_judged])


# --- one rule, one module, one place in the reference


def test_each_rule_has_a_module_and_its_place_in_the_reference() -> None:
    page = (ROOT / "docs/reference/rules.md").read_text(encoding="utf-8")
    assert sorted(RULES) == sorted(line[3:] for line in page.splitlines() if line.startswith("## "))
    folder = ROOT / "leadprotect/authoring/rules"
    assert sorted(RULES) == sorted(path.stem.replace("_", "-") for path in folder.glob("[a-z]*.py"))
    for rule in RULES:
        assert import_module(f"leadprotect.authoring.rules.{rule.replace('-', '_')}").__doc__


# --- where it is called from


def commands(value: Any) -> list[str]:
    """Every command of ours in a file of YAML."""
    if isinstance(value, str):
        return [line for line in value.splitlines() if line.startswith("leadprotect ")]
    inner: Any = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [line for one in inner for line in commands(one)]


TEMPLATES = [*sorted((ROOT / "docs/examples/ci").iterdir()), ROOT / ".pre-commit-hooks.yaml"]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_what_a_template_calls_is_a_command_of_ours(template: Path, project: Project) -> None:
    called = commands(yaml.safe_load(template.read_text(encoding="utf-8")))
    assert called
    for line in called:
        words = [word for word in shlex.split(line.partition(">")[0])[1:] if word not in ("||", "true")]
        extra = [] if "--static" in words else ["--static"]
        assert 0 == told(project, *words, *extra)[0], line


def test_the_page_shows_the_templates_as_they_are() -> None:
    page = (ROOT / "docs/how-to/validate-revisions-in-ci.md").read_text(encoding="utf-8")
    for template in sorted((ROOT / "docs/examples/ci").iterdir()):
        assert f"../examples/ci/{template.name}" in page
