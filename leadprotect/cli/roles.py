"""``leadprotect roles``."""

from __future__ import annotations

import click

from leadprotect.cli.terminal import echo
from leadprotect.database.connection import connect, mapped_errors
from leadprotect.migration.roles import our_roles, roles_sql
from leadprotect.settings import current


@click.command("roles")
@click.option("--sql", "as_sql", is_flag=True, help="A script for psql that makes them in another cluster.")
def roles_command(*, as_sql: bool) -> None:
    """Show our roles and who holds them; as SQL for a cluster into which a backup is restored. Reads only.

    Roles belong to the whole server, so pg_dump leaves them out, and pg_restore then loses every grant and policy
    that names one. The script holds no passwords and does no harm where the roles exist.
    """
    with connect(current()) as conn, mapped_errors():
        found = our_roles(conn, current())
    if as_sql:
        echo(roles_sql(found))
        return
    for name in found.names:
        held = ", ".join(one.member for one in found.members if one.role == name)
        echo(f"{name}: {held or 'nobody'}")
