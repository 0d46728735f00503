"""``leadprotect --fleet COMMAND``: on every database of the settings."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from runpy import run_module
from textwrap import shorten
from typing import TYPE_CHECKING, NoReturn

import click

from leadprotect.cli import output
from leadprotect.cli.interrupts import tidied_when_killed
from leadprotect.cli.terminal import echo, show_table
from leadprotect.errors import SettingsError
from leadprotect.fleet.run import ALEMBIC, COMMANDS, WORKERS, FleetRun, for_alembic, run_on_all
from leadprotect.settings import current, url
from leadprotect.settings.files import ini_file, migrations

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from leadprotect.fleet.run import DatabaseRun


def run_fleet(command: Sequence[str], *, workers: int | None) -> NoReturn:
    """Run `command` on all databases, print what each says with its name before it, and a row for each at the end."""
    _check_usage(command)
    as_json = "--json" in command
    if command[0] in ALEMBIC:  # which has no such option; its lines are what the rows hold
        command = [word for word in command if word != "--json"]
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


def alembic_alone(words: list[str]) -> NoReturn:
    """Run a command of Alembic on the database that is meant, with its own exit code, 1 for every error."""
    url(current())  # which database is meant, and a mistake in the settings, is told as ours
    _require_script_location()
    try:
        _alembic(words)
    except SystemExit as ended:
        sys.exit(1 if ended.code and ended.code != USAGE else ended.code)
    sys.exit(0)


USAGE = 2


def _check_usage(command: Sequence[str]) -> None:
    """Say once what is wrong with the words themselves, and not for each database."""
    root = click.get_current_context().find_root()
    if command and command[0] in ALEMBIC:
        _check_alembic([word for word in command if word != "--json"])
    if not command or command[0] in ALEMBIC or command[0] not in COMMANDS or not isinstance(root.command, click.Group):
        return
    words, context = [*command], root
    while isinstance(context.command, click.Group) and words:
        name, found, words = context.command.resolve_command(context, words)
        if found is None:
            return
        context = found.make_context(name, words, parent=context)
        words = [*context._protected_args, *context.args]  # noqa: SLF001 - a group's own words, still to be resolved


def _check_alembic(words: list[str]) -> None:
    """Alembic's own usage, and the end of the process where it is another one."""
    from alembic.config import CommandLine  # noqa: PLC0415 - only what runs a revision needs it

    CommandLine(prog="alembic").parser.parse_args(for_alembic(words))


def _require_script_location() -> None:
    from alembic.config import Config  # noqa: PLC0415 - only what runs a revision needs it
    from alembic.script import ScriptDirectory  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    file = ini_file()
    config = Config(str(file), toml_file=file.parent / "pyproject.toml")
    location = config.get_alembic_option("script_location")
    if not location:
        raise SettingsError(f"{file} names no revisions; write into [alembic]: script_location = {migrations()}")
    try:
        there = Path(ScriptDirectory.from_config(config).dir, "env.py").is_file()
    except CommandError:  # no such folder
        there = False
    if not there:
        raise SettingsError(
            f"{file} names {location}, where there is no env.py; correct it in [alembic]: "
            f"script_location = {migrations()}"
        )


def loaded(command: Sequence[str]) -> Callable[[list[str]], object] | None:
    """What runs the command in a process that has loaded it already; None for one that is none."""
    root = click.get_current_context().find_root()
    if command[:1] and command[0] in ALEMBIC:
        _require_script_location()
        import_module("leadprotect.migration.environment")
        return _alembic
    if command and isinstance(root.command, click.Group) and root.command.get_command(root, command[0]):
        return root.command.main
    return None


def _alembic(words: list[str]) -> None:
    sys.argv = ["alembic", "-c", str(ini_file()), *for_alembic(words)]
    run_module("alembic", run_name="__main__", alter_sys=True)


_VERDICT_FIRST = ("doctor", "plan", "status")
_LONGEST = 140


def _show(found: FleetRun) -> None:
    rows = [
        (" ".join(one.territories), one.exit_code, f"{one.seconds:.1f}", _in_short(found.command, one))
        for one in found.databases
    ]
    echo(f"\n{' '.join(found.command)}")
    show_table(
        ("database", "exit code", "seconds", "in short"),
        rows,
        numbers=("exit code", "seconds"),
        folds=("in short",),
    )


def _in_short(command: Sequence[str], one: DatabaseRun) -> str:
    """The line of what it said that tells how it ended; all of it stands above."""
    said, errors = ([line for line in lines if line.strip()] for lines in (one.output, one.errors))
    if one.exit_code and errors:
        line = next((line for line in errors if line.startswith(_ERROR)), errors[-1])
    elif said and command[0] in _VERDICT_FIRST:
        line = said[0]
    elif said and command[0] == "gate":
        line = "; ".join(line.strip() for line in takewhile(str.strip, one.output))
    else:
        line = (said or errors or ["done"])[-1]
    return shorten(_BEGINS.sub("", line), _LONGEST, placeholder=" ...")


_ERROR = "Error: "
_BEGINS = re.compile(r"^(Error: |FAILED: |[A-Z]+ +\[[\w.]+\] )")
"""How a line of ours, of Alembic's and of a log begins; the exit code says as much."""
