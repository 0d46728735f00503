"""The legal terms of a territory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date
from decimal import Decimal

import psycopg
import pytest
from click.testing import CliRunner

import leadprotect
from leadprotect import settings
from leadprotect.cli import main
from leadprotect.errors import PreflightError
from leadprotect.migration import gate
from leadprotect.migration.territories import add_territory
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


def add_austria(database: Database) -> str:
    """Returns the URL of a seller of Austria; grants of roles are cluster-wide, so it is nobody else's login."""
    with database.connect(autocommit=True) as conn:
        add_territory(conn, "AT", name="Österreich", currency="EUR", legal_framework="ABGB", vat_rate=Decimal(20))
    login = database.profile.login("seller_at")
    if not database.sql("SELECT FROM pg_roles WHERE rolname = %s", login):
        database.sql(f'CREATE ROLE "{login}" LOGIN')
    roles = ", ".join(f'"{database.settings.role(name)}"' for name in ("app", "AT"))
    database.sql_script(
        f'GRANT {roles} TO "{login}"; GRANT USAGE ON SCHEMA crm TO "{login}";'
        f'GRANT SELECT, UPDATE ON {{leads}} TO "{login}"'
    )
    return database.login_url("seller_at")


def test_a_territory_added_later_is_protected_like_the_first_ones(database: Database) -> None:
    url = add_austria(database)
    austrian, german = (database.lead(code, owner=database.user(1)) for code in ("AT", "DE"))
    with psycopg.connect(url) as conn, leadprotect.acting_as(conn, database.user(1), "AT"):
        assert database.query(conn, "SELECT {lead_id} FROM {leads}") == [austrian]
        assert leadprotect.can_edit_many(conn, [austrian, german]) == {austrian: True, german: False}
        assert leadprotect.territory(conn, "AT").vat_rate == Decimal(20)
    with psycopg.connect(url) as conn, leadprotect.acting_as(conn, database.user(2), "AT"):
        assert conn.execute(database.text("UPDATE {leads} SET city = 'Wien'")).rowcount == 0
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(1), "AT"):
        assert database.query(conn, "SELECT count(*) FROM {leads}") == [0]


def test_a_territory_added_before_contract_is_enforced_by_it(expanded: Database) -> None:
    url = add_austria(expanded)
    austrian = expanded.lead("AT", owner=expanded.user(1))
    expanded.sql("DELETE FROM {schema}.contextless_writes")
    expanded.upgrade()
    with psycopg.connect(url) as conn, leadprotect.acting_as(conn, expanded.user(1), "AT"):
        assert expanded.query(conn, "SELECT {lead_id} FROM {leads}") == [austrian]


def test_the_login_that_migrates_is_told_every_territory_though_the_policies_show_it_none(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = f"migrates-{database.name}"
    database.sql_script(f'CREATE ROLE "{login}" LOGIN CREATEROLE; GRANT {{owner}}, {{reader}} TO "{login}"')
    try:
        monkeypatch.setenv("DATABASE_URL", database.server.url(database.name, login))
        settings.current.cache_clear()
        told = {
            words: CliRunner().invoke(main, words.split())
            for words in ("territory add DE", "territory remove AT", "territory remove DE", "audit list",
                          "audit verify", "scripts x")
        }  # fmt: skip
    finally:
        database.sql_script(f'DROP OWNED BY "{login}"; DROP ROLE "{login}"')
    for words, (code, said) in {
        "territory add DE": (1, "'DE' is known already"),
        "territory remove AT": (1, "there is no 'AT'; known are CH, DE"),
        "territory remove DE": (0, "DE"),
        "audit list": (1, "holds the role of no territory, so nothing of CH would be in the answer"),
        "audit verify": (2, "CH: not judged"),
        "scripts x": (1, "a DBA can run: GRANT"),
    }.items():
        assert (code, True) == (told[words].exit_code, said in told[words].output), (words, told[words].output)
    assert database.sql("SELECT code FROM {schema}.territories") == ["CH"]


@pytest.mark.parametrize(("code", "message"), [("DE", "known already"), ("de", "known already"), ("D E", "not a code")])
def test_a_code_that_can_t_be_added_is_named(database: Database, code: str, message: str) -> None:
    with database.connect(autocommit=True) as conn, pytest.raises(leadprotect.InvalidRequest, match=message):
        add_territory(conn, code)
    assert database.sql("SELECT count(*) FROM {schema}.territories") == [2]


def test_a_code_in_another_case_is_told_from_an_unknown_one(expanded: Database) -> None:
    expanded.lead("AT")
    with expanded.connect(autocommit=True) as conn:
        with pytest.raises(leadprotect.InvalidRequest, match="'de' is known already as 'DE': two that differ in case"):
            add_territory(conn, "de")
        with pytest.raises(leadprotect.InvalidRequest, match="the leads carry 'AT', not 'at': leadprotect territory"):
            add_territory(conn, "at")
        add_territory(conn, "AT")
    with pytest.raises(leadprotect.InvalidRequest, match=r"known are: AT, CH, DE\. Did you mean AT\?"):
        leadprotect.backfill(expanded.url, "at")


def test_the_gate_tells_how_to_write_a_known_territory(expanded: Database) -> None:
    lead = expanded.lead("de")
    with expanded.connect() as conn:
        (found,) = (c for c in gate.conditions(conn, settings=expanded.settings) if c.name == "territories")
    assert not found.met
    assert found.remedy is not None
    expanded.sql(found.remedy.replace("%", "%%"))
    assert expanded.sql("SELECT {territory} FROM {leads} WHERE {lead_id} = %s", lead) == ["DE"]


@pytest.fixture
def migrator(expanded: Database) -> Iterator[str]:
    """A login that acts as the owner of our objects, and may not create roles."""
    name = f"migrator-{expanded.name}"
    expanded.sql_script(f'CREATE ROLE "{name}" LOGIN; GRANT "{expanded.settings.role("owner")}" TO "{name}"')
    yield name
    expanded.sql(f'DROP ROLE "{name}"')  # a login with privileges would close the gate of other tests


@pytest.mark.profiles("pg18", "other_names")
def test_who_may_not_create_roles_is_told_what_a_dba_runs(expanded: Database, migrator: str) -> None:
    role = expanded.settings.role("LI")
    with psycopg.connect(expanded.server.url(expanded.name, migrator), autocommit=True) as conn:
        with pytest.raises(PreflightError) as refused:
            add_territory(conn, "LI")
        create, tell = refused.value.statements
        assert f'CREATE ROLE "{role}" NOLOGIN;' == create
        assert tell.startswith(f'COMMENT ON ROLE "{role}" IS ')
        assert f"role {migrator} may not create roles, and {role} is missing" in str(refused.value)
        assert [] == expanded.sql("SELECT FROM {schema}.territories WHERE code = 'LI'")
        expanded.sql_script(create + tell)
        add_territory(conn, "LI")
    assert ["LI"] == expanded.sql("SELECT code FROM {schema}.territories WHERE code = 'LI'")


# --- list, rename, remove


def told(*arguments: str) -> tuple[int, str]:
    ran = CliRunner().invoke(main, ["territory", *arguments])
    return ran.exit_code, ran.output


def codes(database: Database) -> list[str]:
    found: list[str] = database.sql("SELECT code FROM {schema}.territories ORDER BY 1")
    assert found == database.sql("SELECT unnest({schema}.all_territories()) ORDER BY 1")
    assert found == database.sql("SELECT territory FROM {schema}.backfill_jobs ORDER BY 1")
    return found


def test_every_territory_is_listed_with_its_terms_and_who_holds_its_role(database: Database) -> None:
    code, said = told("list", "--json")
    assert 0 == code, said
    (swiss, german) = json.loads(said)["territories"]
    assert ("CH", "Schweiz", "CHF", "8.1") == (swiss["code"], swiss["name"], swiss["currency"], swiss["vat_rate"][:3])
    assert database.settings.role("DE") == german["role"]
    assert database.profile.login("seller_de") in [member.strip('"') for member in german["members"]]
    assert 0 == told("list")[0]


def test_a_typing_mistake_is_renamed_with_its_terms(database: Database) -> None:
    assert 0 == told("add", "OE", "--name", "Austria", "--currency", "EUR", "--vat", "20")[0]
    code, said = told("rename", "OE", "AT")
    assert (0, True) == (code, database.settings.role("AT") in said), said
    assert ["AT", "CH", "DE"] == codes(database)
    with database.connect("seller_de") as conn:
        terms = leadprotect.territory(conn, "AT")
    assert ("Austria", "EUR", Decimal(20)) == (terms.name, terms.currency, terms.vat_rate)


NAMED = {
    "lead": "leads (1)",
    "owner": "user_lead_assignments",
    "rule": "lead_protection_rules",
    "audit": "lead_access_audit",
}


@pytest.mark.parametrize("how", [("remove", "DE"), ("rename", "DE", "DD")], ids=" ".join)
@pytest.mark.parametrize("naming", NAMED)
def test_a_territory_that_something_names_stays(database: Database, naming: str, how: tuple[str, ...]) -> None:
    lead = database.lead("DE", owner=database.user(1) if naming == "owner" else None)
    if naming == "rule":
        database.rule(database.user(1), "COLLABORATOR")
    if naming == "audit":
        with database.acting("seller_de", 1) as conn:
            database.query(conn, "SELECT {schema}.record_edit_attempt(%s)", lead)
    if naming != "lead":
        database.sql("UPDATE {leads} SET {territory} = NULL")
    code, said = told(*how)
    assert 1 == code
    wanted = {
        "lead": "leads (1)",
        "owner": "user_lead_assignments",
        "rule": "lead_protection_rules",
        "audit": "lead_access_audit",
    }
    assert wanted[naming] in said
    assert ["CH", "DE"] == codes(database)


def test_a_territory_that_nothing_names_is_removed_and_can_be_added_again(database: Database) -> None:
    code, said = told("remove", "CH")
    assert (0, True) == (code, "take CH out of territories in your settings" in said), said
    assert ["DE"] == codes(database)
    code, said = told("remove", "DE")
    assert (1, True) == (code, "DE is the last one" in said)
    assert 0 == told("add", "CH")[0]
    assert ["CH", "DE"] == codes(database)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("remove", "FR"), "there is no 'FR'; known are CH, DE"),
        (("rename", "FR", "IT"), "there is no 'FR'; known are CH, DE"),
        (("rename", "DE", "de"), "would have one role"),
        (("rename", "DE", "CH"), "'CH' is known already"),
        (("rename", "DE", "D E"), "is not a code"),
        (("add", "FR", "--currency", "EURO"), "--currency: 'EURO' is not an ISO 4217 code"),
        (("add", "FR", "--vat", "NaN"), "--vat: 'NaN' is not a percentage"),
        (("add", "FR", "--vat", "120"), "--vat: '120' is not a percentage"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_can_t_be_is_refused_with_the_reason(database: Database, words: tuple[str, ...], said: str) -> None:
    code, output = told(*words)
    assert (2 if said.startswith("--") else 1, True) == (code, said in output), output
    assert ["CH", "DE"] == codes(database)


def test_every_territory_is_backfilled_without_being_named(expanded: Database) -> None:
    ran = CliRunner().invoke(main, ["backfill", "--all", "--verify"])
    assert 0 == ran.exit_code, ran.output
    assert ["CH", "DE"] == sorted(line.partition(":")[0] for line in ran.output.splitlines())
    assert expanded.url
    for words in (["backfill"], ["backfill", "--all", "DE"]):
        refused = CliRunner().invoke(main, words)
        assert (2, True) == (refused.exit_code, "name territories, or --all" in refused.output)
