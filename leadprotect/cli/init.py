"""``leadprotect init``."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING

import click

from leadprotect.adoption.ini import Written, compose
from leadprotect.adoption.proposal import propose
from leadprotect.cli import output
from leadprotect.cli.terminal import echo, verbatim
from leadprotect.database.connection import connect
from leadprotect.errors import SettingsError
from leadprotect.preflight.host_tables import host
from leadprotect.settings import KEYS, parse
from leadprotect.settings.files import ini_file
from leadprotect.settings.load import given_address

if TYPE_CHECKING:
    from leadprotect.adoption.look import Open, Proposal, Proposed


@click.command("init")
@click.option(
    "--set", "said", multiple=True, metavar="KEY=VALUE", help="A setting that you know; as often as you like."
)
@click.option("--yes", is_flag=True, help="Ask nothing: the likeliest answer where more than one is possible.")
@click.option("--dry-run", is_flag=True, help="Show what would be written.")
@click.option("--force", is_flag=True, help="Replace a section [leadprotect] that is there; nothing else of the file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines; asks nothing.")
def init_command(*, said: tuple[str, ...], yes: bool, dry_run: bool, force: bool, as_json: bool) -> None:
    """Look at a database and write the settings for it into alembic.ini.

    Reads only: tables, keys, types, what stands in the data, row security and who reads. Each setting comes with its
    reason, and what can't be told is asked; a host's own ini file keeps every line. DATABASE_URL says which database.
    """
    given = dict(map(_pair, said))
    file = ini_file()
    address = given_address()
    compose(file, [], force=force)  # refuses before anything is asked
    with closing(connect(parse({"database_url": address}))) as conn:
        proposal = propose(conn, given=given, guess=yes)
        while proposal.open and not (yes or as_json) and on_a_terminal():
            given |= _asked(proposal.open[0])
            proposal = propose(conn, given=given)
        if proposal.open:
            raise SettingsError(_unanswered(proposal.open, proposal.hidden))
        settings = parse(proposal.settings | {"database_url": address})
        proposal.remarks += [f"preflight would refuse: {one}" for one in host(conn, settings)]
    written = compose(file, proposal.proposed, force=force)
    if not dry_run:
        written.file.write_text(written.text, encoding="utf-8")
    if as_json:
        click.echo(
            output.as_json(output.fields_of(proposal) | output.fields_of(written) | {"written": not dry_run}, indent=2)
        )
    else:
        _show(proposal, written, dry_run=dry_run)


def on_a_terminal() -> bool:
    """Whether somebody is there to be asked."""
    return sys.stdin.isatty()


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or key.strip() not in KEYS:
        raise click.BadParameter(f"{text!r} is not KEY=VALUE; keys are {', '.join(KEYS)}", param_hint="--set")
    return key.strip(), value.strip()


def _asked(one: Open) -> dict[str, str]:
    for place, candidate in enumerate(one.candidates[:9], start=1):
        echo(f"  {place}  {candidate}")
    answer = click.prompt(one.question, default=one.candidates[0] if one.candidates else None)
    picked = one.candidates[int(answer) - 1] if answer.isdigit() and 0 < int(answer) <= len(one.candidates) else answer
    return {one.key: picked}


def _unanswered(those: list[Open], hidden: str) -> str:
    lines = [hidden] if hidden else []
    for one in those:
        example = one.candidates[0] if one.candidates else "..."
        more = f" (or {', '.join(one.candidates[1:5])})" if len(one.candidates) > 1 else ""
        lines.append(f"{one.key}: {one.question} Say it: --set '{one.key}={example}'{more}")
    return "nothing was written, because a database does not tell everything:\n  " + "\n  ".join(lines)


def _show(proposal: Proposal, written: Written, *, dry_run: bool) -> None:
    if dry_run:
        verbatim(written.text.rstrip("\n"))
    else:
        for one in proposal.proposed:
            _line(one)
    for remark in filter(None, (*proposal.remarks, proposal.hidden)):
        echo(f"note: {remark}")
    if dry_run:
        echo(f"nothing was written; without --dry-run it is {written.file}")
    else:
        echo(
            f"written: {written.file}. Next: leadprotect plan; on a copy: leadprotect rehearse; then: {written.command}"
        )


def _line(one: Proposed) -> None:
    echo(f"{one.key} = {one.value}\n    {one.reason}")
