"""``leadprotect scripts``."""

from __future__ import annotations

from pathlib import Path

import click

from leadprotect.cli import output
from leadprotect.cli.complete import territories_like
from leadprotect.cli.terminal import echo, verbatim
from leadprotect.database.connection import connect
from leadprotect.lab.scripts import write_scripts
from leadprotect.settings import current


@click.command("scripts")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--territory", metavar="CODE", shell_complete=territories_like,
    help="Whose leads.  [default: the one with most owners]",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Write over files that are there.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
def scripts_command(folder: Path, *, territory: str | None, force: bool, as_json: bool) -> None:
    """Write a load for pgbench and assertions for psql, with leads of your database, into a folder.

    Both run as they stand, by whoever holds the app's role and the territory's; they read only. Exit code 1 where
    nobody owns a lead yet, or a file is there already.
    """
    with connect(current()) as conn:
        made = write_scripts(conn, folder, territory=territory, force=force)
    if as_json:
        click.echo(output.as_json(made))
        return
    echo(f"{made.leads} leads of {made.territory}, each with its owner. Run them:")
    for command in made.commands:
        verbatim(f"  {command}")
