"""``leadprotect purge``."""

from __future__ import annotations

import sys

import click

from leadprotect.cli import output
from leadprotect.cli.terminal import echo, show_table, verbatim
from leadprotect.database.connection import connect
from leadprotect.errors import RollbackError
from leadprotect.migration.leaving import Left, left_by_hand
from leadprotect.migration.purge import Quarantine, purge, quarantine
from leadprotect.settings import current


@click.command("purge")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--left", is_flag=True, help="Only list what a DBA made by hand for us; exit code 1 when there is any.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object; asks nothing, so it needs --yes or --left.")
def purge_command(*, yes: bool, left: bool, as_json: bool) -> None:
    """Delete what a downgrade left in the quarantine, the audit included, after asking.

    Until then alembic upgrade head takes every row back. Nothing else is deleted. What names our roles and was made by
    hand (policies, grants, memberships) is listed with the statements that take it back, and so are the roles.
    Exit code 1 when there is no quarantine, when somebody's object depends on it, or without a yes.
    """
    if as_json and not (yes or left):
        raise click.UsageError("--json asks nothing: add --yes, or --left")
    with connect(current()) as conn:
        if left:
            found = left_by_hand(conn)
            if as_json:
                click.echo(output.as_json({"left": found}))
            else:
                _list(found)
            sys.exit(bool(found))
        if as_json:
            click.echo(output.as_json({"deleted": purge(conn)}))
            return
        _show(quarantine(conn))
        if not yes:
            click.confirm("Delete all of it for ever?", abort=True)
        deleted = purge(conn)
        echo(f"deleted {deleted.schema}: {sum(rows or 0 for rows in deleted.rows.values()):,} rows")
        try:
            _list(left_by_hand(conn))
        except RollbackError as stands:  # somebody put an object of his own into our schema
            echo(f"not listed, what a DBA made by hand: {stands}")


def _list(found: list[Left]) -> None:
    if not found:
        echo("nothing is left: no role of leadprotect, and nothing that names one")
        return
    echo("left, for a DBA to take back:")
    for one in found:
        echo(f"  {one.what}")
    echo("")
    for one in found:
        verbatim(one.statement)


def _show(found: Quarantine) -> None:
    """The tables with their rows."""
    echo(f"{found.schema}, {found.bytes / 1e6:,.1f} MB")
    counted = [(name, "not counted" if rows is None else f"{rows:,}") for name, rows in found.rows.items()]
    show_table(("table", "rows"), counted, numbers=["rows"])
