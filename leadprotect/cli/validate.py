"""``leadprotect validate``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from leadprotect.authoring.reports import as_github, as_sarif, as_text
from leadprotect.authoring.validate import Report, freeze, validate
from leadprotect.cli import output
from leadprotect.cli.interrupts import tidied_when_killed
from leadprotect.cli.terminal import plain


def _as_json(report: Report) -> str:
    return output.as_json(output.fields_of(report), indent=2)


_FORMATS = {"text": as_text, "json": _as_json, "github": as_github, "sarif": as_sarif}


@click.command("validate")
@click.option(
    "--format", "form", type=click.Choice([*_FORMATS]), default="text", show_default=True, help="How it says it."
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option("--static", is_flag=True, help="Only what the files tell, without a server: a part of a second.")
@click.option(
    "--schema",
    "before",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE.SQL",
    help="What your database holds before the first revision.",
)
@click.option("--release", "release", is_flag=True, help="Freeze the revisions as they are, by hash, in released.json.")
@tidied_when_killed()
def validate_command(*, form: str, as_json: bool, static: bool, before: Path | None, release: bool) -> None:
    """Hold the chain of revisions against every rule.

    The files first; then the chain runs on a PostgreSQL of its own: up, down and up again, and as SQL.
    Exit code 0: nothing is wrong, 1: something is, 2: not everything could be judged.
    """
    if release:
        file = freeze()
        click.echo(output.as_json({"manifest": file}) if as_json or form == "json" else plain(f"frozen in {file}"))
        return
    report = validate(static=static, before=before)
    said = _FORMATS["json" if as_json else form](report)
    if said:
        click.echo(said if as_json or form != "text" else plain(said))
    sys.exit(report.exit_code)
