"""A command that names territories goes to the databases that have them, and to none where no database does."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from leadprotect.cli import main
from leadprotect.cli.backfill import backfill_group
from leadprotect.errors import InvalidRequest
from leadprotect.fleet.parts import BACKFILL_COMMANDS, WITHOUT_VALUE, part_of, require_held
from leadprotect.settings import parse
from leadprotect.settings.files import write_ini

URLS = {"DE": "postgresql://a/x", "CH": "postgresql://b/x", "1": "postgresql://a/x", "2": "postgresql://b/x"}
SETTINGS = parse({"territories": "DE, CH, 1: one, 2: two"}, {}, URLS)


@pytest.mark.parametrize(
    ("command", "first", "second"),
    [
        ("backfill DE CH", "backfill DE", "backfill CH"),
        ("backfill DE --json", "backfill DE --json", None),
        ("backfill --all --workers 2", "backfill --all --workers 2", "backfill --all --workers 2"),
        # the value of an option is no territory, whatever it looks like
        ("backfill 1 2 --workers 1 -h=2", "backfill 1 --workers 1 -h=2", "backfill 2 --workers 1 -h=2"),
        ("backfill pause --reason DE CH", None, "backfill pause --reason DE CH"),
        ("backfill status", "backfill status", "backfill status"),
        ("backfill -- CH", None, "backfill -- CH"),
        ("audit list --territory CH --last 5", None, "audit list --territory CH --last 5"),
        ("audit list --territory=DE --territory CH", "audit list --territory=DE", "audit list --territory CH"),
        ("audit list --note DE", "audit list --note DE", "audit list --note DE"),
        ("status DE", "status DE", "status DE"),
    ],
)  # fmt: skip
def test_it_goes_to_those_that_have_what_it_names(command: str, first: str | None, second: str | None) -> None:
    require_held(SETTINGS, command.split())
    parts = [part_of(one, command.split()) for one in SETTINGS.databases]
    assert [first, second] == [part and " ".join(part) for part in parts]


def test_rows_without_a_territory_are_everywhere() -> None:
    command = ["audit", "list", "--territory", "", "--territory", "CH"]
    require_held(SETTINGS, command)
    assert [command[:4], command] == [part_of(one, command) for one in SETTINGS.databases]


@pytest.mark.parametrize(
    "words", ["backfill Spain", "backfill DE Spain", "backfill stop Spain", "audit list --territory Spain"]
)
def test_a_territory_that_no_database_has_is_told_once(tmp_path: object, words: str) -> None:
    file = write_ini(tmp_path, {"leadprotect.databases": URLS}, territories="DE, CH, 1: one, 2: two")  # type: ignore[arg-type]
    done = CliRunner().invoke(main, ["-c", str(file), "--fleet", *words.split()], env={"DATABASE_URL": None})
    assert 1 == done.exit_code
    assert (
        "Error: territory: 'Spain' is in no database of [leadprotect.databases]; those hold DE, 1, CH, 2; "
        "correct it, or write it into the section\n"
    ) == done.output


def test_a_territory_is_made_and_taken_away_in_one_database() -> None:
    for words in (["add", "North America"], ["rename", "AT", "FR"], ["remove", "AT"]):
        with pytest.raises(InvalidRequest, match=r"lives in one; say which: leadprotect --on DE territory"):
            require_held(SETTINGS, ["territory", *words])
    require_held(SETTINGS, ["territory", "list"])


def test_what_takes_no_value_is_what_the_backfill_says() -> None:
    commands = backfill_group.commands.values()
    flags = {
        name for one in commands for param in one.params if isinstance(param, click.Option) and param.is_flag
        for name in param.opts
    }  # fmt: skip
    assert {*WITHOUT_VALUE} == flags | {"--help"}
    assert {*BACKFILL_COMMANDS} == {*backfill_group.commands}
