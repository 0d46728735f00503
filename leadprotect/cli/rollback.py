"""``leadprotect rollback``."""

from __future__ import annotations

import sys

import click

from leadprotect.cli import output, words
from leadprotect.cli.complete import revisions_like
from leadprotect.cli.terminal import echo, show_table, verbatim
from leadprotect.database.connection import connect
from leadprotect.database.sqlstates import mapped_errors
from leadprotect.migration import psql
from leadprotect.migration.rollback import SAFE, Event, Rollback, rollback
from leadprotect.settings import current

NOT_VERIFIED = 3


@click.command("rollback")
@click.option(
    "--to",
    "target",
    default=SAFE,
    show_default=True,
    metavar="REVISION",
    help="A revision below, or base.",
    shell_complete=revisions_like,
)
@words.lock_budget()
@click.option("--sql", "as_sql", is_flag=True, help="Print a script for psql instead, and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object at the end instead of a timeline.")
def rollback_command(target: str, *, lock_budget: str | None, as_sql: bool, as_json: bool) -> None:
    """Go back to the last safe revision, verify it, and print the timeline.

    Without --to, contract is undone and nothing else: the host's tables are open again, owners and
    audit stay. A running backfill is paused first. No row is lost; alembic upgrade head goes forward again.

    Revisions of a newer version of leadprotect are undone by what they left in the database. With --sql the script does
    all of it that way: it stops at an error, and the same script again goes on.

    Exit codes: 0 done and verified, or nothing to undo; 1 refused, or stopped on the way (the same
    command goes on); 3 done, but something is not as it must be: it is listed.
    """
    if as_sql:
        with connect(current()) as conn, mapped_errors():
            verbatim(psql.psql_script(conn, current(), target).rstrip("\n"))
        return
    done = rollback(target, lock_budget=lock_budget, on_event=_silent if as_json else _show)
    if as_json:
        click.echo(output.as_json(done, indent=2))
        sys.exit(NOT_VERIFIED if done.problems else 0)
    if not done.timeline:
        echo(f"nothing to undo: the database stands at {done.after or 'the base'}")
        return
    echo(f"{'':<12}  {done.seconds:5.2f} s  in all, from {done.before} to {done.after or 'the base'}")
    _counts(done)
    for problem in done.problems:
        echo(f"NOT AS IT MUST BE: {problem}", err=True)
    if done.problems:
        sys.exit(NOT_VERIFIED)
    echo("verified: no table of leadprotect was open after any step, and every row is there")
    for hint in hints(done):
        echo(hint)


def hints(done: Rollback) -> list[str]:
    """What to know before the next deploy."""
    if done.after is None:
        return ["alembic upgrade head takes every row back; leadprotect purge deletes them"]
    found = ["until the cause is found, deploy with: alembic -x contract=hold upgrade head"]
    if any(event.what.startswith("paused") for event in done.timeline):
        found.append("the backfill stays paused until: leadprotect backfill resume")
    return found


def _silent(_event: Event) -> None:
    """The object at the end holds them all."""


def _show(event: Event) -> None:
    """One line of the timeline, while it happens."""
    echo(f"{event.at:%H:%M:%S.%f}"[:12] + f"  {event.seconds:5.2f} s  {event.what}")


def _counts(done: Rollback) -> None:
    """The tables with their rows before and after."""
    echo("\nRows")
    lines = [
        (name, *("-" if rows is None else f"{rows:,}" for rows in pair))
        for name, pair in done.rows.items()
        if any(pair)
    ]
    show_table(("table", "before", "after"), lines, numbers=["before", "after"])
