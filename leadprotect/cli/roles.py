"""``leadprotect roles``."""

from __future__ import annotations

import click

from leadprotect.cli import output
from leadprotect.cli.terminal import show_table, verbatim
from leadprotect.database.connection import connect
from leadprotect.database.sqlstates import mapped_errors
from leadprotect.migration.roles import our_roles, roles_sql
from leadprotect.settings import current


@click.command("roles")
@click.option("--sql", "as_sql", is_flag=True, help="A script for psql that makes them in another cluster.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def roles_command(*, as_sql: bool, as_json: bool) -> None:
    """Show our roles and who holds them; as SQL for a cluster into which a backup is restored. Reads only.

    Roles belong to the whole server, so pg_dump leaves them out, and pg_restore then loses every grant and policy
    that names one. The script holds no passwords and does no harm where the roles exist.
    """
    if as_sql and as_json:
        raise click.UsageError("--sql is a script, --json an object: leave out one of them")
    with connect(current()) as conn, mapped_errors():
        found = our_roles(conn, current())
    if as_sql:
        verbatim(roles_sql(found))
        return
    if as_json:
        click.echo(output.as_json(found, indent=2))
        return
    held = {name: ", ".join(one.member for one in found.members if one.role == name) for name in found.names}
    show_table(("role", "held by"), [(name, by or "nobody") for name, by in held.items()], folds=["held by"])
