"""can_edit, explain, can_edit_many, editable_leads: the decision as a service asks for it."""

from __future__ import annotations

import uuid
from contextlib import closing
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import scoped_session, sessionmaker

import leadprotect
from leadprotect import Reason, settings
from tests.support.database import Database

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


def reason(database: Database, lead: object, user: str = "", territory: str = "DE", login: str = "seller_de") -> str:
    with database.connect(login) as conn:
        return leadprotect.explain(conn, lead, user_id=user or database.user(1), territory=territory).reason


def test_the_owner_may_edit(database: Database) -> None:
    assert reason(database, database.lead("DE", owner=database.user(1))) == "owner"


def test_another_owner_s_lead_is_denied(database: Database) -> None:
    assert reason(database, database.lead("DE", owner=database.user(2))) == "not_owner"


def test_a_lead_that_nobody_owns_is_denied(database: Database) -> None:
    assert reason(database, database.lead("DE")) == "unassigned"


def test_an_unknown_lead_and_a_lead_of_another_territory_look_alike(database: Database) -> None:
    elsewhere = database.lead("CH", owner=database.user(1))
    unknown = database.new_id()
    with database.connect("seller_de") as conn:
        answers = [
            leadprotect.explain(conn, lead, user_id=database.user(1), territory=territory).reason
            for lead in (elsewhere, unknown)
            for territory in ("DE", "CH")
        ]
    assert answers == ["not_found"] * 4


def test_a_lead_without_territory_is_outside_protection(database: Database) -> None:
    assert reason(database, database.lead(None)) == "unprotected"


def test_a_missing_lead_is_denied(database: Database) -> None:
    assert reason(database, None) == "not_found"
    with database.connect("seller_de") as conn:
        assert leadprotect.can_edit(conn, None, user_id=database.user(1), territory="DE") is False


def test_a_lead_moved_to_another_territory_is_lost_to_its_old_owner(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    database.sql("UPDATE {leads} SET {territory} = 'CH' WHERE {lead_id} = %s", lead)
    assert reason(database, lead) == "not_found"
    assert reason(database, lead, territory="CH", login="seller_both") == "unassigned"


@pytest.mark.profiles("pg18", "pg15")
@pytest.mark.parametrize("malformed", ["nobody", "1", "0'; DROP TABLE leads", "a" * 36, "-" * 36, " ", "{" + "0" * 32])
def test_a_malformed_user_is_a_denial_and_no_error(database: Database, malformed: str) -> None:
    lead = database.lead("DE", owner=database.user(1))
    assert reason(database, lead, malformed) == "no_context"


@pytest.mark.profiles("pg18")
def test_a_user_is_somebody_exactly_where_the_server_reads_an_id(database: Database) -> None:
    random = Random(18)  # noqa: S311 -- the same in every run
    texts = []
    for _ in range(3000):
        usual = str(uuid.UUID(int=random.getrandbits(128)))
        text = list(random.choice([usual, usual.upper(), f"{{{usual}}}"]))
        for _ in range(random.randint(0, 2)):
            place = random.randrange(len(text))
            text[place : place + random.randint(0, 1)] = random.choice(
                ["", "-", "a", "F", "g", "}", "\n", " ", "\u00e9", "\u0661"]
            )
        texts.append("".join(text))
    read = "{schema}.parse_user(t) IS NOT NULL"
    told_apart = f"SELECT t FROM unnest(%s::text[]) AS t WHERE ({read}) <> pg_input_is_valid(t, 'uuid')"
    assert database.sql(told_apart, texts) == []
    counted = database.sql(f"SELECT count(*) FILTER (WHERE {read}), count(*) FROM unnest(%s::text[]) AS t", texts)
    assert 1000 < counted[0][0] < counted[0][1] - 1000


@pytest.mark.parametrize("malformed", ["D\tE", "DE\x7f", "DE\n", "a" * 64, "É" * 64])
def test_a_malformed_territory_is_a_denial_and_no_error(database: Database, malformed: str) -> None:
    lead = database.lead("DE", owner=database.user(1))
    assert reason(database, lead, territory=malformed) == "no_context"


@pytest.mark.profiles("pg18", "pg15")
def test_the_user_is_compared_by_value_and_not_by_text(database: Database) -> None:
    owner = uuid.uuid4()
    lead = database.lead("DE", owner=str(owner))
    written = [str(owner).upper(), f"{{{owner}}}", owner.hex, str(owner)]
    assert [reason(database, lead, text) for text in written] == ["owner"] * 4


def test_a_login_without_the_territory_s_role_finds_nothing_whatever_it_sets(database: Database) -> None:
    lead = database.lead("CH", owner=database.user(1))
    assert reason(database, lead, territory="CH", login="seller_de") == "not_found"
    assert reason(database, lead, territory="CH", login="seller_ch") == "owner"


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({}, "collaborator"),
        ({"active": False}, "not_owner"),
        ({"effective_from": NOW + DAY}, "not_owner"),
        ({"effective_from": NOW - 2 * DAY, "effective_to": NOW - DAY}, "not_owner"),
        ({"effective_from": NOW - DAY, "effective_to": NOW + DAY}, "collaborator"),
        ({"territory": "CH"}, "not_owner"),
    ],
)
def test_a_rule_counts_only_while_it_is_in_force(database: Database, rule: dict[str, object], expected: str) -> None:
    lead = database.lead("DE", owner=database.user(2))
    database.rule(database.user(1), "COLLABORATOR", lead, **{"territory": "DE", **rule})  # type: ignore[arg-type]
    assert reason(database, lead) == expected


def test_a_collaborator_of_the_territory_stops_at_a_sole_owner(database: Database) -> None:
    shared, sole = (database.lead("DE", owner=database.user(number)) for number in (2, 3))
    database.rule(database.user(1), "COLLABORATOR")
    database.rule(database.user(3), "SOLE_OWNER")
    assert [reason(database, lead) for lead in (shared, sole)] == ["collaborator", "not_owner"]
    database.rule(database.user(1), "COLLABORATOR", sole)
    assert reason(database, sole) == "collaborator"


def test_a_suspended_owner_may_not_edit(database: Database) -> None:
    mine, other = (database.lead("DE", owner=database.user(1)) for _ in range(2))
    database.rule(database.user(1), "VIEW_ONLY", mine)
    assert [reason(database, lead) for lead in (mine, other)] == ["suspended", "owner"]
    database.rule(database.user(1), "VIEW_ONLY")
    assert reason(database, other) == "suspended"


def test_many_leads_are_decided_as_each_of_them(database: Database) -> None:
    leads = [
        database.lead("DE", owner=database.user(1)),
        database.lead("DE", owner=database.user(2)),
        database.lead("DE"),
        database.lead("CH", owner=database.user(1)),
        database.new_id(),
        None,
    ]
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(1), "DE"):
        many = leadprotect.can_edit_many(conn, leads)
        assert many == {lead: leadprotect.can_edit(conn, lead) for lead in leads}
        assert list(many.values()) == [True, False, False, False, False, False]


@pytest.mark.profiles("pg18")
def test_many_leads_are_found_in_every_form_of_their_ids(database: Database) -> None:
    mine, other = database.lead("DE", owner=database.user(1)), database.lead("DE")
    forms: list[list[Any]] = [
        [str(mine), str(other), None],
        [str(mine).upper(), str(other).upper()],
        [mine, str(other)],
        [str(mine), other, f"{{{mine}}}", mine.hex],
    ]
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(1), "DE"):
        for ids in forms:
            expected = {given: given is not None and uuid.UUID(str(given)) == mine for given in ids}
            assert expected == leadprotect.can_edit_many(conn, ids)


def test_pages_of_editable_leads_come_in_order_and_say_whether_more_follow(database: Database) -> None:
    mine = [database.lead("DE", owner=database.user(1)) for _ in range(5)]
    database.lead("DE", owner=database.user(2))
    shared = database.lead("DE", owner=database.user(2))
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(1), "DE"):
        first = leadprotect.editable_leads(conn, limit=3)
        second = leadprotect.editable_leads(conn, after=first.after, limit=3)
    assert [d.lead_id for d in first.leads + second.leads] == mine
    assert (first.more, second.more) == (True, False)
    database.rule(database.user(1), "COLLABORATOR", shared)
    database.rule(database.user(1), "VIEW_ONLY", mine[0])
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(1), "DE"):
        page = leadprotect.editable_leads(conn, after=mine[2], limit=9)
        assert [(d.lead_id, d.reason) for d in page.leads] == [
            (mine[3], "owner"),
            (mine[4], "owner"),
            (shared, "collaborator"),
        ]
        assert leadprotect.editable_leads(conn, limit=1).leads[0].lead_id == mine[1]


@pytest.mark.parametrize("limit", [0, -1, 1001, "5", 2.5, True, None])
def test_a_page_has_a_sensible_size(database: Database, limit: Any) -> None:
    with database.connect("seller_de") as conn, pytest.raises(leadprotect.InvalidRequest, match="limit"):
        leadprotect.editable_leads(conn, limit=limit)


def test_without_a_context_the_library_raises_and_sql_answers_false(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.connect("seller_de") as conn:
        for ask in (leadprotect.can_edit, leadprotect.explain, leadprotect.assert_edit):
            with pytest.raises(leadprotect.ContextMissing):
                ask(conn, lead)
        with pytest.raises(leadprotect.ContextMissing):
            leadprotect.can_edit_many(conn, [lead])
        with pytest.raises(leadprotect.ContextMissing):
            leadprotect.editable_leads(conn)
        assert database.query(conn, "SELECT {schema}.can_edit_lead(%s)", lead) == [False]


def test_an_id_of_the_wrong_type_is_named(database: Database) -> None:
    wrong = {"uuid": "not-a-uuid", "bigint": "twelve", "text": 12}[settings.current().lead_id_type]
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(1), "DE"):
        with pytest.raises(leadprotect.InvalidRequest, match=f"{wrong!r} is not of type"):
            leadprotect.can_edit(conn, wrong)
        assert leadprotect.can_edit(conn, database.new_id()) is False


def test_what_is_no_connection_is_told_what_would_be(database: Database) -> None:
    asynchronous = create_async_engine("postgresql+psycopg://")
    with database.engine("seller_de") as engine:
        for given in (engine, asynchronous, AsyncSession(asynchronous), asynchronous.connect(), None, "conn"):
            with pytest.raises(leadprotect.InvalidRequest, match=r"not a sqlalchemy\.Connection"):
                leadprotect.can_edit(given, database.new_id())  # type: ignore[arg-type]
        session = scoped_session(sessionmaker(engine))
        with closing(session), pytest.raises(leadprotect.ContextMissing):
            leadprotect.can_edit(session, database.new_id())  # type: ignore[arg-type] # a proxy of a Session


def test_a_failed_transaction_gives_no_answer(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.connect("seller_de") as conn:
        with pytest.raises(psycopg.errors.DivisionByZero):
            conn.execute("SELECT 1/0")
        with pytest.raises(leadprotect.ProtectionUnavailable, match="the transaction has failed before"):
            leadprotect.can_edit(conn, lead, user_id=database.user(1), territory="DE")


def test_a_rolled_back_protection_denies(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    database.downgrade("base")
    with database.connect("seller_de") as conn, pytest.raises(leadprotect.ProtectionUnavailable, match="not installed"):
        leadprotect.can_edit(conn, lead, user_id=database.user(1), territory="DE")


def test_a_login_without_our_roles_gets_no_answer(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.connect("outsider") as conn, pytest.raises(leadprotect.ProtectionUnavailable, match="lacks the role"):
        leadprotect.can_edit(conn, lead, user_id=database.user(1), territory="DE")


def test_a_decision_is_true_only_when_it_allows() -> None:
    reasons: list[Reason] = ["no_context", "not_found", "suspended", "owner", "collaborator", "unassigned", "not_owner"]
    assert [r for r in reasons if leadprotect.Decision("lead", r)] == ["owner", "collaborator"]
