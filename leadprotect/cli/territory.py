"""``leadprotect territory``."""

from __future__ import annotations

import re
import shlex
from decimal import Decimal, InvalidOperation

import click

from leadprotect.cli import output
from leadprotect.cli.complete import territories_like
from leadprotect.cli.terminal import echo, show_table
from leadprotect.database.catalog import territory_role
from leadprotect.database.connection import connect
from leadprotect.migration.territories import (
    ListedTerritory,
    add_territory,
    list_territories,
    remove_territory,
    rename_territory,
)
from leadprotect.settings import current

SUFFIX = click.option(
    "--suffix", metavar="WORD", help="What the name of its role ends with, where the code is no plain word."
)
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")


@click.group("territory")
def territory_group() -> None:
    """Territories of the protected leads."""


@territory_group.command("add")
@click.argument("code")
@SUFFIX
@click.option("--name", help="Readable name.  [default: the code]")
@click.option("--currency", help="ISO 4217 code, such as EUR.")
@click.option("--legal-framework", help="Such as ABGB.")
@click.option("--vat", help="Percent, valid from today.")
@JSON
def add_command(
    code: str,
    *,
    suffix: str | None,
    name: str | None,
    currency: str | None,
    legal_framework: str | None,
    vat: str | None,
    as_json: bool,
) -> None:
    """Add a territory: its role, its policies and its rows, in one transaction."""
    if currency and not re.fullmatch(r"[A-Z]{3}", currency):
        raise click.BadParameter(f"{currency!r} is not an ISO 4217 code such as EUR", param_hint="--currency")
    with connect(current()) as conn:
        terms = {"name": name, "currency": currency, "legal_framework": legal_framework}
        add_territory(conn, code, suffix=suffix, vat_rate=_rate(vat), **terms)
        role = territory_role(conn, code)
    if as_json:
        click.echo(output.as_json({"added": code, "role": role}))
        return
    echo(f"{code} is protected. Give its sellers the role {role}, then run: leadprotect backfill {shlex.quote(code)}")


@territory_group.command("list")
@JSON
def territory_list_command(*, as_json: bool) -> None:
    """Show every territory with its terms of today, its role, and who holds that."""
    with connect(current()) as conn:
        found = list_territories(conn)
    if as_json:
        click.echo(output.as_json({"territories": found}, indent=2))
    else:
        _show(found)


@territory_group.command("rename")
@click.argument("code", shell_complete=territories_like)
@click.argument("new")
@SUFFIX
@JSON
def rename_command(code: str, new: str, *, suffix: str | None, as_json: bool) -> None:
    """Give a territory that nothing names yet another code.

    For a typing mistake of `territory add`. Refused where leads, owners, rules or the audit name it, and where the new
    code is taken or differs in case alone. The old role stays, as roles do.
    """
    with connect(current()) as conn:
        old = territory_role(conn, code)
        rename_territory(conn, code, new, suffix=suffix)
        role = territory_role(conn, new)
    if as_json:
        click.echo(output.as_json({"renamed": code, "to": new, "role": role}))
        return
    echo(f"{code} is {new} now. Its sellers need the role {role}; whoever holds {old} holds nothing by it any more")


@territory_group.command("remove")
@click.argument("code", shell_complete=territories_like)
@JSON
def remove_command(code: str, *, as_json: bool) -> None:
    """Take a territory away that nothing names.

    Refused where leads, owners, rules or the audit name it, and for the last one. Its role stays, as roles do.
    """
    with connect(current()) as conn:
        role = territory_role(conn, code)
        remove_territory(conn, code)
    if as_json:
        click.echo(output.as_json({"removed": code, "role": role}))
        return
    echo(f"{code} is no territory any more; the role {role} stays")
    echo(f"take {code} out of territories in your settings, too")


def _rate(vat: str | None) -> Decimal | None:
    try:
        rate = Decimal(vat) if vat else None
        if rate is None or 0 <= rate < 100:  # noqa: PLR2004 - percent
            return rate
    except InvalidOperation:  # no number, or NaN, which compares with none
        pass
    raise click.BadParameter(f"{vat!r} is not a percentage such as 20 or 8.1", param_hint="--vat")


def _show(found: list[ListedTerritory]) -> None:
    if not found:
        echo("no territory that this login may see: it needs one of leadprotect's roles (leadprotect roles)")
        return
    header = ("code", "name", "currency", "law", "VAT", "role", "held by")
    rates = ["" if one.vat_rate is None else f"{one.vat_rate:f} %" for one in found]
    lines = [
        (one.code, one.name, one.currency, one.legal_framework, rate, one.role, ", ".join(one.members))
        for one, rate in zip(found, rates, strict=True)
    ]
    show_table(header, lines, numbers=["VAT"], folds=["held by"])
