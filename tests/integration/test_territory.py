"""The legal terms of a territory."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

import pytest

import leadprotect
from tests.support.database import Database


@pytest.mark.parametrize(
    ("code", "day", "rate"),
    [
        ("DE", date(2020, 6, 30), "19"),
        ("DE", date(2020, 7, 1), "16"),
        ("DE", date(2020, 12, 31), "16"),
        ("DE", date(2021, 1, 1), "19"),
        ("CH", date(2023, 12, 31), "7.7"),
        ("CH", date(2024, 1, 1), "8.1"),
        ("CH", date(2030, 1, 1), "8.1"),
    ],
)
def test_the_vat_rate_is_that_of_the_day(database: Database, code: str, day: date, rate: str) -> None:
    with database.connect("seller_de") as conn:
        assert leadprotect.territory(conn, code, on=day).vat_rate == Decimal(rate)


def test_currency_and_law_belong_to_the_territory(database: Database) -> None:
    with database.connect("seller_de") as conn:
        terms = [leadprotect.territory(conn, code) for code in ("DE", "CH")]
    assert [(t.name, t.currency, t.legal_framework) for t in terms] == [
        ("Deutschland", "EUR", "BGB"),
        ("Schweiz", "CHF", "OR"),
    ]


def test_an_unknown_territory_is_named(database: Database) -> None:
    with database.connect("seller_de") as conn, pytest.raises(leadprotect.InvalidRequest, match="there is no 'FR'"):
        leadprotect.territory(conn, "FR")
