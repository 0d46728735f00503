"""Two databases, one for each territory, as a service of both finds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leadprotect.settings import Settings, configured, parse

if TYPE_CHECKING:
    from tests.support.database import Database


def split(here: Database, there: Database, login: str | None = "seller_both", **urls: str) -> Settings:
    """Let this process know DE `here` and CH `there`, and those of `urls` where they are said to be."""
    given = {"DE": url(here, login), "CH": url(there, login)} | urls
    settings = parse(here.profile.settings | {"territories": ", ".join(given)}, {}, given)
    configured(settings)
    return settings


def url(database: Database, login: str | None) -> str:
    return database.login_url(login) if login else database.url


def leave(database: Database, territory: str) -> None:
    """Let the database have no such territory, as one that was made with the others only."""
    for table, column in (
        ("backfill_jobs", "territory"),
        ("territory_vat_rates", "territory"),
        ("territories", "code"),
    ):
        database.sql(f"DELETE FROM {{schema}}.{table} WHERE {column} = %s", territory)
    database.sql("SELECT {schema}.publish_territories()")
