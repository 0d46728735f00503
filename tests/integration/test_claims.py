"""Who asks stands in one JSON setting, as PostgREST and Supabase keep it: anything but a claim is nobody's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

import leadprotect
from leadprotect.cli import main
from leadprotect.errors import SettingsError
from leadprotect.settings import parse
from tests.support.revisions import MIGRATE_HEAD

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.database import Database

CLAIMS = {"user_guc": "request.jwt.claims ->> sub", "territory_guc": "request.jwt.claims ->> market"}

GOOD = [
    '{"sub": "anna"}',
    ' \t\r\n{"a": [1, -2.5e3, {"b": null}, [], {}], "sub": 12, "c": true, "d": "x\\n\\u00e4\\ud83d\\ude00\\""}',
    '{"sub": "a \\"quoted\\" name, {not} [a] list: 1"}',
    '{"sub": ""}',
    '{"sub": "first", "sub": "last"}',
    '{"sub":0}',
]
NO_CLAIM = [
    '{"sub": null}',
    '{"sub": true}',
    '{"sub": ["anna"]}',
    '{"sub": {"sub": "anna"}}',
    "{}",
    '{"a": {"sub": "anna"}}',
]
NO_OBJECT = ["", " ", "null", "12", '"sub"', '["sub"]', '[{"sub": "anna"}]', "anna", '"', "["]
MALFORMED = [
    "{",
    '{"sub"}',
    '{"sub": }',
    '{"sub": "anna"',
    '{"sub": "anna"}}',
    '{"sub": "anna"} x',
    '{"sub": "anna",}',
    '{"sub" "anna"}',
    '{sub: "anna"}',
    "{'sub': 'anna'}",
    '{"sub": "anna}',
    '{"sub": "an\tna"}',
    '{"sub": "\\x"}',
    '{"sub": "anna", "n": 01}',
    '{"sub": "anna", "n": 1 2}',
    '{"sub": "anna", "n": +1}',
    '{"sub": "anna", "n": truefalse}',
    '{"sub": "anna", "n": "\\u0000"}',
    '{"sub": "anna", "n": "\\ud83d"}',
    '{"sub": "anna", "n": "\\u12"}',
    '{"sub": "anna", "n": 1e999999}',
    '{"sub": "anna", "a": [1,]}',
    '{"sub": "anna", "a": [1}',
    '{"sub": "anna" "b": 1}',
]


def claimed(database: Database, texts: list[str]) -> list[str | None]:
    return database.sql("SELECT {schema}.claimed(said, 'sub') FROM unnest(%s::text[]) AS said", texts)


@pytest.mark.profiles("pg18", "pg15")
def test_a_claim_is_read_and_anything_else_is_nobodys_and_no_error(database: Database) -> None:
    expected = [str(json.loads(text)["sub"]) for text in GOOD]
    assert claimed(database, GOOD) == expected
    for wrong in (NO_CLAIM, NO_OBJECT, MALFORMED):
        assert dict(zip(wrong, claimed(database, wrong), strict=True)) == dict.fromkeys(wrong)


def claiming(make_database: Callable[..., Database], **more: str) -> Database:
    database = make_database("host", **CLAIMS, **more)
    database.upgrade(MIGRATE_HEAD)
    database.create_logins()
    database.upgrade()
    return database


def told(database: Database, conn: Any, **claims: Any) -> None:
    """What PostgREST does at the begin of a request."""
    database.query(conn, "SELECT set_config('request.jwt.claims', %s, true)", json.dumps(claims))


@pytest.mark.profiles("pg18", "pg15")
def test_claims_make_the_context_of_everything(make_database: Callable[..., Database]) -> None:
    database = claiming(make_database)
    own, other = (database.lead("DE", owner=database.user(number)) for number in (1, 2))
    edit = "UPDATE {leads} SET city = 'Bern' WHERE {lead_id} = %s RETURNING true"
    with database.connect("seller_de") as conn:
        told(database, conn, sub=database.user(1), market="DE", role="authenticated")
        assert database.query(conn, "SELECT count(*) FROM {leads}") == [2]
        assert [database.query(conn, edit, lead) for lead in (own, other)] == [[True], []]
        assert database.query(conn, "SELECT reason FROM {schema}.v_lead_protection WHERE lead = %s", own) == ["owner"]
        assert leadprotect.can_edit(conn, own) is True
    for claims in ({"sub": database.user(1), "market": "CH"}, {"sub": database.user(1)}, {"market": ["DE"]}, {}):
        with database.connect("seller_de") as conn:
            told(database, conn, **claims)
            assert database.query(conn, "SELECT count(*) FROM {leads}") == [0], claims
    assert database.audit("reason, user_id::text") == [("owner", database.user(1))]
    diagnosed = CliRunner().invoke(main, ["doctor"])
    assert diagnosed.exit_code == 0, diagnosed.output
    database.downgrade()
    database.upgrade(MIGRATE_HEAD)
    assert database.owner(own) == database.user(1)


@pytest.mark.profiles("pg18")
def test_who_declares_a_context_leaves_the_other_claims(make_database: Callable[..., Database]) -> None:
    database = claiming(make_database)
    own = database.lead("DE", owner=database.user(1))
    now = "SELECT current_setting('request.jwt.claims', true)"
    outer = {"sub": database.user(2), "market": "DE", "role": "authenticated", "app_metadata": {"org": 7}}
    with database.connect("seller_de") as conn:
        told(database, conn, **outer)
        with leadprotect.acting_as(conn, database.user(1), "DE"):
            assert json.loads(database.query(conn, now)[0]) == outer | {"sub": database.user(1)}
            assert leadprotect.can_edit(conn, own) is True
        assert json.loads(database.query(conn, now)[0]) == outer
        assert leadprotect.can_edit(conn, own) is False
        database.query(conn, "SELECT {schema}.set_context(NULL::text, NULL)")
        assert json.loads(database.query(conn, now)[0]) == {"role": "authenticated", "app_metadata": {"org": 7}}
        database.query(conn, "SELECT set_config('request.jwt.claims', '{broken', true)")
        with leadprotect.acting_as(conn, database.user(1), "DE"):
            assert leadprotect.can_edit(conn, own) is True


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"user_guc": "request.jwt.claims ->>"}, "user_guc: 'request.jwt.claims ->>' names no field"),
        ({"user_guc": "request.jwt.claims ->> a'b"}, "names no field"),
        ({"user_guc": "claims ->> sub"}, "is not a customised option name"),
        ({"correlation_guc": "request.jwt.claims ->> jti"}, "a correlation id has a setting of its own"),
        ({"user_guc": "a.b ->> sub", "territory_guc": "A.B ->> sub"}, "is named twice"),
        ({"user_guc": "a.b ->> sub", "territory_guc": "a.b"}, "is named twice"),
    ],
)
def test_a_field_that_can_t_be_one_is_refused_by_name(given: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        parse(given)
