"""Who could edit a lead at a time, and why; and what was attempted on it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import leadprotect
from leadprotect.audit import history
from leadprotect.database.statements import rows
from leadprotect.errors import InvalidRequest, ProtectionUnavailable
from tests.support.database import Database

ANNA, BERT, CARL = 1, 2, 3


def now(database: Database) -> datetime:
    """The server's time, which lies strictly between two changes."""
    found: datetime = database.sql("SELECT clock_timestamp()")[0]
    return found


def who(database: Database, lead: Any, at: datetime, login: str | None = "auditor_both") -> list[tuple[Any, ...]]:
    with database.connect(login) as conn:
        found = history.who_could_edit(conn, lead, at).rights
    return [(right.territory, right.user_id and str(right.user_id), right.could_edit, right.reason) for right in found]


def manage(database: Database, change: Any, lead: Any, *values: Any) -> None:
    with database.acting("manager_de", 9) as conn:
        change(conn, lead, *values)


def test_every_owner_is_found_at_his_time(database: Database) -> None:
    anna, bert = database.user(ANNA), database.user(BERT)
    lead = database.lead("DE")
    times = [now(database)]
    for change, values in (
        (leadprotect.assign, (anna,)),
        (leadprotect.transfer, (bert,)),
        (leadprotect.release, ()),
        (leadprotect.assign, (anna,)),
    ):
        manage(database, change, lead, *values)
        times.append(now(database))
    database.sql("DELETE FROM {leads} WHERE {lead_id} = %s", lead)
    times.append(now(database))
    owner = [[("DE", anna, True, "owner")], [("DE", bert, True, "owner")], [("DE", None, False, "unassigned")]]
    assert [owner[2], owner[0], owner[1], owner[2], owner[0], owner[2]] == [who(database, lead, at) for at in times]


def test_the_answer_is_what_was_decided_at_the_time(database: Database) -> None:
    """The same world asked live, and again after everything has changed."""
    owner, shared, everywhere, shut = (database.user(number) for number in range(4, 8))
    lead = database.lead("DE", owner=owner)
    users = [owner, shared, everywhere, shut, database.user(9)]
    with database.acting("manager_de", 9) as conn:
        leadprotect.share(conn, lead, shared)
        for user, kind in ((everywhere, "COLLABORATOR"), (shut, "COLLABORATOR"), (shut, "VIEW_ONLY")):
            database.query(conn, "SELECT {schema}.grant_protection(%s, 'DE', %s)", user, kind)

    def decided() -> set[str]:
        with database.connect("seller_de") as conn:
            return {user for user in users if leadprotect.can_edit(conn, lead, user_id=user, territory="DE")}

    def answered(at: datetime) -> set[str]:
        return {user for _, user, could_edit, _ in who(database, lead, at) if could_edit}

    answers = [(now(database), decided())]
    for statement in (
        "SELECT {schema}.grant_protection(%s, 'DE', 'SOLE_OWNER')",
        "SELECT {schema}.revoke_protection(%s, 'DE', 'SOLE_OWNER')",
        "SELECT {schema}.grant_protection(%s, 'DE', 'VIEW_ONLY')",
    ):
        with database.connect("manager_de") as conn:
            database.context(conn, None, "DE")
            database.query(conn, statement, owner)
        answers.append((now(database), decided()))
    with database.acting("manager_de", 9) as conn:
        leadprotect.unshare(conn, lead, shared)
        leadprotect.transfer(conn, lead, users[4])
    answers.append((now(database), decided()))
    assert [3, 2, 3, 2, 2] == [len(allowed) for _, allowed in answers]
    assert [allowed for _, allowed in answers] == [answered(at) for at, _ in answers]


def test_a_rule_that_was_made_later_gives_no_right_before(database: Database) -> None:
    """Sharing since last year was written down today: until today nobody could rely on it."""
    lead = database.lead("DE", owner=database.user(ANNA))
    before = now(database)
    with database.acting("manager_de", 9) as conn:
        leadprotect.share(conn, lead, database.user(BERT), effective_from=before - timedelta(days=365))
    assert [database.user(ANNA)] == [user for _, user, *_ in who(database, lead, before)]
    assert [database.user(ANNA), database.user(BERT)] == [user for _, user, *_ in who(database, lead, now(database))]


def test_who_was_suspended_is_named_with_what_he_would_have_been(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(ANNA))
    database.rule(database.user(ANNA), "VIEW_ONLY", lead)
    with database.connect("auditor_de") as conn:
        (right,) = history.who_could_edit(conn, lead, now(database)).rights
    assert (right.could_edit, right.reason, right.source) == (False, "suspended", "owner otherwise")


def test_right_and_period_are_explained(database: Database) -> None:
    lead = database.lead("DE")
    manage(database, leadprotect.assign, lead, database.user(ANNA))
    between = now(database)
    manage(database, leadprotect.transfer, lead, database.user(BERT))
    with database.connect("auditor_de") as conn:
        (first,) = history.who_could_edit(conn, lead, between).rights
        (second,) = history.who_could_edit(conn, lead, now(database)).rights
    assert (first.source, second.source, second.until) == ("assign", "transfer", None)
    assert first.since is not None
    assert first.since < between < (first.until or first.since) == second.since


def test_an_auditor_learns_of_his_territories_only(database: Database) -> None:
    lead = database.lead("CH", owner=database.user(ANNA))
    assert [("CH", database.user(ANNA), True, "owner")] == who(database, lead, now(database))
    with pytest.raises(InvalidRequest, match=r"nothing is known of lead .* this login may read; CH left out"):
        who(database, lead, now(database), "auditor_de")
    with pytest.raises(ProtectionUnavailable, match="holds the role of no territory, so nothing of CH, DE"):
        who(database, lead, now(database), "auditor")
    with database.connect("auditor_both") as conn:
        database.context(conn, None, "DE")
        with pytest.raises(InvalidRequest, match="nothing is known of lead"):
            history.who_could_edit(conn, lead, now(database))


@pytest.mark.parametrize("login", ["seller_de", "operator", "outsider"])
def test_only_auditors_and_managers_ask(database: Database, login: str) -> None:
    lead = database.lead("DE", owner=database.user(ANNA))
    assert 1 == len(who(database, lead, now(database), "manager_de"))
    with pytest.raises(ProtectionUnavailable):
        who(database, lead, now(database), login)


def test_a_question_that_can_t_be_right_is_refused(database: Database) -> None:
    lead = database.lead("DE")
    with database.connect("auditor_de") as conn:
        with pytest.raises(InvalidRequest, match="needs a time zone"):
            history.who_could_edit(conn, lead, datetime(2025, 1, 1))  # noqa: DTZ001
        with pytest.raises(InvalidRequest, match="is still to come"):
            history.who_could_edit(conn, lead, datetime(2999, 1, 1, tzinfo=UTC))
        with pytest.raises(InvalidRequest, match="nothing is known of lead"):
            history.who_could_edit(conn, database.new_id(), now(database))


# --- attempts


def attempted(database: Database) -> list[Any]:
    """Two denied and one allowed attempt on leads of DE, and one of CH."""
    leads = [database.lead("DE", owner=database.user(ANNA)), database.lead("CH", owner=database.user(BERT))]
    for login, territory, user, lead in (
        ("seller_de", "DE", ANNA, leads[0]),
        ("seller_de", "DE", BERT, leads[0]),
        ("seller_ch", "CH", BERT, leads[1]),
        ("seller_de", "DE", CARL, leads[1]),
    ):
        with database.connect(login) as conn:
            database.context(conn, database.user(user), territory)
            database.query(conn, "SELECT {schema}.record_edit_attempt(%s)", lead)
    return leads


def listed(database: Database, login: str = "auditor_both", **filters: Any) -> list[tuple[str | None, str]]:
    with database.connect(login) as conn:
        return [(one.territory, one.reason) for one in history.attempts(conn, **filters).attempts]


def test_attempts_are_listed_newest_first_and_filtered(database: Database) -> None:
    leads = attempted(database)
    everything = [("DE", "other_territory"), ("CH", "owner"), ("DE", "not_owner"), ("DE", "owner")]
    assert everything == listed(database)
    assert everything[:2] == listed(database, limit=2)
    assert everything[2:] == listed(database, lead_id=leads[0])
    assert [everything[0]] == listed(database, user_id=database.user(CARL))
    assert [everything[0], everything[2]] == listed(database, outcome="DENY")
    assert everything == listed(database, since=now(database) - timedelta(hours=1), until=now(database))
    assert [] == listed(database, since=now(database))


def test_attempts_of_another_territory_are_not_listed(database: Database) -> None:
    attempted(database)
    assert {"DE"} == {territory for territory, _ in listed(database, "auditor_de")}
    with database.connect("auditor_de") as conn:
        assert ("CH",) == history.attempts(conn).left_out
    with database.connect("auditor_both") as conn:
        assert () == history.attempts(conn).left_out


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"outcome": "MAYBE"}, "outcome: 'MAYBE'"),
        ({"limit": 0}, "limit: 0"),
        ({"since": datetime(2025, 1, 1)}, "since"),  # noqa: DTZ001
    ],
)
def test_a_filter_that_can_t_be_right_is_refused(database: Database, filters: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        listed(database, **filters)


@pytest.mark.profiles("pg18")
def test_an_id_of_the_wrong_type_is_refused(database: Database) -> None:
    with pytest.raises(InvalidRequest, match="lead_id: 'x'"):
        listed(database, lead_id="x")
    with pytest.raises(InvalidRequest, match="user_id: 'x'"):
        listed(database, user_id="x")


def test_the_newest_attempts_are_looked_for_in_no_month_before_theirs(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead = database.lead("DE", owner=database.user(ANNA))
    with database.acting("seller_de", ANNA) as conn:
        leadprotect.assert_edit(conn, lead)
    asked: list[Any] = []

    def told(conn: Any, statement: str, params: Any = (), **more: Any) -> Any:
        asked.append(params)
        return rows(conn, statement, params, **more)

    monkeypatch.setattr(history, "rows", told)
    with database.connect("auditor_both") as conn:
        newest = history.attempts(conn, limit=1, territories=["DE"]).attempts
        assert [lead] == [one.lead_id for one in newest]
        assert not any("-infinity" in params for params in asked)
        # control: who asks for more than this month has is answered from the others, too
        history.attempts(conn, limit=2, territories=["DE"])
        assert any("-infinity" in params for params in asked)
