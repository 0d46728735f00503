"""What the pages tell to write into an ini file is what the settings understand, and what a page shows is compared."""

from __future__ import annotations

import configparser

import pytest

from leadprotect.settings import parse
from tests.support.pages import HOW_TO, Block, blocks, not_said

OURS = [
    block
    for page in ("derive-owners-from-your-data", "use-with-postgrest-and-supabase")
    for block in blocks(HOW_TO / f"{page}.md")
    if block.kind == "ini"
]


@pytest.mark.parametrize("block", OURS, ids=str)
def test_the_settings_of_a_page_are_settings(block: Block) -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(block.text)
    further = {name.split(".")[2]: dict(parser[name]) for name in parser.sections() if name.count(".") > 1}
    known = parse(dict(parser["leadprotect"]), further)
    assert {*parser["leadprotect"].values()} & {str(known.user_guc), str(known.activity_condition)}
    assert len(further) == len(known.further_activities)


def test_a_page_that_shows_another_answer_is_found() -> None:
    said = "DE: 903 rows sealed; seal 57 is be69aa...\nin between\nlast line of 3"
    assert [] == not_said("DE: 12 rows sealed; seal 1 is 0f12...\n...\nlast line of 99\n", said)
    assert ["CH: 12 rows sealed"] == not_said("CH: 12 rows sealed\n", said)
    # in another order
    assert ["in between"] == not_said("last line of 3\nin between\n", said)


def test_commands_and_statements_are_what_a_reader_types() -> None:
    shown = Block("page", 0, "console", "$ one 'a'\nanswer\n  more\n$ two\n")
    assert [("one 'a'", "answer\n  more\n"), ("two", "")] == shown.commands
    text = "SELECT 1; -- why\nCREATE FUNCTION f() AS $$\nBEGIN\n  RETURN;\nEND $$;\n"
    assert ["SELECT 1; -- why", text.partition("why\n")[2].strip()] == Block("page", 0, "sql", text).statements
