"""The command line: each command parses, calls one function of the library, and prints.

Exit codes: 0 done, 1 refused or not true, 2 wrong usage, 130 stopped by Ctrl-C, 143 by a plain kill; a
command with more of them says so in its help.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import click

from leadprotect.cli.audit import audit_group
from leadprotect.cli.backfill import backfill_group
from leadprotect.cli.bench import bench_group
from leadprotect.cli.demo import demo_command
from leadprotect.cli.doctor import doctor_command
from leadprotect.cli.gate import gate_group
from leadprotect.cli.interrupts import Killed
from leadprotect.cli.purge import purge_command
from leadprotect.cli.redteam import redteam_command
from leadprotect.cli.rehearse import rehearse_command
from leadprotect.cli.repair import repair_command
from leadprotect.cli.rollback import rollback_command
from leadprotect.cli.status import status_command
from leadprotect.cli.terminal import echo, plain
from leadprotect.cli.territory import territory_group
from leadprotect.errors import LeadProtectError
from leadprotect.settings import current
from leadprotect.settings.files import CONFIG


class _Commands(click.Group):
    """Turns our errors into one line on stderr: a user's mistake never shows a stack trace."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except LeadProtectError as error:
            raise click.ClickException(plain(str(error))) from None
        except KeyboardInterrupt as stopped:
            echo("stopped", err=True)
            sys.exit(stopped.code if isinstance(stopped, Killed) else 130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="leadprotect", prog_name="leadprotect")
@click.option(
    "-c", "--config", type=click.Path(path_type=Path), help="Ini file instead of alembic.ini or LEADPROTECT_CONFIG."
)
def main(config: Path | None) -> None:
    """Protect leads row by row: backfill, status, audit and rollback.

    The database and all settings come from alembic.ini in this folder and the environment
    (DATABASE_URL, LEADPROTECT_<KEY>).
    """
    if config:
        os.environ[CONFIG] = str(config.absolute())  # the library reads it wherever a setting is asked for
        current.cache_clear()
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s: %(message)s")


for command in (
    audit_group,
    backfill_group,
    bench_group,
    demo_command,
    doctor_command,
    gate_group,
    purge_command,
    redteam_command,
    rehearse_command,
    repair_command,
    rollback_command,
    status_command,
    territory_group,
):
    main.add_command(command)
