"""``leadprotect --fleet COMMAND``: on every database of the settings."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

import click

from leadprotect.cli import output
from leadprotect.cli.interrupts import tidied_when_killed
from leadprotect.cli.terminal import echo, show_table
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
    rows = []
    for one in found.databases:
        said = [line for line in (*one.output, *one.errors) if line.strip()]
        last = one.errors[-1] if one.exit_code and one.errors else said[-1] if said else ""
        rows.append((" ".join(one.territories), one.exit_code, f"{one.seconds:.1f}", last))
    echo(f"\n{' '.join(found.command)}")
    show_table(
        ("database", "exit code", "seconds", "last words"),
        rows,
        numbers=("exit code", "seconds"),
        folds=("last words",),
    )
