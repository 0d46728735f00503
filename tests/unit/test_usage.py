"""Wrong usage, of every command there is: exit code 2, one line, the hint at help, and nothing asked of a database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner

from leadprotect.cli import main
from leadprotect.cli.words import Duration, Moment
from tests.support.commands import leaves

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMANDS = dict(leaves(main))
NOWHERE = "postgresql://nobody@127.0.0.1:1/nowhere"
TEXT = (click.STRING, click.UNPROCESSED)
COUNTED = [
    path
    for path, command in COMMANDS.items()
    if all(one.nargs == 1 for one in command.params if isinstance(one, click.Argument))
]
"""Commands that take so many words and no more."""

PROGRAM_DECIDES = {
    ("completion",): "it prints a script for a shell",
    ("audit", "export"): "it writes JSON lines already",
}
"""Commands without --json, and why."""


def read_values() -> Iterator[tuple[tuple[str, ...], click.Option]]:
    """Options whose value is more than a text."""
    for path, command in COMMANDS.items():
        for option in command.params:
            if not isinstance(option, click.Option) or option.is_flag or option.type in TEXT:
                continue
            if getattr(option.type, "exists", True):  # a file to be written may have any name
                yield path, option


READ = {" ".join([*path, option.opts[-1]]): (path, option) for path, option in read_values()}


def refused(words: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What is said to wrong usage, without its first line, which is the usage."""
    monkeypatch.setenv("DATABASE_URL", NOWHERE)
    ran = CliRunner().invoke(main, words)
    assert 2 == ran.exit_code, f"{words}: exit code {ran.exit_code} instead of 2\n{ran.output}\n{ran.exception!r}"
    assert "Traceback" not in ran.output
    assert "" == ran.stdout
    assert "--help' for help." in ran.stderr, ran.stderr
    return ran.stderr


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_an_unknown_option_is_wrong_usage(path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    said = refused([*path, "--no-such-option"], monkeypatch)
    assert 1 == len([line for line in said.splitlines() if line.startswith("Error: No such option")])


@pytest.mark.parametrize("path", COUNTED, ids=" ".join)
def test_more_words_than_a_command_takes_are_wrong_usage(
    path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    takes = [one for one in COMMANDS[path].params if isinstance(one, click.Argument)]
    needed = [word for one in COMMANDS[path].params if isinstance(one, click.Option) and one.required
              for word in (one.opts[-1], sample(one))]  # fmt: skip
    refused([*path, *needed, *("x" for _ in takes), "one", "too", "many"], monkeypatch)


def sample(option: click.Option) -> str:
    """A value that the option accepts."""
    if isinstance(option.type, Moment):
        return "2026-01-01T00:00Z"
    return "2026-01" if option.type.name == "month" else "x"


@pytest.mark.parametrize("name", READ)
def test_a_value_that_can_not_be_read_is_wrong_usage_and_names_the_option(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, option = READ[name]
    said = refused([*path, option.opts[-1], "☃"], monkeypatch)
    assert option.opts[-1] in said


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_duration_is_read_by_the_one_grammar(path: tuple[str, ...]) -> None:
    """An option whose help speaks of how long is a `words.Duration`; one that counts says what it counts."""
    for option in COMMANDS[path].params:
        if isinstance(option, click.Option) and (option.help or "").lower().startswith("how long"):
            told = f"{' '.join(path)} {option.opts[-1]}: declare it with type=leadprotect.cli.words.Duration()"
            assert isinstance(option.type, Duration), told


@pytest.mark.parametrize("text", ["250ms", "60s", "2min", "12 hours", "7 days", "30"])
def test_backfill_waits_as_long_as_any_duration_says(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", NOWHERE)
    for option in ("--patience", "--max-replica-lag"):
        ran = CliRunner().invoke(main, ["backfill", "DE", option, text])
        assert (1, True) == (ran.exit_code, "no connection to the database" in ran.stderr), ran.output


@pytest.mark.parametrize("words", ["status", "backfill DE", "shadow start", "shadow stop", "host-change -- true"])
def test_whoever_opens_a_session_says_which_server_did_not_answer_and_what_tries_the_same(
    words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", NOWHERE)
    ran = CliRunner().invoke(main, words.split())
    assert 1 == ran.exit_code
    assert "Error: no connection to the database: " in ran.stderr
    assert "what tries the same: psql -h 127.0.0.1 -p 1 -U nobody -d nowhere" in ran.stderr


def test_a_command_that_is_none_is_told_the_one_that_is_like_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "No such command 'stauts'. Did you mean 'status'?" in refused(["stauts"], monkeypatch)
    assert "Did you mean" not in refused(["xyzzy"], monkeypatch)


@pytest.mark.parametrize(
    "path", sorted({path[:-1] for path in COMMANDS if path[:-1] not in {(), ("gate",), ("backfill",)}})
)
def test_a_group_alone_is_its_help_and_no_error(path: tuple[str, ...]) -> None:
    ran = CliRunner().invoke(main, path)
    helped = CliRunner().invoke(main, [*path, "--help"])
    assert (2, "", helped.stdout) == (ran.exit_code, ran.stdout, ran.stderr)


@pytest.mark.parametrize("path", [path for path in COMMANDS if path not in PROGRAM_DECIDES], ids=" ".join)
def test_every_command_answers_a_program_in_json(path: tuple[str, ...]) -> None:
    options = {name for parameter in COMMANDS[path].params for name in parameter.opts}
    assert "--json" in options, (
        f"leadprotect {' '.join(path)} has no --json: add the option, print what it found by "
        "leadprotect.cli.output.as_json, and document the keys in docs/reference/json.md"
    )
