"""Attacks on hand-overs between databases; each control shows that the way is there once the defence is gone."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from leadprotect.errors import LeadProtectError
from leadprotect.fleet import handover
from leadprotect.fleet.move import move
from leadprotect.settings import parse
from tests.conftest import janitor_of, use
from tests.support import moving
from tests.support.moving import MANAGER, Killed, Pair

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.database import Database
    from tests.support.profiles import Profile

pytestmark = pytest.mark.profiles("pg18")
DENIED = "LP403"
NO_PRIVILEGE = "42501"
INVALID = "LP422"
ID = uuid.UUID(int=7)


@pytest.fixture
def pair(
    make_database: Callable[..., Database], templates: dict[tuple[str, str], str], profile: Profile,
    monkeypatch: pytest.MonkeyPatch,
) -> Pair:  # fmt: skip
    return moving.pair(make_database, templates, profile, janitor_of, lambda one: use(one, monkeypatch))


def as_manager_of_de_there(pair: Pair, lead: Any) -> int:
    """The manager of DE, who has a login in the database of CH, brings a lead there by himself."""
    s = pair.settings
    given = {"lead_tables": moving.tables(pair.de.profile)} | pair.de.profile.settings
    urls = {"DE": pair.de.login_url("manager_de"), "CH": pair.ch.login_url("manager_de")}
    s = parse(given, {}, urls)
    return move(s, [lead], to="CH", origin="DE", actor=pair.de.user(MANAGER)).moved


def test_a_manager_of_de_brings_no_lead_to_ch_and_that_is_recorded_there(pair: Pair) -> None:
    lead = pair.furnished()
    with pytest.raises(LeadProtectError, match=r"no manager of CH .*which is recorded\. A DBA can run: GRANT"):
        as_manager_of_de_there(pair, lead)
    assert ["DE"] == pair.homes(lead)
    assert [[], []] == pair.states(lead)
    query = "SELECT outcome::text, login::text FROM {schema}.lead_access_audit WHERE lead_id = %s"
    assert [("DENY", pair.ch.profile.login("manager_de"))] == pair.ch.sql(query, lead)


def test_control_once_he_is_no_longer_asked_he_brings_it(pair: Pair) -> None:
    lead = pair.furnished()
    for name, returns in (
        ("is_member(territory text)", "boolean LANGUAGE sql STABLE RETURN true"),
        ("admitted_territory()", "text LANGUAGE sql STABLE RETURN {declared_territory}"),
        ("own_border()", "text LANGUAGE sql STABLE RETURN {declared_territory}"),
    ):
        pair.ch.sql_script(f"CREATE OR REPLACE FUNCTION {{schema}}.{name} RETURNS {returns}")
    assert 1 == as_manager_of_de_there(pair, lead)


def tried(database: Database, login: str, territory: str, statement: str, *params: Any) -> str | None:
    """The SQLSTATE of its refusal; None where it was done and committed."""
    try:
        with database.connect(login) as conn:
            database.context(conn, database.user(MANAGER), territory)
            database.query(conn, statement, *params)
            conn.commit()
    except psycopg.Error as error:
        return error.sqlstate
    return None


FORGED = (
    "INSERT INTO {schema}.lead_handovers (lead_id, id, territory, elsewhere, direction, state, digest) "
    "VALUES (%s, %s, 'CH', 'DE', 'in', 'arriving', 'x')"
)


@pytest.mark.parametrize("login", ["seller_ch", "manager_ch"])
def test_nobody_forges_an_arrival(pair: Pair, login: str) -> None:
    lead = pair.furnished()
    assert NO_PRIVILEGE == tried(pair.ch, login, "CH", FORGED, lead, ID)
    assert NO_PRIVILEGE == tried(pair.ch, login, "CH", "UPDATE {schema}.lead_handovers SET state = 'arrived'")
    # by the function alone: half a step is not committed, and whose it is not may not even begin
    received = tried(pair.ch, login, "CH", "SELECT {schema}.receive_lead(%s, %s, 'DE')", lead, ID)
    assert (INVALID if login == "manager_ch" else NO_PRIVILEGE) == received
    assert [[], []] == pair.states(lead)


def test_control_without_guards_an_arrival_is_forged(pair: Pair) -> None:
    lead = pair.furnished()
    pair.ch.sql("ALTER TABLE {schema}.lead_handovers DISABLE TRIGGER lp_handover_holds")
    assert None is tried(pair.ch, "manager_ch", "CH", "SELECT {schema}.receive_lead(%s, %s, 'DE')", lead, ID)
    assert [[], ["arriving"]] == pair.states(lead)


FORGES = (
    "SELECT {schema}.receive_lead(%s, %s, 'DE'), {schema}.hand_over(%s, %s, 'hold'), "
    "{schema}.hand_over(%s, %s, 'freeze', 'x')"
)


def test_a_lead_that_is_there_does_not_arrive_and_loses_no_owner(pair: Pair) -> None:
    """By the functions alone a manager would take it from its owner, and the record would speak of another server."""
    lead = pair.ch.lead("CH", owner=pair.ch.user(5))
    given = (lead, ID) * 3
    assert INVALID == tried(pair.ch, "manager_ch", "CH", FORGES, *given)
    assert (pair.ch.user(5), [[], []]) == (pair.ch.owner(lead, "CH"), pair.states(lead))
    # the control: where it could not be seen that it is there
    pair.ch.sql_script(
        """
        CREATE OR REPLACE FUNCTION {schema}.receive_lead(lead {lead_id_type}, handover uuid, origin text) RETURNS text
        LANGUAGE sql SECURITY DEFINER AS $$
          INSERT INTO {schema}.lead_handovers (lead_id, id, territory, elsewhere, direction, state)
          VALUES (lead, handover, 'CH', origin, 'in', 'arriving') RETURNING 'manager' $$
        """
    )
    assert None is tried(pair.ch, "manager_ch", "CH", FORGES, *given)
    assert None is pair.ch.owner(lead, "CH")


def test_a_hand_over_that_has_ended_is_not_played_again(pair: Pair) -> None:
    lead = pair.furnished()
    assert 1 == pair.move(lead).moved
    (handover_id,) = pair.ch.sql("SELECT id FROM {schema}.lead_handovers")
    with pair.ch.acting("seller_ch", 5, "CH") as conn:
        pair.ch.query(conn, "SELECT {schema}.claim_lead(%s)", lead)
        conn.commit()
    for database, login, code, first in (
        (pair.de, "manager_de", "DE", "send_lead(%s, %s, 'CH')"),
        (pair.ch, "manager_ch", "CH", "receive_lead(%s, %s, 'DE')"),
    ):
        again = f"SELECT {{schema}}.{first}, {{schema}}.hand_over(%s, %s, %s, 'x')"
        for step in ("hold", "freeze", "finish", "leave", "cancel"):
            assert INVALID == tried(database, login, code, again, lead, handover_id, lead, handover_id, step)
    assert [["gone"], ["arrived"]] == pair.states(lead)
    assert pair.ch.user(5) == pair.ch.owner(lead, "CH")


def stopped(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A lead that stands between the databases."""
    lead = pair.furnished()

    def leave(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(handover, "leave", leave)
        with pytest.raises(Killed):
            pair.move(lead)
    return lead


@pytest.mark.parametrize("step", ["freeze", "hold", "finish", "cancel", "leave"])
def test_no_step_is_taken_by_who_is_no_manager_of_the_territory(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    lead = stopped(pair, monkeypatch)
    (handover_id,) = pair.de.sql("SELECT id FROM {schema}.lead_handovers")
    call = "SELECT {schema}.hand_over(%s, %s, %s, 'x')"
    for database in (pair.de, pair.ch):
        assert NO_PRIVILEGE == tried(database, "seller_de", "DE", call, lead, handover_id, step)
    assert DENIED == tried(pair.ch, "manager_de", "CH", call, lead, handover_id, step)
    assert DENIED == tried(pair.de, "manager_ch", "DE", call, lead, handover_id, step)
    assert INVALID == tried(pair.ch, "manager_de", "DE", call, lead, handover_id, step)
    assert [["frozen"], ["arriving"]] == pair.states(lead)


def test_a_manager_leaves_no_lead_without_deleting_it(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    lead = stopped(pair, monkeypatch)
    (handover_id,) = pair.de.sql("SELECT id FROM {schema}.lead_handovers")
    call = "SELECT {schema}.send_lead(%s, %s, 'CH'), {schema}.hand_over(%s, %s, 'leave')"
    given = (lead, handover_id, lead, handover_id)
    assert INVALID == tried(pair.de, "manager_de", "DE", call, *given)
    assert [] == pair.editable(lead)
    # the control: without the trigger he has it back here, beside the copy there
    pair.de.sql("ALTER TABLE {schema}.lead_handovers DISABLE TRIGGER lp_handover_holds")
    assert None is tried(pair.de, "manager_de", "DE", call, *given)
    assert ["DE"] == pair.editable(lead)


READERS = {
    "outsider": NO_PRIVILEGE, "seller_de": NO_PRIVILEGE, "operator": NO_PRIVILEGE, "manager_ch": 0, "auditor": 0,
    "auditor_de": 1, "manager_de": 1,
}  # fmt: skip


@pytest.mark.parametrize("login", READERS)
def test_what_is_on_its_way_is_read_in_its_territory_only(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, login: str
) -> None:
    stopped(pair, monkeypatch)
    assert READERS[login] == seen(pair.de, login)


def seen(database: Database, login: str) -> Any:
    """How many hand-overs it sees, or the SQLSTATE."""
    try:
        with database.connect(login) as conn:
            conn.execute(f"SELECT set_config('{database.settings.territory_guc}', 'DE', true)")
            return len(database.query(conn, "SELECT 1 FROM {schema}.lead_handovers"))
    except psycopg.Error as error:
        return error.sqlstate


def test_control_without_row_security_everybody_with_the_right_reads_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(pair, monkeypatch)
    pair.de.sql("ALTER TABLE {schema}.lead_handovers DISABLE ROW LEVEL SECURITY")
    assert 1 == seen(pair.de, "manager_ch")


def test_no_data_of_the_lead_lies_about_while_it_is_on_its_way(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    lead = stopped(pair, monkeypatch)
    for database in (pair.de, pair.ch):
        (text,) = database.sql("SELECT h::text FROM {schema}.lead_handovers AS h")
        assert str(lead) in text
        assert "Muster" not in text
        assert "example.ch" not in text
        assert "note" not in text
