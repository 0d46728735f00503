"""Territories: their legal terms (currency, legal framework, VAT rate on a day), and how to add one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from leadprotect.database.bound import per_database
from leadprotect.database.statements import rows
from leadprotect.errors import InvalidRequest
from leadprotect.settings import current, render

if TYPE_CHECKING:
    from datetime import date
    from decimal import Decimal

    from leadprotect.database.drivers import AnyConnection


@dataclass(frozen=True)
class Territory:
    """Terms of a territory on a day; `vat_rate` in percent, None where no rate is known."""

    code: str
    name: str
    currency: str | None
    legal_framework: str | None
    vat_rate: Decimal | None


@per_database
def territory(conn: AnyConnection, code: str, on: date | None = None) -> Territory:
    """The terms of territory `code` on the day `on` (today); needs no context.

    Raises `InvalidRequest` for an unknown code. Source of the rates: UStG paragraph 12 and the tax
    relief act of 2020 (DE), MWSTG article 25 (CH).
    """
    call = "SELECT * FROM {schema}.territory_terms(%s::pg_catalog.text, coalesce(%s::pg_catalog.date, current_date))"
    found = rows(conn, render(call, current()), (code, on))
    if not found:
        message = f"territory: there is no {code!r}; leadprotect territory list shows all"
        raise InvalidRequest(message)
    return Territory(*found[0])
