"""``leadprotect apply``."""

from __future__ import annotations

import sys

import click

from leadprotect.cli import output, words
from leadprotect.cli.terminal import echo, told, verbatim
from leadprotect.migration.apply import Applied, apply


@click.command("apply")
@click.option("--dry-run", is_flag=True, help="Show what would be changed and the SQL for it; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text; changes only with --yes.")
@words.lock_budget()
def apply_command(*, dry_run: bool, yes: bool, as_json: bool, lock_budget: str | None) -> None:
    """Bring settings that were changed after contract into the database, after showing them.

    What the gate asks before contract is asked again: a change that would lock a login out, or open a way round,
    is refused with what to run. What contract made on the leads is made anew in one transaction, so that there
    is no moment without it.

    Exit codes: 0 done, or nothing differs; 1 refused, or with --dry-run something would be refused.
    """
    found = apply(dry_run=True, lock_budget=lock_budget)
    if not as_json:
        _show(found, sql=dry_run)
    if found.changes and not found.refused and not dry_run and (yes or (not as_json and click.confirm("Apply this?"))):
        found = apply(lock_budget=lock_budget)
        if not as_json:
            echo("applied")
    if as_json:
        click.echo(output.as_json(found, indent=2))
    sys.exit(bool(found.refused or (found.changes and not found.done and not dry_run)))


def _show(found: Applied, *, sql: bool) -> None:
    if not found.changes:
        echo("nothing to apply: the database holds what the settings say, or contract is still to come")
    for change in found.changes:
        echo(str(change))
    for condition in found.refused:
        told(condition.name, condition.detail, condition.remedy, verdict="refused:")
    if sql and found.changes:
        verbatim("\nBEGIN;\n" + "\n".join(f"{statement};" for statement in found.statements) + "\nCOMMIT;")
