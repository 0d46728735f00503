"""``leadprotect territory``."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

import click

from leadprotect.cli.terminal import echo
from leadprotect.database.connection import connect
from leadprotect.errors import InvalidRequest
from leadprotect.migration.territories import add_territory
from leadprotect.settings import current


@click.group("territory")
def territory_group() -> None:
    """Territories of the protected leads."""


@territory_group.command("add")
@click.argument("code")
@click.option("--name", help="Readable name.  [default: the code]")
@click.option("--currency", help="ISO 4217 code, such as EUR.")
@click.option("--legal-framework", help="Such as ABGB.")
@click.option("--vat", help="Percent, valid from today.")
def add_command(
    code: str, *, name: str | None, currency: str | None, legal_framework: str | None, vat: str | None
) -> None:
    """Add a territory: its role, its policies and its rows, in one transaction."""
    try:
        rate = Decimal(vat) if vat else None
    except InvalidOperation:
        message = f"--vat: {vat!r} is not a percentage such as 20 or 8.1"
        raise InvalidRequest(message) from None
    with connect(current()) as conn:
        add_territory(conn, code, name=name, currency=currency, legal_framework=legal_framework, vat_rate=rate)
        role = current().role(code)
    echo(f"{code} is protected. Give its sellers the role {role}, then run: leadprotect backfill {code}")
