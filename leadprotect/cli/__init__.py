"""The command line: each command parses, calls one function of the library, and prints.

Exit codes: 0 done, 1 refused or not true, 2 wrong usage, 130 stopped by Ctrl-C, 143 by a plain kill; a
command with more of them says so in its help.
"""

from __future__ import annotations

import logging
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NoReturn

import click

from leadprotect.cli.interrupts import Killed, tidied_when_killed
from leadprotect.cli.terminal import echo
from leadprotect.errors import LeadProtectError
from leadprotect.settings.databases import ON
from leadprotect.settings.files import CONFIG

COMMANDS = {
    "apply": "Bring settings that were changed after contract into the database, after showing them.",
    "audit": "Care for the audit (operators), and ask it (auditors).",
    "backfill": "Give leads their owners (also: backfill status, pause, resume, stop).",
    "bench": "Measure on servers of its own: the embedded one, and every installed PostgreSQL from 15 up.",
    "completion": "Print what lets a shell complete commands, options, territories and revisions.",
    "demo": "Show the whole migration on a PostgreSQL of its own.",
    "doctor": "Say whether what stands in the database is what leadprotect made, and what is in the way; reads only.",
    "gate": "Say whether a rollout may go on; alone, the same as `leadprotect gate check`.",
    "guard": "Watch a rollout: run it step by step while the gates are good, else pause or roll back.",
    "host-change": "Run a change of the host's tables that leadprotect holds: take the holds away, put them back.",
    "hub": "Ask audit and owners across the databases of [leadprotect.databases], by foreign tables in one.",
    "init": "Look at a database and write the settings for it into alembic.ini.",
    "move": "Move leads to the database of another territory; for managers of both.",
    "new": "Write the next revision from a template, or put a branch behind another.",
    "next": "Print the number of the next revision.",
    "owner": "Who owns leads; assign, transfer and release them.",
    "pin": "What leadprotect holds of the host's tables.",
    "plan": "Say what `alembic upgrade head` would do to this database, before every deploy; reads only.",
    "purge": "Delete what a downgrade left in the quarantine, the audit included, after asking.",
    "redteam": "Attack your own database as one of its logins; reads only.",
    "rehearse": "Run the whole migration under live traffic, and report every stall.",
    "repair": "Put back what doctor finds changed among leadprotect's own objects, by the shipped text.",
    "roles": "Show our roles and who holds them; as SQL for a cluster into which a backup is restored.",
    "rollback": "Go back to the last safe revision, verify it, and print the timeline.",
    "rules": "Who may edit besides the owner, and who is suspended.",
    "scripts": "Write a load for pgbench and assertions for psql, with leads of your database, into a folder.",
    "shadow": "Note before contract what it would deny, while nothing is denied.",
    "status": "Show verdict, revision, gate, backfill, quarantine and what is in the way; reads only.",
    "territory": "Territories of the protected leads.",
    "validate": "Hold the chain of revisions against every rule.",
}
"""Each command, in a module of its name, with the first words of its help.

A module is loaded when its command is asked for: one that needs a driver or Alembic costs every other one nothing.
"""


class _Refused(click.ClickException):
    """One of our errors: what is wrong, and what to run on a line of its own."""

    def show(self, file: IO[Any] | None = None) -> None:
        del file
        echo(f"Error: {self.format_message()}", err=True)


class _Misused(click.UsageError):
    """Wrong usage, told as click does, on a terminal of any width."""

    def show(self, file: IO[Any] | None = None) -> None:
        del file
        if self.ctx is not None:
            click.echo(self.ctx.get_usage(), err=True)
            click.echo(f"Try '{self.ctx.command_path} --help' for help.\n", err=True)
        echo(f"Error: {self.format_message()}", err=True)


_HELP = getattr(click.exceptions, "NoArgsIsHelpError", ())
"""What a group alone raises since click 8.2: its help is the whole message."""


class _Commands(click.Group):
    """Turns our errors into one line on stderr: a user's mistake never shows a stack trace."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*COMMANDS, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            name = cmd_name.replace("-", "_")
            module = import_module(f"leadprotect.cli.{name}")
            # no next() here: a command of that name is a module of this package
            wanted = (f"{name}_command", f"{name}_group")
            (found,) = [one for known, one in vars(module).items() if known in wanted]
            self.add_command(found)
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None:
            from difflib import get_close_matches  # noqa: PLC0415 - whoever spells it right needs none

            # click itself compares with those alone that are loaded
            if like := get_close_matches(name, self.list_commands(ctx), 1):
                raise click.UsageError(f"No such command {name!r}. Did you mean {like[0]!r}?", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> object:
        try:
            with tidied_when_killed():
                if ctx.params["fleet"]:
                    _on_all(ctx)
                words = _words(ctx)
                if words and words[0] in _ALEMBIC:
                    _as_alembic(ctx, words)
                return super().invoke(ctx)
        except LeadProtectError as error:
            raise _Refused(f"{error}{_primary(error)}") from None
        except click.UsageError as error:
            if isinstance(error, _HELP):
                raise
            raise _Misused(_misused(error, ctx), error.ctx) from None
        except (KeyboardInterrupt, click.Abort) as ended:
            stopped = ended.__context__ if isinstance(ended, click.Abort) else ended
            if not isinstance(stopped, KeyboardInterrupt):  # nobody is there to be asked
                raise
            echo("stopped", err=True)
            sys.exit(stopped.code if isinstance(stopped, Killed) else 130)
        except Exception as error:
            if (told := _of_the_database(error)) is None:
                raise
            raise _Refused(told) from None


def _primary(error: LeadProtectError) -> str:
    """Which server can write, where this one could not because it is a standby and knows whose."""
    if getattr(error.__cause__, "sqlstate", None) != "25006":
        return ""
    from leadprotect.database.connection import connect  # noqa: PLC0415 - help needs no driver
    from leadprotect.database.replication import standby  # noqa: PLC0415 - as above
    from leadprotect.settings import current  # noqa: PLC0415 - as above

    try:
        with connect(current()) as conn:
            found = standby(conn)
    except LeadProtectError:
        return ""
    return f"; its primary is {found.primary}" if found and found.primary and found.primary not in str(error) else ""


def _of_the_database(error: Exception) -> str | None:
    """What a server's error means that no command was ready for; None of any other error."""
    if "psycopg" not in sys.modules:  # then none of it can have been raised
        return None
    from leadprotect.database.sqlstates import mapped_errors, of_driver  # noqa: PLC0415 - help needs no driver

    if not of_driver(error):
        return None
    try:
        with mapped_errors():
            raise error
    except LeadProtectError as ours:
        return str(ours)


def _on_all(ctx: click.Context) -> NoReturn:
    """Hand the words after ``--fleet`` on as they stand: each database gets them in a process of its own."""
    from leadprotect.cli.fleet import run_fleet  # noqa: PLC0415 - help needs no driver

    if ctx.params["on"]:
        raise click.UsageError("--on means one database, and --fleet all of them")
    _choose(ctx.params["config"], None)
    run_fleet(_words(ctx), workers=ctx.params["workers"])


_ALEMBIC = ("upgrade", "downgrade", "current")
"""Words that are Alembic's; `fleet.run` has them, too, and more to load."""


def _as_alembic(ctx: click.Context, words: list[str]) -> NoReturn:
    """Run Alembic on the one database that is meant, as ``--fleet`` runs it on all."""
    from leadprotect.cli.fleet import alembic_alone  # noqa: PLC0415 - help needs no driver

    if ctx.params["workers"]:
        raise click.UsageError(_NO_WORKERS)
    _choose(ctx.params["config"], ctx.params["on"])
    alembic_alone(words)


def _words(ctx: click.Context) -> list[str]:
    return [*ctx._protected_args, *ctx.args]  # noqa: SLF001 - a group's own words, which it is about to resolve


def _misused(error: click.UsageError, ctx: click.Context) -> str:
    if isinstance(error, click.NoSuchOption) and error.ctx and error.ctx.parent:
        own = {option for parameter in ctx.command.params for option in parameter.opts}
        if error.option_name in own:
            path = error.ctx.command_path.removeprefix(ctx.command_path)
            return f"{error.option_name} comes before the command: {ctx.command_path} {error.option_name}{path}"
    return error.format_message()


_NO_WORKERS = "--workers is how many databases of --fleet are served at once"


def _choose(config: Path | None, on: str | None) -> None:
    """Let the library read that file and mean that database, wherever a setting is asked for."""
    given = {CONFIG: config and str(config.absolute()), ON: on}
    if any(given.values()):
        from leadprotect.settings import current  # noqa: PLC0415 - help needs no driver

        os.environ.update({name: value for name, value in given.items() if value})
        current.cache_clear()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="leadprotect", prog_name="leadprotect")
@click.option(
    "-c", "--config", type=click.Path(path_type=Path), help="Ini file instead of alembic.ini or LEADPROTECT_CONFIG."
)
@click.option("--on", metavar="CODE", help="The database of this territory, of those in [leadprotect.databases].")
@click.option("--fleet", is_flag=True, help="Run the command on every database, and `upgrade` and `downgrade`, too.")
@click.option("--workers", type=click.IntRange(1), help="With --fleet: databases at once.  [default: 8]")
def main(config: Path | None, on: str | None, *, fleet: bool, workers: int | None) -> None:
    """Protect leads row by row: backfill, status, audit and rollback.

    The database and all settings come from alembic.ini in this folder and the environment
    (DATABASE_URL, LEADPROTECT_<KEY>).
    """
    if workers and not fleet:
        raise click.UsageError(_NO_WORKERS)
    _choose(config, on)
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s: %(message)s")
