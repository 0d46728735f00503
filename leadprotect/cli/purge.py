"""``leadprotect purge``."""

from __future__ import annotations

import click
from rich.table import Table

from leadprotect.cli.console import Console
from leadprotect.cli.terminal import echo
from leadprotect.database.connection import connect
from leadprotect.migration.purge import Quarantine, purge, quarantine
from leadprotect.settings import current


@click.command("purge")
@click.option("--yes", is_flag=True, help="Do not ask.")
def purge_command(*, yes: bool) -> None:
    """Delete what a downgrade left in the quarantine, the audit included, after asking.

    Until then alembic upgrade head takes every row back. Nothing else is deleted; the roles stay.
    Exit code 1 when there is no quarantine, when somebody's object depends on it, or without a yes.
    """
    with connect(current()) as conn:
        _show(quarantine(conn))
        if not yes:
            click.confirm("Delete all of it for ever?", abort=True)
        deleted = purge(conn)
    echo(f"deleted {deleted.schema}: {sum(rows or 0 for rows in deleted.rows.values()):,} rows")


def _show(found: Quarantine) -> None:
    """The tables with their rows."""
    made = Table("table", title=f"{found.schema}, {found.bytes / 1e6:,.1f} MB", title_justify="left")
    made.add_column("rows", justify="right")
    for name, rows in found.rows.items():
        made.add_row(name, "not counted" if rows is None else f"{rows:,}")
    Console().print(made)
