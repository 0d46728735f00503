"""``leadprotect hub``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from leadprotect.cli import output
from leadprotect.cli.terminal import echo, show_table
from leadprotect.fleet import hub, hub_check
from leadprotect.settings import current

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_CODES = {hub_check.SAME: 0, hub_check.DIFFERS: 1, hub_check.NOT_JUDGED: 2}
IN = click.option("--in", "address", required=True, metavar="URL", help="The database of the hub.")
SQL = click.option("--sql", "only_sql", is_flag=True, help="Print the SQL, and change nothing.")
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")


@click.group("hub")
def hub_group() -> None:
    """Ask audit and owners across the databases of [leadprotect.databases], by foreign tables in one."""


@hub_group.command("create")
@IN
@click.option(
    "--auditor",
    "auditors",
    multiple=True,
    metavar="LOGIN[=CODE,...]",
    help="Who may ask, of all territories or of these; may be repeated.",
)
@SQL
@JSON
def create_command(address: str, auditors: Sequence[str], *, only_sql: bool, as_json: bool) -> None:
    """Make the hub, or bring it up to the settings; no password is asked for or written.

    Each auditor then names his login on each server by a user mapping, which is printed for him to run.
    """
    asked = {
        login: [code for code in codes.split(",") if code]
        for login, _, codes in (one.partition("=") for one in auditors)
    }
    with hub.open_hub(address) as conn:
        made = hub.create_hub(conn, current(), auditors=asked, dry_run=only_sql)
    if as_json:
        click.echo(output.as_json(made, indent=2))
    elif only_sql:
        _show_sql(made.statements)
    else:
        servers = f"{len(made.servers)} foreign server{'s' if len(made.servers) > 1 else ''}"
        echo(f"{made.schema} stands, with {servers}" if made.changed else f"{made.schema} is as it must be")
        if made.mappings:
            echo("each auditor runs his own, with his login there and his way to prove it:")
            for statement in made.mappings:
                click.echo(statement)


@hub_group.command("verify")
@IN
@JSON
def verify_hub_command(address: str, *, as_json: bool) -> None:
    """Compare the hub's numbers and newest hashes with each server's own.

    The URL's login is an auditor with user mappings, those of [leadprotect.databases] are auditors there. Exit
    code 0: the same, 1: they differ, or a user mapping is open, 2: not judged.
    """
    with hub.open_hub(address) as conn:
        found = hub_check.verify_hub(conn, current())
    if as_json:
        click.echo(output.as_json(found, indent=2))
    else:
        lines = [
            (
                one.territory or "none",
                one.database,
                one.what,
                one.hub or "-",
                one.server or "-",
                one.verdict,
                one.detail,
            )
            for one in found.numbers
        ]
        show_table(("territory", "database", "what", "hub", "server", "verdict", "detail"), lines, folds=("detail",))
        for line in found.open:
            echo(f"danger: {line}")
    sys.exit(EXIT_CODES[found.verdict])


@hub_group.command("drop")
@IN
@SQL
@JSON
def drop_command(address: str, *, only_sql: bool, as_json: bool) -> None:
    """Take the hub away, with its user mappings; no other server is touched."""
    with hub.open_hub(address) as conn:
        gone = hub.drop_hub(conn, current(), dry_run=only_sql)
    if as_json:
        click.echo(output.as_json(gone, indent=2))
    elif only_sql:
        _show_sql(gone.statements)
    else:
        echo(f"{gone.schema} is gone" if gone.statements else f"there is no {gone.schema}")
        for what in gone.kept:
            echo(f"kept: {what}")


def _show_sql(statements: Sequence[str]) -> None:
    if statements:
        click.echo("BEGIN;")
        for statement in statements:
            click.echo(f"{statement};")
        click.echo("COMMIT;")
