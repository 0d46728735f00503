from __future__ import annotations

import re
from collections import Counter

import pytest

from leadprotect.cli.demo import LEADS
from leadprotect.lab.demo import data
from tests.support.database import ROOT
from tests.support.readme import for_an_index

README = (ROOT / "README.md").read_text(encoding="utf-8")
FIRST_SCREEN = README.splitlines()[:25]


def test_the_first_screen_holds_what_a_visitor_needs() -> None:
    text = "\n".join(FIRST_SCREEN)
    assert {"make demo", "make test", "SELECT", "can_edit"} <= set(re.findall(r"make \w+|SELECT|can_edit", text))
    assert "[Tutorial]" in text


def test_the_figures_are_those_of_the_demo() -> None:
    seen = Counter(lead[1] for lead in data.invent(LEADS).leads())
    assert f"{LEADS:,} leads" in README
    assert f"seller_de:  DE {seen['DE']:,} and {seen[None]:,} without a territory" in README
    assert f"seller_ch:  CH {seen['CH']:,} and {seen[None]:,} without a territory" in README


def test_what_a_package_index_shows_links_to_nothing_in_the_checkout() -> None:
    shown = (ROOT / "docs/package.md").read_text(encoding="utf-8")
    assert for_an_index(README) == shown, "run `make readme`"
    assert [] == [target for target in re.findall(r"\]\(([^)]+)\)", shown) if not target.startswith("https://")]
    assert 'readme = "docs/package.md"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_every_link_leads_to_a_file(target: str) -> None:
    assert (ROOT / target).is_file()
