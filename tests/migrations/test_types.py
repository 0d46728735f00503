"""Ids of each type that the settings name, as they are or below a domain, from the first revision to the base."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

import leadprotect
from leadprotect.cli import main
from leadprotect.errors import InvalidRequest, LeadAccessDenied
from tests.support.profiles import NIGHTLY
from tests.support.revisions import MIGRATE_HEAD

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.database import Database

pytestmark = pytest.mark.profiles("pg18")

DOMAINS = """
    CREATE DOMAIN crm.lead_no AS {lead_id_type};
    CREATE DOMAIN crm.person AS {user_id_type};
    ALTER TABLE {activities} ALTER {activity_lead_id} TYPE crm.lead_no, ALTER {activity_user_id} TYPE crm.person;
    ALTER TABLE {leads} ALTER {lead_id} TYPE crm.lead_no;
    """


BY_DAY = [("integer", "bigint", ""), ("text", "integer", DOMAINS)]
"""The profiles try uuid with uuid, and bigint with text."""
TYPES = ("uuid", "bigint", "integer", "text")
BY_NIGHT = [(lead, user, "") for lead in TYPES for user in TYPES]
PAIRS = [*dict.fromkeys(BY_DAY + BY_NIGHT)] if NIGHTLY else BY_DAY


def typed(make_database: Callable[..., Database], lead: str, user: str, script: str = "") -> Database:
    """A database whose host has ids of these types; `script` changes it before the first revision."""
    database = make_database("empty", lead_id_type=lead, user_id_type=user)
    database.create_host_tables()
    database.sql_script(script)
    return database


def protected(database: Database) -> tuple[object, object]:
    """Bring it to head: a lead of user 1, and one of user 2 that was derived when a call came in."""
    first, second = database.lead("DE"), database.lead("DE")
    database.activity(first, database.user(1))
    database.upgrade(MIGRATE_HEAD)
    database.activity(second, database.user(2))
    leadprotect.backfill(database.url, ["DE"], batch_size=1)
    database.upgrade()
    database.create_logins()
    return first, second


@pytest.mark.profiles("pg18", "pg15")
@pytest.mark.parametrize(("lead", "user", "script"), PAIRS, ids=lambda part: "domains" if part == DOMAINS else part)
def test_ids_of_every_type_go_through_the_whole_life(
    make_database: Callable[..., Database], lead: str, user: str, script: str
) -> None:
    database = typed(make_database, lead, user, script)
    first, second = protected(database)
    edit = "UPDATE {leads} SET city = 'Bern' WHERE {lead_id} = %s RETURNING true"
    with database.acting("seller_de", 1) as conn:
        assert [leadprotect.can_edit(conn, one) for one in (first, str(second))] == [True, False]
        assert leadprotect.can_edit_many(conn, [first, second]) == {first: True, second: False}
        assert [entry.lead_id for entry in leadprotect.editable_leads(conn).leads] == [first]
        assert [database.query(conn, edit, one) for one in (first, second)] == [[True], []]
        leadprotect.assert_edit(conn, first)
        with pytest.raises(LeadAccessDenied, match="not_owner"):
            leadprotect.assert_edit(conn, second)
    with database.acting("manager_de", 3) as conn:
        leadprotect.transfer(conn, second, database.user(4), note="ill")
    assert database.owner(second) == database.user(4)
    for arguments in (["audit", "seal"], ["audit", "verify"], ["doctor"], ["audit", "export"]):
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.output
    assert {str(first), str(second)} <= {str(json.loads(line).get("lead_id")) for line in done.stdout.splitlines()}
    database.downgrade()
    assert database.sql("SELECT count(*) FROM {leads} WHERE city = 'Bern'") == [1]
    database.upgrade(MIGRATE_HEAD)
    assert database.owner(second) == database.user(4)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("integer", ["2147483648", "-2147483649", "1.5", "+1", " 1", "one", "9" * 40]),
        ("bigint", ["9223372036854775808", "-9223372036854775809", "1e3", "", "9" * 40]),
    ],
)
def test_a_user_who_is_no_number_of_the_type_is_nobody(
    make_database: Callable[..., Database], kind: str, wrong: list[str]
) -> None:
    database = typed(make_database, "uuid", kind)
    protected(database)
    with database.connect() as conn:
        found = database.query(conn, "SELECT {schema}.parse_user(u) FROM unnest(%s::text[]) AS u", wrong)
        assert found == [None] * len(wrong)
        right = ["7", "-7", "2147483647", "-2147483648"]
        found = database.query(conn, "SELECT {schema}.parse_user(u)::text FROM unnest(%s::text[]) AS u", right)
        assert found == right
    with database.acting("manager_de", 1) as conn, pytest.raises(InvalidRequest, match="user_id"):
        leadprotect.assign(conn, database.lead("DE"), "one")


def test_plain_sql_says_a_number_as_a_number(make_database: Callable[..., Database]) -> None:
    database = typed(make_database, "integer", "bigint")
    first, second = protected(database)
    with database.connect("seller_de") as conn:
        database.query(conn, "SELECT {schema}.set_context(1, 'DE')")
        assert database.query(conn, "SELECT {schema}.can_edit_lead(%s)", first) == [True]
        assert database.query(conn, "SELECT {schema}.can_edit_lead(%s)", second) == [False]
