"""The house: rooms with captions, floors that hold, one name for one thing."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import leadprotect
from tests.support.database import ROOT
from tests.support.house import MODULES, PACKAGE, ROOMS, defined, kept

FLOORS = "each room stands on those below it BROKEN"
CIRCLE = "no module of a room leads back to itself BROKEN"
ON_TOP = "from leadprotect.cli import main\n"
FOR_TYPES = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "
BACK = "from leadprotect.settings import load\n"  # which imports files


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package and its contracts, to be broken."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "leadprotect", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint_imports(folder: Path) -> str:
    """What `make lint` asks of the imports; empty when every contract is kept."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    done = subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(folder)}, text=True, capture_output=True, check=False
    )
    assert (done.returncode == 0) == (" 0 broken" in done.stdout), done.stdout + done.stderr
    return "" if done.returncode == 0 else done.stdout


# --- floors


def test_the_floors_hold(copy: Path) -> None:
    assert "" == lint_imports(copy)


@pytest.mark.parametrize(
    ("module", "planted", "broken"),
    [
        ("settings/files.py", ON_TOP, FLOORS),
        ("settings/files.py", FOR_TYPES + ON_TOP, FLOORS),
        ("settings/files.py", BACK, CIRCLE),
        ("settings/files.py", FOR_TYPES + BACK, CIRCLE),
        ("access/checks.py", "import rich\n", "a service loads no terminal, no command line and no migration BROKEN"),
    ],
    ids=["upwards", "upwards for types", "circle", "circle for types", "terminal"],
)
def test_a_planted_import_breaks_its_contract(copy: Path, module: str, planted: str, broken: str) -> None:
    with (copy / "leadprotect" / module).open("a", encoding="utf-8") as file:
        file.write("\n" + planted)
    assert broken in lint_imports(copy)


def test_a_room_without_a_floor_breaks_the_contract(copy: Path) -> None:
    (copy / "leadprotect" / "attic").mkdir()
    (copy / "leadprotect" / "attic" / "__init__.py").write_text('"""For nobody."""\n', encoding="utf-8")
    assert "attic" in lint_imports(copy)


@pytest.mark.parametrize(
    ("wanted", "heavy"),
    [
        ("leadprotect.cli", ["alembic", "psycopg", "rich", "sqlalchemy"]),
        ("leadprotect.cli.status", ["alembic", "sqlalchemy"]),
        ("leadprotect.cli.doctor", ["alembic", "rich", "sqlalchemy"]),
        ("leadprotect.cli.plan", ["alembic", "rich", "sqlalchemy"]),
        ("leadprotect.cli.backfill", ["alembic", "sqlalchemy"]),
        ("leadprotect.cli.audit", ["alembic", "sqlalchemy"]),
    ],
)
def test_a_command_loads_nothing_heavy_that_it_does_not_use(wanted: str, heavy: list[str]) -> None:
    """Half a second of loading before each probe of a deployment, and before each page of help."""
    ask = f"import sys, {wanted}; print(sorted({{*{heavy}}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", ask], text=True, capture_output=True, check=True)
    assert "[]" == done.stdout.strip()


def test_a_public_name_is_loaded_from_where_a_checker_of_types_reads_it() -> None:
    (typed,) = [one for one in ast.parse((PACKAGE / "__init__.py").read_text("utf-8")).body if isinstance(one, ast.If)]
    homes = {
        alias.name: (line.module or "").removeprefix("leadprotect.")
        for line in typed.body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }
    assert homes == leadprotect._HOMES  # noqa: SLF001 - what the package keeps beside the imports
    assert sorted(homes) == leadprotect.__all__


def test_a_name_that_the_package_does_not_have_is_an_error_of_python_s_own() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'bakfill'"):
        getattr(leadprotect, "bakfill")  # noqa: B009 - as a typing mistake would ask for it


def test_a_service_that_imports_the_package_loads_no_terminal_no_command_line_and_no_migration() -> None:
    ask = "import sys, leadprotect; print(sorted({'alembic', 'click', 'rich'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", ask], text=True, capture_output=True, check=True)
    assert "[]" == done.stdout.strip()


# --- names


def test_a_room_begins_with_its_caption() -> None:
    first = {room: (PACKAGE / room / "__init__.py").read_text(encoding="utf-8").splitlines()[0] for room in ROOMS}
    assert [] == [room for room, line in first.items() if not re.fullmatch(r'"""[A-Z][^"]{20,}\.(""")?', line)]


def test_no_module_hides_behind_an_underscore() -> None:
    names = [module.rpartition(".")[2] for module in MODULES]
    assert ["__main__"] == [name for name in names if name.startswith("_")]


def test_no_two_modules_give_one_name_to_two_things() -> None:
    places = defaultdict(list)
    for module, path in MODULES.items():
        for name in defined(path) if module != "leadprotect.aio" else ():  # whose names are those of what it calls
            places[name].append(module)
    doubled = {name: modules for name, modules in places.items() if len(modules) > 1}
    assert {} == doubled


# --- what a process keeps


def test_whatever_outlives_a_call_is_given_up_between_two_tests() -> None:
    """A new one belongs into the fixture `process` of tests/conftest.py: else a test's end is the next one's begin."""
    given_up = {
        "leadprotect.access.binding": ["_bound"],
        "leadprotect.access.context": ["_standing", "_lasting", "_replacing", "_set"],
        "leadprotect.access.places": ["living"],
        "leadprotect.access.routing": ["_engines", "_routes"],
        "leadprotect.access.ways": ["_ways"],
        "leadprotect.database.bound": ["_of"],
        "leadprotect.database.statements": ["owed"],
        "leadprotect.database.transactions": ["_listeners", "_refused"],
        "leadprotect.database.waiting": ["_spawner"],
        "leadprotect.doctor.likeness": ["_of_any_database", "_expressions", "_neutral_roles", "_claims", "_names"],
        "leadprotect.doctor.shipped": ["shipped", "shipped_script"],
        "leadprotect.integrations.django": ["_standing"],  # of a process of its own: Django takes its settings once
        "leadprotect.metrics": ["_active"],
        "leadprotect.settings.load": ["_warn_once"],
        "leadprotect.settings.names": ["render", "names"],
    }
    only_unique = {"_blocks", "_cursors"}
    of_a_text = {"_compiled", "_neutral", "sources"}  # the same answer to the same text, whichever test asks
    kept_on = only_unique | of_a_text
    found = {module: [name for name in kept(path) if name not in kept_on] for module, path in MODULES.items()}
    assert given_up == {module: names for module, names in found.items() if names}


# --- what is cited


SOURCES = [
    path
    for pattern in (
        "leadprotect/**/*",
        "migrations/**/*",
        "tests/**/*",
        "docs/**/*.md",
        "docs/**/*.py",
        "*.md",
        "*.toml",
    )
    for path in sorted(ROOT.glob(pattern))
    if path.suffix in {".py", ".mako", ".sql", ".html", ".md", ".toml"} and "_build" not in path.parts
]
# what a design is written down in before it has docs
NOTES = ("architecture", "design", "faults", "house", "plan", "spec", "speed", "style", "threats")
CITED = re.compile(rf"\b(?:{'|'.join(NOTES).upper()})\b|\b[A-Z]{{3,}} section \d|[\w./-]+\.(?:md|rst)\b")


def unknown(text: str, folder: Path) -> list[str]:
    """Documents that a text cites and nobody finds, from its own folder, the root or the reference."""
    places = (folder, ROOT, ROOT / "docs" / "reference")
    return [found for found in CITED.findall(text) if not any((place / found).is_file() for place in places)]


def test_a_source_cites_only_documents_that_are_here() -> None:
    cited = {path: unknown(path.read_text(encoding="utf-8"), path.parent) for path in SOURCES}
    assert {} == {path: found for path, found in cited.items() if found}


@pytest.mark.parametrize("name", ["design", "house"])
def test_a_citation_of_a_note_would_be_found(name: str) -> None:
    text = f"Source of the rule: {name.upper()}, decisions, and docs/{name}.md."
    assert [name.upper(), f"docs/{name}.md"] == unknown(text, ROOT)


def test_no_revision_is_longer_than_a_reviewer_reads_in_one_sitting() -> None:
    revisions = (ROOT / "migrations/versions").glob("*.py")
    lines = {file.name: len(file.read_text(encoding="utf-8").splitlines()) for file in revisions}
    assert lines
    assert {} == {name: count for name, count in lines.items() if count > 650}
