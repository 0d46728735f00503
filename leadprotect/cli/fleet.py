"""``leadprotect --fleet COMMAND``: on every database of the settings."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

import click
from rich.table import Table

from leadprotect.cli import output
from leadprotect.cli.console import Console
from leadprotect.cli.interrupts import tidied_when_killed
from leadprotect.cli.terminal import echo
from leadprotect.fleet.run import WORKERS, FleetRun, run_on_all
from leadprotect.settings import current

if TYPE_CHECKING:
    from collections.abc import Sequence


def run_fleet(command: Sequence[str], *, workers: int | None) -> NoReturn:
    """Run `command` on all databases, print what each says with its name before it, and a row for each at the end."""
    as_json = "--json" in command
    width = max((len(one.name) for one in current().databases), default=0)

    def tell(name: str, line: str) -> None:
        echo(f"{name:{width}} | {line}", err=as_json)

    with tidied_when_killed():
        found = run_on_all(current(), command, workers=workers or WORKERS, tell=None if as_json else tell)
    if as_json:
        click.echo(output.as_json(found, indent=2))
    else:
        _show(found)
    sys.exit(found.exit_code)


def _show(found: FleetRun) -> None:
    table = Table("database", "exit code", "seconds", "last words", title=" ".join(found.command), title_justify="left")
    for one in found.databases:
        said = [line for line in (*one.output, *one.errors) if line.strip()]
        last = one.errors[-1] if one.exit_code and one.errors else said[-1] if said else ""
        table.add_row(" ".join(one.territories), str(one.exit_code), f"{one.seconds:.1f}", last)
    Console().print(table)
