"""The tutorial's commands, run in order in a kept demo, do what the page says."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import pytest

from leadprotect.cli.demo import LEADS
from leadprotect.lab.demo import data
from tests.support.pages import Block, not_said
from tests.support.tutorial import IMAGE, PAGE, answer, kept_demo, terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = re.compile(r"^```(console|python|text)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def shell() -> Iterator[str]:
    """The lines that a kept demo prints for copying: a folder, an URL and a PATH."""
    with kept_demo(0.02) as lines:
        yield lines


def test_the_tutorial_runs_from_the_first_line_to_the_last(shell: str) -> None:
    outputs: list[str] = []
    asked: list[str] = []
    for kind, block in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if kind == "text":
            assert outputs[-1] == block
        elif kind == "python":
            outputs.append(answer(shell, f"{sys.executable} - <<'END'\n{block}END\n"))
            asked.append(block)
        else:
            for command, shown in Block("tutorial", 0, kind, block).commands:
                outputs.append(answer(shell, command))
                asked.append(command)
                assert shown
                assert [] == not_said(shown, outputs[-1]), command

    def said(*words: str) -> list[str]:
        return [told for command, told in zip(asked, outputs, strict=True) if all(word in command for word in words)]

    before, after, again = said("psql", "seller_de", "GROUP BY 1")
    assert ("CH" in before, "CH" in after, "CH" in again) == (True, False, True)
    (forged,), (audit,) = said("psql", "WHERE territory = 'CH'"), said("psql", "lead_access_audit")
    assert re.search(r"^ +0$", forged, re.MULTILINE)
    assert "seller_de | EDIT   | DENY    | not_owner" in audit


def test_the_figures_are_those_of_the_demo() -> None:
    seen = data.invent(LEADS).leads()
    germany = sum(lead[1] == "DE" for lead in seen)
    page = PAGE.read_text(encoding="utf-8")
    assert f" DE        | {germany}\n" in page
    assert f"DE: {germany:,} leads scanned" in page


def test_the_picture_of_a_terminal_shows_what_the_page_shows() -> None:
    assert terminal() == IMAGE.read_text(encoding="utf-8"), "run `make tutorial`"
