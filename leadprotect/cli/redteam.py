"""``leadprotect redteam``."""

from __future__ import annotations

import sys
from dataclasses import replace

import click

from leadprotect.cli import output
from leadprotect.cli.terminal import show_table, told
from leadprotect.database.connection import connect
from leadprotect.migration.redteam import Tried, redteam
from leadprotect.settings import current
from leadprotect.settings.values import read

OPEN, NOT_TRIED = 1, 2


@click.command("redteam")
@click.option("--database-url", help="Whom to be: the URL of a service's login.  [default: the settings' database_url]")
@click.option("--json", "as_json", is_flag=True, help="One JSON list instead of a table.")
def redteam_command(*, database_url: str | None, as_json: bool) -> None:
    """Attack your own database as one of its logins; reads only.

    Exit codes: 0 every way is held, 1 one is open, 2 none is open and one was not tried.
    """
    settings = current()
    if database_url:
        settings = replace(settings, database_url=str(read("database_url", database_url)))
    with connect(settings) as conn:
        found = redteam(conn, settings=settings)
    if as_json:
        click.echo(output.as_json(found, indent=2))
    else:
        _show(found)
    verdicts = {way.verdict for way in found}
    sys.exit(OPEN if "open" in verdicts else NOT_TRIED if "not tried" in verdicts else 0)


def _show(found: tuple[Tried, ...]) -> None:
    """What is open or was not tried first, each with what to do; below it what is held."""
    for way in found:
        if way.verdict != "held":
            told(way.name, way.detail, way.remedy, verdict=way.verdict)
    held = [(way.name, way.verdict, way.detail) for way in found if way.verdict == "held"]
    if held:
        show_table(("way", "verdict", "what came"), held, folds=["way", "what came"])
