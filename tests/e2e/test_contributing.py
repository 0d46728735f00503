"""What CONTRIBUTING.md tells a newcomer is done here, word for word."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

from leadprotect import phases
from tests.support.alembic import alembic
from tests.support.database import ROOT
from tests.support.fingerprint import difference, fingerprint
from tests.support.house import ROOMS
from tests.support.revisions import HEAD, REVISIONS

if TYPE_CHECKING:
    from tests.support.database import Database

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MAP = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| (.+?) \|$", PAGE, re.MULTILINE)
EXAMPLE = PAGE.partition("## Worked example")[2].partition("\n## ")[0]
NUMBER = f"lp_{len(REVISIONS) + 1:04}"


# --- where things are


def test_every_room_is_on_the_map_once() -> None:
    assert sorted(room for room, *_ in MAP) == ROOMS


@pytest.mark.parametrize(("room", "proof"), [(room, proof) for room, *_, proof in MAP])
def test_every_test_on_the_map_is_there(room: str, proof: str) -> None:
    named = re.findall(r"`(tests/[\w/*.]+)`", proof)
    assert named, f"{room}: name the tests that prove it"
    assert [] == [pattern for pattern in named if not list(ROOT.glob(pattern))]


# --- the worked example


def command() -> list[str]:
    """The command of the first step, as the page prints it."""
    return shlex.split(re.findall(r"^ {7}(leadprotect new .*)$", EXAMPLE, re.MULTILINE)[0])


def printed() -> list[str]:
    """The files that the page prints: the revision, then its test."""
    return [dedent(block) for block in re.findall(r"^ {3}```python\n(.*?)^ {3}```$", EXAMPLE, re.MULTILINE | re.DOTALL)]


def test_the_example_comes_after_the_present_head() -> None:
    named = {*re.findall(r"lp_\d{4}_expand_owner_load", EXAMPLE)}
    wanted = f"{NUMBER}_expand_owner_load"
    assert {wanted} == named, f"CONTRIBUTING.md: the example's id must be {wanted}, in the text and in the file"
    below = re.findall(r'^down_revision = "(.*)"$', printed()[0], re.MULTILINE)
    assert [HEAD] == below, f'CONTRIBUTING.md: write down_revision = "{HEAD}"'


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the checkout, without what was built in it but what mypy knows of it: asked anew it takes 13 s."""
    caches = (".pytest_cache", ".ruff_cache", ".hypothesis", "__pycache__")
    built = (".git", ".venv", "*.egg-info", *caches, "dist", "_build")
    copy = tmp_path / "leadprotect"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*built))
    return copy


def run(checkout: Path, *arguments: str) -> str:
    """Run a module of Python in the checkout, which comes first on its path; what it printed, when it ended well."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=checkout,
        env={**os.environ, "PATH": path},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def lint(checkout: Path, *files: Path) -> None:
    """What `make lint` says of these files."""
    run(checkout, "ruff", "check", "--no-cache", *map(str, files))
    run(checkout, "ruff", "format", "--no-cache", "--check", *map(str, files))
    run(checkout, "mypy", *map(str, files))


def just_made(checkout: Path) -> dict[Path, str]:
    """Files that nobody filled in, by our command and by Alembic's, with their texts; they are taken away again."""
    made = []
    for number, (phase, message) in enumerate([("expand", "How many leads"), ("contract", "how many leads.")], start=1):
        revision = f"lp_{len(REVISIONS) + number:04}_{phase}_load"
        ask = ["leadprotect", "new", message, "--name", "load", "--phase", phase]
        if number > 1:  # the first one is not filled in, which is one reason more to ask Alembic itself
            ask = ["alembic", "revision", "--rev-id", revision, "-m", message]
        run(checkout, *ask)
        made.append(checkout / "migrations" / "versions" / f"{revision}.py")
    texts = {file: file.read_text(encoding="utf-8") for file in made}
    for file, text in texts.items():
        assert text.startswith('"""How many leads.\n')
        assert f'\nphase = "{phases.phase(file.stem)}"\n' in text
        file.unlink()
    return texts


@pytest.mark.profiles("pg18")
def test_the_example_does_what_the_page_says(checkout: Path, database: Database) -> None:
    """And what was just made passes the linters, too: they take seconds to begin."""
    unfilled = just_made(checkout)
    words, (revision, test) = command(), printed()
    run(checkout, *words)
    file = checkout / "migrations" / "versions" / f"{NUMBER}_expand_owner_load.py"
    assert file.is_file()
    file.write_text(revision, encoding="utf-8")
    own_test = checkout / re.findall(r"in `(tests/\S+\.py)`", EXAMPLE)[0]
    own_test.write_text(test, encoding="utf-8")
    for path, text in unfilled.items():
        path.write_text(text, encoding="utf-8")
    lint(checkout, file, own_test, *unfilled)
    for path in unfilled:
        path.unlink()

    def catalog() -> dict[str, str]:
        with database.connect(autocommit=True) as conn:
            return fingerprint(conn, database.settings)

    before = catalog()
    assert 0 == alembic(database, "upgrade", "head", cwd=checkout).returncode
    after = catalog()
    assert any("v_owner_load" in name for name in difference(before, after))
    assert 0 == alembic(database, "downgrade", "-1", cwd=checkout).returncode
    assert {} == difference(before, catalog())
    assert 0 == alembic(database, "upgrade", "head", cwd=checkout).returncode
    assert {} == difference(after, catalog())

    run(checkout, "tests.support.schema_page")
    run(checkout, "tests.support.shipped")
    asked = ("tests/migrations/test_lint.py", "tests/migrations/test_schema_page.py", str(own_test))
    # the chain was walked up and down above, and of the revisions this one is new
    these = "not pg15 and not other_names and not up_down and not test_upgrade and (owner_load or not lp_)"
    said = run(checkout, "pytest", "-q", "-p", "no:cacheprovider", "-k", these, *asked)
    assert re.search(r"^\d+ passed", said, re.MULTILINE)
