"""``leadprotect pin``."""

from __future__ import annotations

import sys

import click

from leadprotect.cli import output
from leadprotect.cli.terminal import echo
from leadprotect.database.connection import connect
from leadprotect.database.sqlstates import mapped_errors
from leadprotect.migration.pins import Pin, pins
from leadprotect.settings import current


@click.group("pin")
def pin_group() -> None:
    """What leadprotect holds of the host's tables."""


@pin_group.command("status")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def pin_status(*, as_json: bool) -> None:
    """Show what the host's next migration may change freely, and which columns leadprotect holds; reads only.

    Exit code 1 when a column that the settings name has another name, or is gone: everything fails closed then.
    """
    with connect(current()) as conn, mapped_errors():
        found = pins(conn)
    if as_json:
        click.echo(output.as_json(found, indent=2))
        sys.exit(found.broken)
    echo("held (ALTER TYPE and DROP are refused, RENAME makes every edit fail): leadprotect host-change -- COMMAND")
    for pin in found.pinned:
        echo(f"  {pin.table}.{pin.column}  {pin.setting}{_how(pin)}")
    echo("held, too: the names of these tables and of their schemas")
    echo("free: new columns, indexes, constraints and triggers, and everything about")
    for column in found.free:
        echo(f"  {column}")
    sys.exit(found.broken)


def _how(pin: Pin) -> str:
    if pin.gone:
        return (
            ": GONE or renamed; rename it back, or write its new name into the settings and run leadprotect host-change"
        )
    return f": {', '.join(pin.held_by)}" if pin.held_by else ""
