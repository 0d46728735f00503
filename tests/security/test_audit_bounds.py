"""What somebody says stays small and plain in the evidence, and is no instruction to a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import rich.console
from click.testing import CliRunner

from leadprotect import settings
from leadprotect.cli import console, main, terminal
from tests.support.auditing import seal, verify

if TYPE_CHECKING:
    from tests.support.database import Database

HUGE = 1_000_000
ESCAPE = "\x1b]0;title\x07"


def attempt(database: Database, lead: Any, *, note: str = "", user: str | None = None, correlation: str = "") -> None:
    """A denied attempt in plain SQL, with whatever its caller likes to say."""
    with database.connect("seller_de") as conn:
        database.context(conn, user or database.user(1), "DE")
        database.query(conn, "SELECT set_config({correlation_guc}, %s, true)", correlation)
        database.query(conn, "SELECT {schema}.record_edit_attempt(%s, 'EDIT', %s)", lead, note)


def longest(database: Database, column: str) -> int:
    (found,) = database.sql(f"SELECT max(octet_length({column}::text)) FROM {{schema}}.lead_access_audit")
    return int(found)


def shown(database: Database, monkeypatch: pytest.MonkeyPatch, login: str | None, *arguments: str) -> str:
    """What a command prints, to a terminal that draws whatever it is told."""
    monkeypatch.setenv("DATABASE_URL", database.login_url(login) if login else database.url)
    settings.current.cache_clear()
    done = CliRunner().invoke(main, [*arguments])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("said", ["note", "correlation"])
@pytest.mark.parametrize("letter", ["x", "ü", "\x01", "漢"])
def test_what_a_caller_says_is_bounded_and_the_evidence_is_still_sealed_and_verified(
    database: Database, said: str, letter: str
) -> None:
    attempt(database, database.lead("DE"), **{said: letter * HUGE})
    assert 1000 < longest(database, {"note": "note", "correlation": "correlation_id"}[said]) <= 1024
    assert seal(database)["DE"] == 1
    assert verify(database).intact


UNSEEN = ["\u202e", "\u2066", "\u200b", "\u2028", "\ufeff", "\x1b", "\x85"]


@pytest.mark.parametrize("letter", UNSEEN, ids=ascii)
def test_what_turns_a_line_around_or_is_not_seen_reaches_neither_the_evidence_nor_a_terminal(
    database: Database, capsys: pytest.CaptureFixture[str], letter: str
) -> None:
    """The control is the letter between: whatever is seen stays as it was said."""
    attempt(database, database.lead("DE"), note=f"a{letter}ü漢", correlation=f"b{letter}c")
    assert [("a ü漢", "b c")] == database.audit("note, correlation_id")
    terminal.echo(f"a{letter}ü漢")
    assert "a ü漢\n" == capsys.readouterr().out


@pytest.mark.profiles("other_names")
def test_a_user_of_any_length_is_nobody(database: Database) -> None:
    for user in ("x" * 256, "x" * HUGE, f"seller{ESCAPE}", "two\nlines"):
        attempt(database, database.lead("DE", owner=database.user(1)), user=user)
    assert database.audit("user_id, reason") == [(None, "no_context")] * 4
    assert longest(database, "note") <= 1024
    assert verify(database).intact
    attempt(database, database.lead("DE", owner="x" * 255), user="x" * 255)  # the control
    assert database.audit("user_id")[-1] == "x" * 255


@pytest.mark.profiles("text_ids")
def test_a_lead_of_any_length_leaves_a_short_row(database: Database) -> None:
    attempt(database, "x" * HUGE)
    assert database.audit("lead_id") == ["x" * 255]
    assert seal(database)["DE"] == 1
    assert verify(database).intact


def test_control_a_row_that_is_not_bounded_is_refused_by_the_table(database: Database) -> None:
    with pytest.raises(Exception, match="laa_bounded"):
        database.sql(
            "INSERT INTO {schema}.lead_access_audit (lead_id, role, action, outcome, reason, note) "
            "VALUES (%s, 'none', 'EDIT', 'DENY', 'not_owner', repeat('x', 1025))",
            database.new_id(),
        )


MARKUP = ["[/x]", "[bold red]", "[link=file:///etc/passwd]here[/link]", ":warning:", "\\[x]"]


@pytest.mark.parametrize("said", MARKUP)
def test_markup_in_a_note_is_shown_as_it_stands(database: Database, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    attempt(database, database.lead("DE"), note=said)
    assert said in shown(database, monkeypatch, "auditor_de", "audit", "list")


@pytest.mark.parametrize("said", ["[/b]", "[red]", ESCAPE[:4]])
def test_markup_in_a_lead_is_shown_as_it_stands(expanded: Database, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    expanded.lead(said)
    expanded.lead("DE")
    output = shown(expanded, monkeypatch, None, "status")
    assert "\x1b" not in output
    assert said.strip("\x1b") in output.replace("\n", "")


def test_control_a_terminal_of_rich_would_take_it_as_markup(capsys: pytest.CaptureFixture[str]) -> None:
    rich.console.Console(width=80).print("[bold]b[/bold] :warning:")
    assert "[bold]" not in capsys.readouterr().out
    console.Console(width=80).print("[bold]b[/bold] :warning: \x1b[2J")
    assert "[bold]b[/bold] :warning:  [2J" in capsys.readouterr().out
