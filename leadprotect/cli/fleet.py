"""``leadprotect --fleet COMMAND``: on every database of the settings."""

from __future__ import annotations

import sys
from importlib import import_module
from runpy import run_module
from typing import TYPE_CHECKING, NoReturn

import click

from leadprotect.cli import output
from leadprotect.cli.interrupts import tidied_when_killed
from leadprotect.cli.terminal import echo, show_table
from leadprotect.fleet.run import ALEMBIC, WORKERS, FleetRun, run_on_all
from leadprotect.settings import current
from leadprotect.settings.files import ini_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def run_fleet(command: Sequence[str], *, workers: int | None) -> NoReturn:
    """Run `command` on all databases, print what each says with its name before it, and a row for each at the end."""
    as_json = "--json" in command
    width = max((len(one.name) for one in current().databases), default=0)

    def tell(name: str, line: str) -> None:
        echo(f"{name:{width}} | {line}", err=as_json)

    with tidied_when_killed():
        found = run_on_all(
            current(), command, workers=workers or WORKERS, tell=None if as_json else tell, work=loaded(command)
        )
    if as_json:
        click.echo(output.as_json(found, indent=2))
    else:
        _show(found)
    sys.exit(found.exit_code)


def loaded(command: Sequence[str]) -> Callable[[list[str]], object] | None:
    """What runs the command in a process that has loaded it already; None for one that is none."""
    root = click.get_current_context().find_root()
    if command[:1] and command[0] in ALEMBIC:
        import_module("leadprotect.migration.environment")
        return _alembic
    if command and isinstance(root.command, click.Group) and root.command.get_command(root, command[0]):
        return root.command.main
    return None


def _alembic(words: list[str]) -> None:
    sys.argv = ["alembic", "-c", str(ini_file()), *words]
    run_module("alembic", run_name="__main__", alter_sys=True)


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
