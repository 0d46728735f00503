"""`leadprotect new` and `leadprotect next`: the next revision of a host's chain, and of ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from leadprotect.authoring.chain import read_chain
from leadprotect.authoring.writing import new_revision, rebase
from leadprotect.cli import main
from leadprotect.errors import ChainError, InvalidRequest
from leadprotect.settings import files
from tests.support.chains import Project
from tests.support.database import ROOT
from tests.support.revisions import HEAD, REVISIONS

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Two revisions, the second one of migrate."""
    made = Project(tmp_path)
    made.add("crm_0001_expand_tables")
    made.add("crm_0002_migrate_fill", "crm_0001_expand_tables")
    return made


def told(*arguments: str) -> tuple[int, str]:
    ran = CliRunner().invoke(main, arguments, catch_exceptions=False)
    return ran.exit_code, ran.stdout + ran.stderr


def refused(project: Project, message: str = "add AT", phase: str = "contract") -> str:
    before = project.files
    with pytest.raises(ChainError) as caught:
        new_revision(message, phase=phase, ini=project.ini)
    assert before == project.files
    return str(caught.value)


# --- the next one


def test_the_next_revision_follows_the_head_with_the_next_number(project: Project) -> None:
    made = new_revision("add AT", phase="contract", ini=project.ini)
    assert ("crm_0003_contract_add_at", "crm_0002_migrate_fill") == (made.revision, made.below)
    assert ["crm_0003_contract_add_at"] == [head.id for head in project.chain.heads]
    written = project.chain.revisions[-1]
    assert ("contract", 3, "crm_0003_contract_add_at.py") == (written.phase, written.number, written.file.name)
    for question in ("Why: ...", "Locks on host tables: ", "Undone by: ..."):
        assert f"\n\n{question}" in written.doc


@pytest.mark.parametrize(
    ("message", "name", "expected"),
    [
        ("add AT", None, "add_at"),
        ("Füge Österreich hinzu", None, "fuege"),  # whole words, as many as fit
        ("Verantwortlichkeiten", None, "verantwortlich"),
        ("How many leads each seller owns", "load", "load"),
    ],
)
def test_the_id_ends_with_the_subject(project: Project, message: str, name: str | None, expected: str) -> None:
    made = new_revision(message, phase="contract", name=name, ini=project.ini)
    assert f"crm_0003_contract_{expected}" == made.revision
    assert len(made.revision) <= 32


@pytest.mark.parametrize(("name", "said"), [("Add AT", "small letters"), ("a" * 20, "longer than 32 characters")])
def test_a_name_that_no_id_can_hold_is_refused(project: Project, name: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        new_revision("add AT", phase="contract", name=name, ini=project.ini)


@pytest.mark.parametrize("message", ["", " . ", '"""', "a\\b"])
def test_a_message_that_says_nothing_or_ends_the_docstring_is_refused(project: Project, message: str) -> None:
    with pytest.raises(InvalidRequest, match="message"):
        new_revision(message, phase="contract", ini=project.ini)


def test_a_chain_without_an_id_of_ours_is_asked_for_a_prefix_once(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.add("ae1027a6acf", file="ae1027a6acf_first")
    assert "no id tells a prefix yet: leadprotect new ... --prefix crm" in refused(project)
    made = new_revision("add AT", phase="expand", prefix="crm", ini=project.ini)
    assert ("crm_0001_expand_add_at", "ae1027a6acf") == (made.revision, made.below)
    answer(made.file)
    with pytest.raises(InvalidRequest, match="begin with crm_, so leave out --prefix erp"):
        new_revision("add CH", phase="expand", prefix="erp", ini=project.ini)


def answer(file: Path) -> None:
    file.write_text(file.read_text(encoding="utf-8").replace(": ...", ": it is needed."), encoding="utf-8")


def test_in_a_checkout_the_next_revision_is_one_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "migrations", tmp_path / "migrations", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "alembic.ini", tmp_path)
    monkeypatch.setattr("leadprotect.authoring.chain.version_path", lambda: str(tmp_path / "migrations/versions"))
    monkeypatch.chdir(tmp_path)
    assert (0, f"{len(REVISIONS) + 1:04}\n") == told("next")
    made = new_revision("add AT", phase="expand")
    assert (f"lp_{len(REVISIONS) + 1:04}_expand_add_at", HEAD) == (made.revision, made.below)
    assert "from leadprotect.settings import sql" in made.file.read_text(encoding="utf-8")


def test_a_revision_is_never_written_into_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ini = files.write_ini(tmp_path)
    monkeypatch.setattr("leadprotect.authoring.chain.migrations", lambda: ROOT / "leadprotect/migrations")
    with pytest.raises(ChainError, match="no place for yours: make a project of your own"):
        new_revision("add AT", phase="expand", ini=ini)


def test_beside_our_revisions_a_host_s_own_folder_is_the_chain(project: Project) -> None:
    ours = files.version_path()
    more = f"version_locations = %(here)s/mig/versions{os.pathsep}{ours}\n"
    project.ini.write_text(project.ini.read_text(encoding="utf-8") + more, encoding="utf-8")
    assert project.versions == read_chain(ini=project.ini).folder


# --- a chain that is not clean


def test_two_heads_are_refused_with_the_remedy(project: Project) -> None:
    project.add("crm_0003_contract_at", "crm_0002_migrate_fill")
    project.add("crm_0004_contract_fr", "crm_0002_migrate_fill")
    assert "crm_0003_contract_at and crm_0004_contract_fr are both heads" in refused(project)
    assert "leadprotect new --rebase" in refused(project)


def test_a_number_taken_twice_is_refused_though_one_is_not_committed(project: Project) -> None:
    project.add("crm_0002_contract_drop", "crm_0002_migrate_fill")
    said = refused(project)
    assert "crm_0002_migrate_fill.py:12: numbering: the number 0002 is taken twice" in said


def test_a_gap_is_refused(project: Project) -> None:
    project.add("crm_0004_contract_drop", "crm_0002_migrate_fill")
    assert "0004 follows 0002: a number is left out" in refused(project)
    assert "call it 0003" in refused(project)


def test_a_predecessor_that_is_not_there_is_refused(project: Project) -> None:
    project.add("crm_0003_contract_drop", "crm_0009_migrate_lost")
    assert "it names crm_0009_migrate_lost as its predecessor, and there is no such revision" in refused(project)


def test_a_placeholder_that_was_left_is_refused(project: Project) -> None:
    project.add("crm_XXXX_contract_drop", "crm_0002_migrate_fill")
    assert "crm_XXXX_contract_drop does not tell prefix, number" in refused(project)
    assert (1, "") == (told("-c", str(project.ini), "next")[0], "")


def test_a_question_that_was_not_answered_is_refused_before_the_next_revision(project: Project) -> None:
    made = new_revision("add AT", phase="contract", ini=project.ini)
    said = refused(project, "add FR")
    assert f"{made.file}:3: placeholders: 'Why:' is not answered" in said


def test_a_phase_that_can_t_follow_the_head_is_refused(project: Project) -> None:
    assert "expand may follow a contract only: write --phase migrate or contract" in refused(project, phase="expand")


def test_a_file_that_python_can_t_read_is_named_with_its_line(project: Project) -> None:
    (project.versions / "crm_0003_contract_drop.py").write_text("revision = (\n", encoding="utf-8")
    assert "crm_0003_contract_drop.py:1: Python can't read it" in refused(project)


# --- two branches


def branches(project: Project) -> None:
    """Two that were made from one head; the first is in a commit, the second is not."""
    git = ["git", "-C", str(project.folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    project.add("crm_0003_migrate_at", "crm_0002_migrate_fill")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    project.add("crm_0003_contract_fr", "crm_0002_migrate_fill")
    project.add("crm_0004_contract_it", "crm_0003_contract_fr")


def test_the_branch_that_came_last_goes_behind_the_other(project: Project) -> None:
    branches(project)
    moved = rebase(ini=project.ini)
    assert [
        ("crm_0003_contract_fr", "crm_0004_contract_fr", "crm_0003_migrate_at"),
        ("crm_0004_contract_it", "crm_0005_contract_it", "crm_0004_contract_fr"),
    ] == [(one.before, one.after, one.below) for one in moved]
    assert ["crm_0001", "crm_0002", "crm_0003", "crm_0004", "crm_0005"] == [one.id[:8] for one in project.chain.linked]
    assert project.files == [f"{one.id}.py" for one in project.chain.linked]
    assert 6 == new_number(project)


def test_the_branch_that_is_named_goes_behind_the_other(project: Project) -> None:
    project.add("crm_0003_migrate_at", "crm_0002_migrate_fill")
    project.add("crm_0003_migrate_fr", "crm_0002_migrate_fill")
    code, said = told("-c", str(project.ini), "new", "--rebase", "crm_0003_migrate_at", "--json")
    assert 0 == code
    assert "crm_0004_migrate_at" == json.loads(said)["moved"][0]["after"]
    assert ["crm_0003_migrate_fr", "crm_0004_migrate_at"] == [one.id for one in project.chain.linked[2:]]


def test_a_branch_is_not_put_where_its_phase_may_not_be(project: Project) -> None:
    made = Project(project.folder / "other")
    made.add("crm_0001_expand_tables")
    made.add("crm_0002_migrate_at", "crm_0001_expand_tables")
    made.add("crm_0002_expand_fr", "crm_0001_expand_tables")
    with pytest.raises(ChainError, match="leadprotect new --rebase crm_0002_migrate_at"):
        rebase("crm_0002_expand_fr", ini=made.ini)
    assert "crm_0003_migrate_at" == rebase("crm_0002_migrate_at", ini=made.ini)[0].after


def test_nothing_is_moved_where_nothing_tells_which_is_newer(project: Project) -> None:
    for name in ("crm_0003_migrate_at", "crm_0003_migrate_fr"):
        os.utime(project.add(name, "crm_0002_migrate_fill"), (1, 1))
    before = project.files
    with pytest.raises(ChainError, match="--rebase crm_0003_migrate_at or crm_0003_migrate_fr"):
        rebase(ini=project.ini)
    assert before == project.files


def test_there_is_nothing_to_rebase_in_a_chain_with_one_head(project: Project) -> None:
    with pytest.raises(ChainError, match="it needs two heads"):
        rebase(ini=project.ini)


def new_number(project: Project) -> int:
    code, said = told("-c", str(project.ini), "next", "--json")
    assert 0 == code, said
    return int(json.loads(said)["number"])


# --- the command


@pytest.mark.parametrize(
    "arguments",
    [("new",), ("new", "add AT"), ("new", "--phase", "expand"), ("new", "x", "--rebase"), ("new", "x", "--phase", "y")],
    ids=" ".join,
)
def test_wrong_usage_of_new_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    assert 2 == told(*arguments)[0]


def test_without_an_alembic_ini_the_command_says_what_makes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = told("new", "add AT", "--phase", "expand")
    assert (1, True) == (code, "leadprotect init writes one" in said)
