"""A login of one territory has no way to the server of another through the router; each attack with its control."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

import leadprotect
from leadprotect.settings import configured, parse
from tests.support.territories import leave, split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.database import Database
    from tests.support.servers import Server

SELLER = 1

pytestmark = [pytest.mark.profiles("pg18"), pytest.mark.xdist_group("second server")]


@pytest.fixture
def two(
    make_database: Callable[..., Database], second: Callable[[], Server]
) -> Iterator[tuple[Database, Database, dict[str, Any]]]:
    """DE on one server, CH on another that has roles of its own, and a lead of the seller in each."""
    here, there = make_database("head"), make_database("head", on=second())
    leave(here, "CH")
    leave(there, "DE")
    leads = {code: one.lead(code, owner=one.user(SELLER)) for one, code in ((here, "DE"), (there, "CH"))}
    here.sql(
        "CREATE ROLE only_of_de LOGIN IN ROLE {app}, {de}".replace("{app}", "leadprotect_app").replace(
            "{de}", "leadprotect_de"
        )
    )
    yield here, there, leads
    here.sql("DROP ROLE only_of_de")


def urls(here: Database, there: Database, login: str) -> dict[str, str]:
    return {"DE": here.server.url(here.name, login), "CH": there.server.url(there.name, login)}


def test_a_login_that_the_other_server_does_not_have_reaches_nothing_there(
    two: tuple[Database, Database, dict[str, Any]],
) -> None:
    here, there, leads = two
    split(here, there, **urls(here, there, "only_of_de"))
    with pytest.raises(leadprotect.DatabasesUnavailable, match="only_of_de") as error:
        leadprotect.can_edit_many(leadprotect.route, leads.items(), user_id=here.user(SELLER))
    assert (["CH"], {("DE", leads["DE"]): True}) == ([*error.value.failed], error.value.answers)


def test_a_login_of_de_that_the_other_server_knows_sees_and_edits_nothing_there(
    two: tuple[Database, Database, dict[str, Any]],
) -> None:
    here, there, leads = two
    split(here, there, login="seller_de")
    user = here.user(SELLER)
    answers = leadprotect.can_edit_many(leadprotect.route, leads.items(), user_id=user)
    assert {("DE", leads["DE"]): True, ("CH", leads["CH"]): False} == answers
    assert (0, 0) == seen_and_edited(there, user)


def test_control_a_login_of_both_sees_and_edits_there(two: tuple[Database, Database, dict[str, Any]]) -> None:
    here, there, leads = two
    split(here, there, login="seller_both")
    user = here.user(SELLER)
    assert {True} == {*leadprotect.can_edit_many(leadprotect.route, leads.items(), user_id=user).values()}
    assert (1, 1) == seen_and_edited(there, user)


def seen_and_edited(there: Database, user: str) -> tuple[int, int]:
    with leadprotect.route("CH").begin() as conn, leadprotect.acting_as(conn, user, "CH"):
        seen = conn.scalar(text(there.text("SELECT count(*) FROM {leads}")))
        return int(seen or 0), conn.execute(text(there.text("UPDATE {leads} SET city = 'Bern'"))).rowcount


def test_the_engine_of_de_acts_in_no_other_territory_though_its_database_still_holds_leads_of_it(
    two: tuple[Database, Database, dict[str, Any]], make_database: Callable[..., Database]
) -> None:
    _, there, _ = two
    both = make_database("head")  # as one that was for both until CH moved out
    left = both.lead("CH", owner=both.user(SELLER))
    split(both, there, login="seller_both")
    with leadprotect.route("DE").connect() as conn:
        with pytest.raises(leadprotect.NotHere), leadprotect.acting_as(conn, both.user(SELLER), "CH"):
            pass
        assert 0 == conn.scalar(text(both.text("SELECT count(*) FROM {leads}")))
    with pytest.raises(leadprotect.NotHere):
        leadprotect.can_edit_many(lambda _: leadprotect.route("DE"), [("CH", left)], user_id=both.user(SELLER))


def test_control_as_one_database_it_acts_in_both(make_database: Callable[..., Database]) -> None:
    both = make_database("head")
    left = both.lead("CH", owner=both.user(SELLER))
    configured(parse(both.profile.settings))
    with both.connect("seller_both") as conn, leadprotect.acting_as(conn, both.user(SELLER), "CH"):
        assert leadprotect.can_edit(conn, left)


def test_a_territory_s_name_can_carry_no_statement(two: tuple[Database, Database, dict[str, Any]]) -> None:
    here, there, leads = two
    split(here, there)
    for name in ("CH' OR 'a' = 'a", "DE\x00", "{DE}", "*", "DE,CH"):
        with leadprotect.route("DE").connect() as conn:
            with pytest.raises((leadprotect.NotHere, leadprotect.InvalidRequest)):
                with leadprotect.acting_as(conn, here.user(SELLER), name):
                    pass
        with pytest.raises(leadprotect.InvalidRequest):
            leadprotect.route(name)
    with leadprotect.route("DE").connect() as conn, leadprotect.acting_as(conn, here.user(SELLER), "DE"):
        assert leadprotect.can_edit(conn, leads["DE"])
