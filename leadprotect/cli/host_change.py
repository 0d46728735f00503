"""``leadprotect host-change``."""

from __future__ import annotations

import shutil
import sys
from functools import partial

import click

from leadprotect.cli import output, words
from leadprotect.cli.terminal import echo
from leadprotect.migration.host_change import host_change


@click.command("host-change")
@click.option("--resume", is_flag=True, help="Only put back what a killed run took away.")
@words.lock_budget()
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout at the end; all else is on stderr.")
@click.argument("command", nargs=-1)
def host_change_command(*, resume: bool, lock_budget: str | None, as_json: bool, command: tuple[str, ...]) -> None:
    """Run a change of the host's tables that leadprotect holds: take the holds away, put them back.

    For ALTER TYPE or RENAME of a column that the settings name: leadprotect host-change -- psql -f change.sql. In
    between the leads are closed for everybody whom row security binds, services are denied, and another deploy
    waits. The settings are read again after COMMAND, so let it write new names into the ini file. The same call
    after a kill -9 goes on with COMMAND; Ctrl-C and SIGTERM end COMMAND and put everything back first.

    Exit codes: 0 done; 1 refused, or not put back, with what to run; else that of COMMAND, after everything was
    put back.
    """
    if bool(command) == resume:
        raise click.UsageError("name the command after --, or give --resume")
    if command and shutil.which(command[0]) is None:
        raise click.UsageError(f"there is no program {command[0]}; name one after --")
    done = host_change(command, lock_budget=lock_budget, tell=partial(echo, err=True))
    if as_json:
        click.echo(output.as_json(done))
    if done.returned:
        echo(f"the command ended with {done.returned}; everything was put back", err=True)
        sys.exit(done.returned)
