"""Territories whose codes are no plain words: any text up to 63 characters, from the settings to the base and back."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import psycopg
import pytest
from click.testing import CliRunner

import leadprotect
from leadprotect.cli import main
from leadprotect.database.catalog import territory_role
from leadprotect.migration import gate
from leadprotect.settings.codes import as_setting
from tests.support.revisions import MIGRATE_HEAD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.database import Database

CODES = {
    "North America": "na",
    "1": "1",
    'Zürich, "City": Süd': "zh",
    "O'Brien; DROP TABLE x --": "ob",
    r"50 % \ {schema} :word $do$ $1": "odd",
    "[/b] 😀 | & <td>": "emoji",
    " led by a blank": "blank",
    "ä" * 63: "long",
}
SETTING = ", ".join(as_setting(code, suffix) for code, suffix in CODES.items())


@pytest.fixture
def odd(make_database: Callable[..., Database]) -> Iterator[Database]:
    """A database at the migrate step with a lead of user 1 in each territory, and a login that holds each role."""
    database = make_database("empty", territories=SETTING)
    database.create_host_tables()
    database.sql("ALTER TABLE {leads} ALTER {territory} TYPE text")
    for code in CODES:
        database.activity(database.lead(code), database.user(1))
    database.upgrade(MIGRATE_HEAD)
    yield database
    for suffix in CODES.values():
        name = f"seller-{suffix}-{database.name}"
        if database.sql("SELECT FROM pg_roles WHERE rolname = %s", name):
            database.sql_script(f'DROP OWNED BY "{name}"; DROP ROLE "{name}"')


def seller(database: Database, code: str) -> psycopg.Connection[tuple[object, ...]]:
    """A connection of a login that holds the role of this territory alone."""
    name = f"seller-{CODES[code]}-{database.name}"
    if not database.sql("SELECT FROM pg_roles WHERE rolname = %s", name):
        roles = ", ".join(f'"{role}"' for role in (database.settings.role("app"), database.settings.role(CODES[code])))
        database.sql_script(
            f'CREATE ROLE "{name}" LOGIN; GRANT {roles} TO "{name}"; GRANT USAGE ON SCHEMA crm TO "{name}";'
            f'GRANT SELECT, UPDATE ON {{leads}} TO "{name}"'
        )
    return psycopg.connect(database.server.url(database.name, name))


def told(*words: str) -> str:
    ran = CliRunner().invoke(main, words)
    assert ran.exit_code == 0, ran.output
    return ran.stdout


@pytest.mark.profiles("pg18", "other_names")
def test_codes_of_any_text_go_through_the_whole_life(odd: Database) -> None:
    with odd.connect() as conn:
        (owners,) = (one for one in gate.conditions(conn, settings=odd.settings) if one.name == "owners")
    assert owners.remedy is not None
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {owners.remedy}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert words[:2] == ["leadprotect", "backfill"]
    assert set(words[2:]) == {*CODES}
    told(*words[1:])
    odd.upgrade("head", contract="require")
    for code in CODES:
        with seller(odd, code) as conn, leadprotect.acting_as(conn, odd.user(1), code):
            [lead] = odd.query(conn, "SELECT {lead_id} FROM {leads}")
            assert leadprotect.explain(conn, lead).reason == "owner", code
            leadprotect.assert_edit(conn, lead)
            assert leadprotect.territory(conn, code).name == code
        with (
            seller(odd, code) as conn,
            leadprotect.acting_as(conn, odd.user(1), next(one for one in CODES if one != code)),
        ):
            assert odd.query(conn, "SELECT {lead_id} FROM {leads}") == [], code
            assert not leadprotect.can_edit(conn, lead)
    listed = json.loads(told("territory", "list", "--json"))["territories"]
    roles = {one["code"]: one["role"] for one in listed}
    assert roles == {code: odd.settings.role(suffix) for code, suffix in CODES.items()}
    assert max(len(role.encode()) for role in roles.values()) <= 63
    for words in (["doctor"], ["audit", "seal"], ["audit", "verify"], ["status"], ["roles", "--sql"]):
        told(*words)
    exported = [json.loads(line) for line in told("audit", "export").splitlines()]
    assert {line.get("territory") for line in exported} >= {*CODES}
    odd.downgrade()
    odd.upgrade(MIGRATE_HEAD)
    with odd.connect() as conn:
        assert {code: territory_role(conn, code) for code in CODES} == roles


@pytest.mark.profiles("pg18")
def test_a_code_added_later_names_the_suffix_of_its_role(expanded: Database) -> None:
    expanded.lead("New England")
    with expanded.connect() as conn:
        (unknown,) = (one for one in gate.conditions(conn, settings=expanded.settings) if one.name == "territories")
    assert "leadprotect territory add --suffix SUFFIX 'New England'" in str(unknown.remedy)
    refused = CliRunner().invoke(main, ["territory", "add", "New England"])
    assert (1, True) == (refused.exit_code, "New England: suffix" in refused.output), refused.output
    for taken in ("de", "app", "N E", ""):
        refused = CliRunner().invoke(main, ["territory", "add", "New England", "--suffix", taken])
        assert refused.exit_code == 1, refused.output
    told("territory", "add", "England", "--suffix", "eng")
    said = told("territory", "rename", "England", "New England", "--suffix", "ne")
    assert f"Its sellers need the role {expanded.settings.role('ne')}" in " ".join(said.split())
    told("backfill", "New England")
    with expanded.connect() as conn:
        assert territory_role(conn, "New England") == expanded.settings.role("ne")
    assert expanded.sql("SELECT {schema}.all_territories()") == [["CH", "DE", "New England"]]
    named = {code: expanded.settings.role(end) for code, end in {"CH": "ch", "DE": "de", "New England": "ne"}.items()}
    assert expanded.sql("SELECT {schema}.territory_roles()") == [named]


@pytest.mark.profiles("pg18")
def test_a_role_that_is_called_like_a_long_code_holds_no_territory(odd: Database) -> None:
    # what stood in place of the suffix: a name that PostgreSQL cuts would be another code's
    twin = "ä" * 62 + "ö"
    assert odd.sql("SELECT {schema}.is_member(%s)", twin) == [False]
    told("territory", "add", twin, "--suffix", "twin")
    roles = odd.sql("SELECT {schema}.territory_role(code) FROM {schema}.territories")
    assert len(roles) == len({role.encode()[:63] for role in roles}) == len(CODES) + 1
