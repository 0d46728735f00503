"""What the how-tos about owners and rules say, does what they say, line by line."""

from __future__ import annotations

import re
import shlex
from datetime import UTC, datetime
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

import leadprotect
from leadprotect import settings
from leadprotect.cli import main

if TYPE_CHECKING:
    from tests.support.database import Database

HOW_TO = Path(__file__).parents[2] / "docs/how-to"
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PEOPLE = {"anna": 1, "bert": 2, "carla": 3, "manager": 9}
RECORDED = {
    "cover-a-holiday": ["ASSIGN owner"] * 3 + ["ASSIGN manager", "UNASSIGN manager"],
    "hand-over-the-leads-of-a-seller": ["ASSIGN manager"] * 5 + ["UNASSIGN manager", "ASSIGN manager"],
    "suspend-somebody": ["ASSIGN manager", "ASSIGN manager", "UNASSIGN manager"],
    "share-a-lead": ["ASSIGN owner", "ASSIGN manager", "UNASSIGN owner"],
}
"""Page -> what the audit has in the end."""


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("page", RECORDED)
def test_each_line_of_the_page_does_what_it_says(
    database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, page: str
) -> None:
    monkeypatch.chdir(tmp_path)
    leads = [database.lead("DE", owner=database.user(1)) for _ in range(3)]
    of_bert = database.lead("DE", owner=database.user(2))
    Path("north.txt").write_text(f"{of_bert}\n", encoding="utf-8")
    Path("nobody.txt").write_text(f"{of_bert}\n", encoding="utf-8")
    names = {name: database.user(number) for name, number in PEOPLE.items()}
    words = {name.upper(): user for name, user in names.items()} | {"LEAD": str(leads[0])}
    monkeypatch.setenv("DATABASE_URL", database.login_url("manager_de"))
    settings.current.cache_clear()
    text = (HOW_TO / f"{page}.md").read_text(encoding="utf-8")
    owner_s = "ASSIGN owner" in RECORDED[page]  # his service does it
    with database.engine("seller_de" if owner_s else "manager_de") as engine:
        known: dict[str, Any] = {"engine": engine, "leadprotect": leadprotect, "datetime": datetime, "UTC": UTC}
        known |= names | {"lead_id": leads[0]}
        for kind, block in BLOCK.findall(text):
            if kind == "python":
                exec(block, known)  # noqa: S102 - our own page
            else:
                run(Template(block).safe_substitute(words))
    assert RECORDED[page] == [f"{action} {reason}" for action, _, reason in database.audit()]


def run(block: str) -> None:
    """Each command of a shell, and its output where the page shows it."""
    for command, shown in re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", block, re.MULTILINE):
        done = CliRunner().invoke(main, shlex.split(command)[1:])
        assert 0 == done.exit_code, f"{command}\n{done.output}"
        assert shown in ("", done.stdout)
