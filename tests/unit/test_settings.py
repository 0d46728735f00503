"""Every key, every bad value, and where a value may come from; no database is needed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from alembic.config import Config

from leadprotect import settings
from leadprotect.errors import SettingsError
from leadprotect.settings import KEYS, LeadTable, Settings, duration, load, parse
from leadprotect.settings.expressions import constant

NAMES = [key for key in KEYS if key.endswith("_column")] + ["schema", "version_table", "version_table_schema"]
TABLES = ["leads_table", "activities_table"]
PASSWORD = "correct-horse"  # noqa: S105 - it must not show up anywhere


def refusal(**given: str) -> str:
    with pytest.raises(SettingsError) as caught:
        parse(given)
    return str(caught.value)


def ini(folder: Path, text: str, name: str = "alembic.ini") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_defaults_are_those_of_the_design() -> None:
    expected = Settings(
        audit_url="",
        database_url="",
        schema="leadprotect",
        leads_table="public.leads",
        lead_id_column="id",
        lead_id_type="uuid",
        territory_column="territory",
        territory_expression="",
        user_id_type="uuid",
        activities_table="public.activities",
        activity_id_column="id",
        activity_lead_id_column="lead_id",
        activity_user_id_column="user_id",
        activity_kind_column="kind",
        activity_at_column="created_at",
        qualifying_kinds=(
            "QUALIFIED_CALL",
            "CUSTOMER_REACTION",
            "SCHEDULED_FOLLOWUP",
            "SAMPLE_FEEDBACK",
            "ROI_PRESENTATION",
        ),
        territories=("DE", "CH"),
        user_guc="app.user_id",
        territory_guc="app.territory",
        correlation_guc="app.correlation_id",
        host_rls="enforce",
        denied_edit="hide",
        owner_on_insert="none",
        version_table="alembic_version",
        version_table_schema="leadprotect",
        observation_window=7 * 24 * 60 * 60,
        exempt_roles=(),
        lead_tables=(),
        prometheus_url="",
        prometheus_token_file="",
        prometheus_user="",
        prometheus_password_file="",
        prometheus_ca_file="",
        prometheus_cert_file="",
        prometheus_service="leadprotect",
        slo_p95=0.15,
    )
    assert expected == parse({})


GOOD = {
    "audit_url": ("postgresql://db:5432", "postgresql://db:5432"),
    "database_url": ("postgresql://me@db:5432/crm", "postgresql://me@db:5432/crm"),
    "schema": ("Lead Guard", "Lead Guard"),
    "leads_table": ("crm.Leads", "crm.Leads"),
    "lead_id_column": ("lead no", "lead no"),
    "lead_id_type": ("bigint", "bigint"),
    "territory_column": ("Märkte (neu)", "Märkte (neu)"),
    "territory_expression": ("coalesce(region, 'DE')", "coalesce(region, 'DE')"),
    "user_id_type": ("text", "text"),
    "activities_table": ("crm.calls.2026", "crm.calls.2026"),
    "activity_id_column": ("ID$", "ID$"),
    "activity_lead_id_column": ("lead-id", "lead-id"),
    "activity_user_id_column": ("seller", "seller"),
    "activity_kind_column": ("what?", "what?"),
    "activity_at_column": ("happened.at", "happened.at"),
    "owners_from": ("activities", ("activities",)),
    "owner_column": ("", ""),
    "activity_base_table": ("crm.calls", "crm.calls"),
    "activity_condition": ("NOT deleted AND note <> '%;--(select'", "NOT deleted AND note <> '%;--(select'"),
    "excluded_users": (
        "00000000-0000-0000-0000-0000000000ff, 00000000-0000-0000-0000-0000000000FE",
        ("00000000-0000-0000-0000-0000000000ff", "00000000-0000-0000-0000-0000000000FE"),
    ),
    "qualifying_kinds": ("O'Brien's 10 % {call}, a :b :cc:d", ("O'Brien's 10 % {call}", "a :b :cc:d")),
    "territories": ('AT, 1, O\'x: ox, "a, ""b"": c" : abc', ("AT", "1", "O'x", 'a, "b": c')),
    "user_guc": ("crm.seller", "crm.seller"),
    "territory_guc": ("crm.market", "crm.market"),
    "correlation_guc": ("crm.sub.request", "crm.sub.request"),
    "host_rls": ("off", "off"),
    "denied_edit": ("raise", "raise"),
    "owner_on_insert": ("creator", "creator"),
    "version_table": ("guard versions", "guard versions"),
    "version_table_schema": ("crm", "crm"),
    "observation_window": ("12 hours", 12 * 60 * 60),
    "exempt_roles": ("reporting, backup@corp", ("reporting", "backup@corp")),
    "lead_tables": (
        "public.lead contacts (of lead), crm.notes(lead_id) append",
        (LeadTable("public.lead contacts", "of lead"), LeadTable("crm.notes", "lead_id", append=True)),
    ),
    "prometheus_url": ("https://prometheus:9090/", "https://prometheus:9090"),
    "prometheus_token_file": ("/run/secrets/token", "/run/secrets/token"),
    "prometheus_user": ("release bot", "release bot"),
    "prometheus_password_file": ("/run/secrets/password", "/run/secrets/password"),
    "prometheus_ca_file": ("ca.pem", "ca.pem"),
    "prometheus_cert_file": ("client.pem", "client.pem"),
    "prometheus_service": ("crm-eu.1", "crm-eu.1"),
    "slo_p95": ("200ms", 0.2),
}


def test_every_key_has_a_good_value_here() -> None:
    assert set(KEYS) == set(GOOD)


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_read_from_the_environment(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, value = GOOD[key]
    assert value == getattr(load(environ={f"LEADPROTECT_{key.upper()}": f" {text} "}), key)


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_read_from_the_ini_file_by_alembic_and_by_the_command_line(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text, value = GOOD[key]
    path = ini(tmp_path, f"[alembic]\n\n[leadprotect]\n{key} = {text.replace('%', '%%')}\n")
    assert [value, value] == [getattr(load(config, environ={}), key) for config in (None, Config(str(path)))]


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ini(tmp_path, "[leadprotect]\nschema = from_file\nterritory_column = market\n")
    found = load(environ={"LEADPROTECT_SCHEMA": "from_environment"})
    assert (found.schema, found.territory_column) == ("from_environment", "market")


def test_the_file_may_be_named_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    ini(tmp_path / "elsewhere", "[leadprotect]\nschema = here\n")
    named = ini(tmp_path, "[leadprotect]\nschema = named\nterritory_column = market\n", name="crm.ini")
    assert load(environ={"LEADPROTECT_CONFIG": str(named)}).schema == "named"
    assert load(environ={"LEADPROTECT_CONFIG": "../crm.ini", "LEADPROTECT_SCHEMA": "variable"}).schema == "variable"
    assert load(environ={"LEADPROTECT_CONFIG": ""}).schema == "here"
    # Alembic has its own option for it
    assert (
        load(Config(str(tmp_path / "elsewhere/alembic.ini")), environ={"LEADPROTECT_CONFIG": str(named)}).schema
        == "here"
    )


def test_a_named_file_that_is_not_there_is_one_clear_error() -> None:
    with pytest.raises(SettingsError, match=r"^LEADPROTECT_CONFIG or --config: there is no file /nowhere/crm.ini$"):
        load(environ={"LEADPROTECT_CONFIG": "/nowhere/crm.ini"})


def test_the_url_comes_from_the_more_special_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ini(tmp_path, "[leadprotect]\ndatabase_url = postgresql:///file\n")
    both = {"DATABASE_URL": "postgresql:///general", "LEADPROTECT_DATABASE_URL": "postgresql:///special"}
    assert load(environ=both).database_url == "postgresql:///special"
    del both["LEADPROTECT_DATABASE_URL"]
    assert load(environ=both).database_url == "postgresql:///general"
    assert load(environ={"DATABASE_URL": ""}).database_url == "postgresql:///file"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg", "postgresql+psycopg2"])
def test_a_sqlalchemy_url_is_read_as_libpq_has_it(scheme: str) -> None:
    assert parse({"database_url": f"{scheme}://me@db/crm"}).database_url == "postgresql://me@db/crm"


def test_without_a_file_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse({}) == load(environ={})
    ini(tmp_path, "[alembic]\nscript_location = migrations\n")
    assert parse({}) == load(environ={})


def test_what_an_ini_file_sets_for_all_sections_is_no_key_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ini(tmp_path, "[DEFAULT]\ncompany = Muster\nschema = shared\n\n[leadprotect]\nschema = ours\n")
    assert load(environ={}).schema == "ours"


def test_the_settings_of_the_process_are_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LEADPROTECT_SCHEMA", "first")
    assert settings.current().schema == "first"
    monkeypatch.setenv("LEADPROTECT_SCHEMA", "second")
    assert settings.current().schema == "first"


# --- what is refused, always with the key named


def test_an_unknown_key_is_named_with_the_known_ones() -> None:
    text = refusal(shema="x")
    assert "'shema'" in text
    assert all(key in text for key in KEYS)


LINKS = [
    "LEADPROTECT_PORT",
    "LEADPROTECT_PORT_5432_TCP",
    "LEADPROTECT_PORT_5432_TCP_ADDR",
    "LEADPROTECT_SERVICE_HOST",
    "LEADPROTECT_SERVICE_PORT",
    "LEADPROTECT_SERVICE_PORT_HTTPS",
    "LEADPROTECT_API_SERVICE_HOST",
]


def test_service_links_of_kubernetes_are_ignored_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    environ = dict.fromkeys(LINKS, "tcp://10.0.0.1:5432") | {"LEADPROTECT_SCHEMA": "guard"}
    assert [load(environ=environ).schema for _ in range(3)] == ["guard"] * 3
    (warned,) = [record for record in caplog.records if record.name == "leadprotect"]
    assert all(link in warned.getMessage() for link in LINKS)
    with pytest.raises(SettingsError, match="unknown key 'ports'"):
        load(environ=environ | {"LEADPROTECT_PORTS": "1"})


def test_settings_stand_in_pyproject_too_and_an_ini_file_and_the_environment_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    toml = '[tool.leadprotect]\nschema = "one"\nhost_rls = "off"\nterritories = ["DE", "AT"]\nuser_guc = "a.b"\n'
    Path("pyproject.toml").write_text(toml)
    Path("alembic.ini").write_text("[leadprotect]\nschema = two\nuser_guc = c.d\n")
    named = Config("alembic.ini", toml_file="pyproject.toml")
    for found in (load(environ={"LEADPROTECT_USER_GUC": "e.f"}), load(named, environ={"LEADPROTECT_USER_GUC": "e.f"})):
        assert (found.schema, found.host_rls, found.territories, found.user_guc) == ("two", "off", ("DE", "AT"), "e.f")
    Path("pyproject.toml").write_text('[tool.leadprotect]\nshema = "x"\n')
    with pytest.raises(SettingsError, match="unknown key 'shema'"):
        load(environ={})


@pytest.mark.parametrize("url", ["postgresql://me@db/crm", "driver://user:pass@localhost/dbname", "sqlite:///x.db"])
def test_the_url_is_that_of_the_ini_file_where_nothing_else_names_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("alembic.ini").write_text(f"[alembic]\nsqlalchemy.url = {url}\n")
    expected = url if url.startswith("postgresql") else ""
    assert [load(environ={}).database_url, load(Config("alembic.ini"), environ={}).database_url] == [expected] * 2
    assert load(environ={"DATABASE_URL": "postgresql://other@db/crm"}).database_url == "postgresql://other@db/crm"


def test_an_unknown_key_of_the_environment_is_named_as_it_was_written() -> None:
    with pytest.raises(SettingsError, match="LEADPROTECT_SHEMA"):
        load(environ={"LEADPROTECT_SHEMA": "x"})


@pytest.mark.parametrize("key", [*NAMES, *TABLES, "exempt_roles"])
@pytest.mark.parametrize("character", ["'", '"', "\\", "%", ":", "{", "}", "\0", "\n", "\t", "\x7f", "\udc80", "$do$"])
def test_a_name_refuses_what_means_something_in_sql(key: str, character: str) -> None:
    name = f"crm.a{character}b" if key in TABLES else f"a{character}b"
    assert refusal(**{key: name}).startswith(f"{key}: ")


@pytest.mark.parametrize("key", [*NAMES, *TABLES])
def test_a_name_that_postgresql_would_cut_is_refused(key: str) -> None:
    name = "crm." + "x" * 64 if key in TABLES else "ü" * 32
    assert refusal(**{key: name}).startswith(f"{key}: ")


# there it means the schema, and that activities have no kind
NEVER_EMPTY = [key for key in NAMES if key not in {"version_table_schema", "activity_kind_column", "owner_column"}]


@pytest.mark.parametrize("key", [*NEVER_EMPTY, "lead_id_type", "host_rls", "user_guc", "observation_window"])
def test_an_empty_value_is_refused(key: str) -> None:
    assert refusal(**{key: " "}).startswith(key)


def test_the_longest_schema_leaves_room_for_every_name_made_of_it() -> None:
    found = parse({"schema": "s" * 36, "territories": "a" * 16})
    texts = settings.names(found).values()
    longest = max(len(text.strip('"')) for text in texts if re.fullmatch(r'"s+[^"]*"', text))
    assert longest <= 63
    assert len(f"{found.schema}_territory_{'a' * 16}") == 63
    assert refusal(schema="s" * 37) == f"schema: {'s' * 37!r} is longer than 36 bytes"


@pytest.mark.parametrize("text", ["public", "pg_lead", "information_schema", "a.b", "a$b"])
def test_a_schema_that_is_not_ours_alone_is_refused(text: str) -> None:
    assert refusal(schema=text).startswith("schema: ")


@pytest.mark.parametrize("key", TABLES)
def test_the_schema_of_the_hosts_tables_is_refused(key: str) -> None:
    assert refusal(schema="crm", **{key: "crm.leads"}).startswith("schema: ")
    assert refusal(schema="crm", **{key: "crm_quarantine.leads"}).startswith("schema: ")


def test_the_version_table_lives_in_our_schema_whatever_that_is_called() -> None:
    assert parse({"schema": "guard"}).version_table_schema == "guard"
    assert parse({"schema": "guard", "version_table_schema": " "}).version_table_schema == "guard"
    assert parse({"schema": "guard", "version_table_schema": "guard"}).version_table_schema == "guard"
    assert parse({"schema": "guard", "version_table_schema": "crm"}).version_table_schema == "crm"
    assert Settings().version_table_schema == "leadprotect"
    assert Settings(schema="guard").version_table_schema == "guard"


def test_the_version_table_needs_a_schema_that_stays() -> None:
    assert refusal(version_table_schema="leadprotect_quarantine").startswith("version_table_schema: ")


@pytest.mark.parametrize("key", TABLES)
@pytest.mark.parametrize("text", ["leads", ".leads", "crm.", ""])
def test_a_table_is_named_with_its_schema(key: str, text: str) -> None:
    assert refusal(**{key: text}).startswith(key)


@pytest.mark.parametrize(
    ("key", "text"), [("lead_id_type", "int"), ("user_id_type", "smallint"), ("host_rls", "true"), ("host_rls", "OFF")]
)
def test_a_choice_names_what_may_be_chosen(key: str, text: str) -> None:
    assert f"{key}: '{text}' is not one of " in refusal(**{key: text})


@pytest.mark.parametrize("text", ["DE,", "DE"])
def test_one_territory_is_enough(text: str) -> None:
    assert parse({"territories": text}).territories == ("DE",)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "DE, DE",
        "DE, de",
        "D-E",
        "A" * 17,
        "app",
        "Owner",
        "O'x",
        "Ö",
        "DE:",
        "DE: x y",
        "DE: ä",
        "Ö: app",
        "a: x, b: x",
        "A, B: a",
        '"a',
        '"a" b',
        "a: b: c",
        "Ö" * 64 + ": o",
        "D\nE: de",
        "app: x",
        ": x",
        '"": x',
        "DE: " + "x" * 17,
    ],
)
def test_a_bad_territory_is_refused(text: str) -> None:
    assert refusal(territories=text).startswith("territories")


@pytest.mark.parametrize("text", ["", " , ", "CALL, CALL", "a\\b", "a\nb", "a\tb", "$body$", "a$$b"])
def test_a_bad_kind_is_refused(text: str) -> None:
    assert refusal(qualifying_kinds=text).startswith("qualifying_kinds")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("lead_id_column", "territory_column"),
        ("activity_id_column", "activity_lead_id_column"),
        ("activity_kind_column", "activity_at_column"),
    ],
)
def test_one_column_can_t_serve_two_keys(first: str, second: str) -> None:
    assert refusal(**{first: "x", second: "x"}) == f"{first} and {second} name the same column: x"


NO_CONDITION = {
    "true; DROP TABLE x": "a second statement",
    "true -- AND deleted": "a comment",
    "true /* AND */": "a comment",
    "id IN (SELECT id FROM x)": "a subquery",
    "EXISTS ( values (1))": "a subquery",
    "a = $$x$$": "what a revision can't hold",
    "a = E'\\x'": "what a revision can't hold",
    "a = '{leads}'": "what a revision can't hold",
    "a) OR (b": "does not close",
    "(a": "does not close",
    "a = 'b": "does not close",
    'a = "b': "does not close",
}


@pytest.mark.parametrize(("text", "expected"), NO_CONDITION.items())
def test_a_condition_is_one_expression_over_a_row(text: str, expected: str) -> None:
    assert refusal(activity_condition=text).startswith("activity_condition: ")
    assert expected in refusal(activity_condition=text)
    assert refusal(activity_lead_id_column=f"{text}::uuid").startswith("activity_lead_id_column: ")


@pytest.mark.parametrize(
    "text", ["Lead", "O'Hara", "", "App\\Models\\Lead", "100%", "{all}", "$x$", "\\", "a\tb", 'DE: "x"']
)
def test_any_text_may_be_written_in_an_expression(text: str) -> None:
    read = parse(
        {"activity_condition": f"kind = {constant(text)}", "territory_expression": f"trim({constant(text)} || x)"}
    )
    told = re.split(r"chr\((\d+)\)", read.activity_condition.removeprefix("kind = "))
    signs = [chr(int(one)) if at % 2 else one.strip(" |")[1:-1].replace("''", "'") for at, one in enumerate(told)]
    assert text == "".join(signs)


def test_a_lead_of_an_activity_may_be_an_expression() -> None:
    assert "subject_id::text" == parse({"activity_lead_id_column": "subject_id::text"}).activity_lead_id_column
    assert "activity_lead_id_column: 'a:b'" in refusal(activity_lead_id_column="a:b")


@pytest.mark.parametrize("text", ["activities, column", "column, activities", "column"])
def test_owners_come_from_a_column_and_from_activities_in_any_order(text: str) -> None:
    found = parse({"owners_from": text, "owner_column": "seller"})
    assert tuple(text.split(", ")) == found.owners_from
    assert ("activities" in text) == bool(found.activities)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"owners_from": "column"}, "owner_column: owners_from is column, and owner_column is empty"),
        ({"owner_column": "seller"}, "owner_column: owners_from is activities, and owner_column is seller"),
        ({"owners_from": "column, users"}, "owners_from: 'column, users' is not activities, column, or both"),
        ({"owners_from": "column, column"}, "owners_from names a value twice"),
        ({"owners_from": "column", "owner_column": "id"}, "lead_id_column and owner_column name the same column: id"),
    ],
)
def test_a_bad_choice_of_owners_is_refused(given: dict[str, str], expected: str) -> None:
    assert refusal(**given).startswith(expected)


def test_an_excluded_user_is_of_the_type_of_users() -> None:
    assert (
        refusal(excluded_users="system")
        == "excluded_users: 'system' is no uuid, which user_id_type says; write ids as the data has them"
    )
    assert ("system", "import") == parse({"excluded_users": "system, import", "user_id_type": "text"}).excluded_users


def test_a_section_names_a_further_table_of_activities(tmp_path: Path) -> None:
    path = ini(
        tmp_path,
        """
        [leadprotect]
        activity_kind_column =
        [leadprotect.activities.calls]
        table = crm.calls
        lead_id_column = lead
        condition = NOT cancelled
        """.replace("    ", ""),
    )

    own, calls = load(environ={"LEADPROTECT_CONFIG": str(path)}).activities

    assert ("", "public.activities", "") == (own.name, own.table, own.kind_column)
    assert ("calls", "crm.calls", "lead", "kind") == (calls.name, calls.table, calls.lead_id_column, calls.kind_column)
    assert ("NOT cancelled", own.qualifying_kinds) == (calls.condition, calls.qualifying_kinds)
    assert load(Config(str(path)), environ={}).activities == (own, calls)


SECTIONS = {
    "calls": ({"table": "crm.calls", "kind": "x"}, "unknown key 'kind' in [leadprotect.activities.calls]"),
    "none": ({"id_column": "x"}, "[leadprotect.activities.none] names no table"),
    "Calls": ({"table": "crm.calls"}, "[leadprotect.activities.Calls]: the name is not of 1 to 16"),
    "empty": ({"table": "crm.calls", "id_column": ""}, "[leadprotect.activities.empty]: activity_id_column is empty"),
    "twice": (
        {"table": "crm.calls", "id_column": "x", "at_column": "x"},
        "[leadprotect.activities.twice] id_column and",
    ),
    "ours": ({"table": "leadprotect.calls"}, "holds [leadprotect.activities.ours] table"),
}


@pytest.mark.parametrize("name", SECTIONS)
def test_a_bad_section_is_named(name: str) -> None:
    section, expected = SECTIONS[name]
    with pytest.raises(SettingsError) as caught:
        parse({}, {name: section})
    assert expected in str(caught.value)


@pytest.mark.parametrize("key", ["user_guc", "territory_guc", "correlation_guc"])
@pytest.mark.parametrize("text", ["user_id", "app.", "app.user-id", "app.'x'", "a b.c", "app." + "x" * 60])
def test_a_bad_option_name_is_refused(key: str, text: str) -> None:
    assert refusal(**{key: text}).startswith(f"{key}: ")


def test_user_territory_and_correlation_need_an_option_each() -> None:
    assert refusal(user_guc="App.Territory").startswith("user_guc: ")
    assert refusal(correlation_guc="app.territory").startswith("territory_guc: ")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("90", 90), ("5 s", 5), ("2min", 120), ("3 H", 10800), ("1.5 days", 129600), ("2 weeks", 1209600)],
)
def test_an_observation_window_is_read(text: str, seconds: int) -> None:
    assert parse({"observation_window": text}).observation_window == seconds


@pytest.mark.parametrize("text", ["-1", "1.5 s", "250ms", "soon", "1 month", "7 days 3 hours", "11 years", "4000 days"])
def test_a_bad_observation_window_is_refused(text: str) -> None:
    assert refusal(observation_window=text).startswith("observation_window: ")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("90", 90),
        ("250ms", 0.25),
        ("1 millisecond", 0.001),
        ("0.25s", 0.25),
        (" 2 sec ", 2),
        ("60 seconds", 60),
        ("2m", 120),
        ("2min", 120),
        ("30 Minutes", 1800),
        ("1h", 3600),
        ("12 hours", 43200),
        ("1d", 86400),
        ("7 days", 604800),
        ("2w", 1209600),
        ("2 weeks", 1209600),
    ],
)
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert seconds == duration("lock_wait", text)


@pytest.mark.parametrize("text", ["", "s", "-1s", "+1s", ".5s", "1.s", "1e3", "1 month", "1h 30min", "\u0661s"])
def test_what_is_no_duration_is_refused_with_the_key_named(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        duration("-x lock_wait", text)
    assert str(caught.value).startswith(f"-x lock_wait: {text!r} is not a duration; write ")


def test_a_duration_beyond_the_caller_s_own_bound_is_refused() -> None:
    assert 60 == duration("--max-stall", "60 s", longest="1min")
    with pytest.raises(SettingsError, match="--max-stall: '61 s' is longer than 1min"):
        duration("--max-stall", "61 s", longest="1min")
    with pytest.raises(SettingsError, match="is longer than 3650 days"):
        duration("lock_wait", "9" * 400)


@pytest.mark.parametrize("text", ["public", "none", "pg_read_all_data", "a, a", ","])
def test_a_bad_exempt_role_is_refused(text: str) -> None:
    assert refusal(exempt_roles=text).startswith("exempt_roles")


def test_no_exempt_role_may_be_named() -> None:
    assert parse({"exempt_roles": ""}).exempt_roles == ()


# --- the URL and its password


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://me:{PASSWORD}@db/crm",
        f"me:{PASSWORD}@db/crm",
        f"postgresql://me:{PASSWORD}%zz@db/crm",
        f"postgresql://me:{PASSWORD}@[::1/crm",
        f"postgresql://me:{PASSWORD}@db/crm?sslmod=require",
        f"postgresql://me:a@{PASSWORD}@db/crm",
        f"postgresql://me:a/{PASSWORD}@db/crm",
        f"postgresql://me:a?b@{PASSWORD}@db/crm",
        f"postgresql://me:12/{PASSWORD}@db/crm",
        f"postgresql://me:{PASSWORD}",
        f"host=db password={PASSWORD} port=x",
        f"host=db password='{PASSWORD}",
    ],
)
def test_a_bad_url_is_refused_without_its_password(url: str) -> None:
    text = refusal(database_url=url)
    assert text.startswith("database_url")
    assert PASSWORD not in text


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:p%40ss%2Fword@db:5432/crm",
        "postgresql://me@/crm?host=/var/run/postgresql",
        "postgresql://me:pass?word@db/crm",
        "postgresql:///crm?user=me@tenant",
        "postgresql://me@a:5432,b:5433/crm",
        "host=db port=5432 dbname=crm password=p@ss/word",
        "",
    ],
)
def test_a_good_url_is_left_as_it_is(url: str) -> None:
    assert parse({"database_url": url}).database_url == url


def test_the_way_of_the_denials_names_no_login() -> None:
    for url in ("postgresql://me@db", f"postgresql://:{PASSWORD}@db", "service=crm"):
        text = refusal(audit_url=url)
        assert text.startswith("audit_url names a login")
        assert PASSWORD not in text


def test_the_password_is_no_part_of_how_settings_are_printed() -> None:
    assert PASSWORD not in repr(parse({"database_url": f"postgresql://me:{PASSWORD}@db/crm"}))


@pytest.mark.parametrize(
    "line", [f"database_url = postgresql://me:{PASSWORD}%40@db/crm", f"database_url = %({PASSWORD})s"]
)
def test_a_percent_sign_that_is_not_doubled_is_explained_without_the_value(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = ini(tmp_path, f"[alembic]\n[leadprotect]\n{line}\n")
    for config in (None, Config(str(path))):
        with pytest.raises(SettingsError, match="%%") as caught:
            load(config, environ={})
        assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("text", [f"database_url = {PASSWORD}\n", f"[leadprotect]\n  {PASSWORD}\n", "[leadprotect\n"])
def test_a_file_that_is_no_ini_file_is_named_without_its_values(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ini(tmp_path, text)
    with pytest.raises(SettingsError, match=r"alembic\.ini can't be read") as caught:
        load(environ={})
    assert PASSWORD not in str(caught.value)


def test_a_file_in_another_encoding_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alembic.ini").write_bytes(b"[leadprotect]\nschema = M\xe4rkte\n")
    with pytest.raises(SettingsError, match=r"alembic\.ini can't be read"):
        load(environ={})


@pytest.mark.parametrize("name", ["alembic.ini", "pyproject.toml"])
def test_a_byte_order_mark_is_named_with_what_takes_it_away(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    section = "[leadprotect]\nschema = crm\n" if name == "alembic.ini" else '[tool.leadprotect]\nschema = "crm"\n'
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + section.encode())
    with pytest.raises(SettingsError, match="begins with a byte order mark") as caught:
        load(environ={})
    subprocess.run(shlex.split(str(caught.value).partition("; run ")[2]), check=True)
    assert "crm" == load(environ={}).schema


# --- what a revision sees


def test_a_revision_with_an_unknown_placeholder_does_not_render() -> None:
    with pytest.raises(KeyError):
        settings.render("SELECT {shema}", parse({}))


def test_values_are_not_taken_for_placeholders() -> None:
    found = parse({"qualifying_kinds": "{schema}, :word"})
    assert settings.render("{kinds} FROM {leads}", found) == """'{schema}', ':word' FROM "public"."leads\""""


# --- a function instead of a URL


FUNCTIONS = f"""
import itertools
tokens = itertools.count(1)

def fresh():
    return f"postgresql+psycopg://me:{PASSWORD}{{next(tokens)}}@db/crm"

def broken():
    raise ValueError("{PASSWORD}")

def nothing():
    return None

def no_url():
    return "{PASSWORD}://me:{PASSWORD}@db/crm?{PASSWORD}"

def another():
    return "functions:fresh"

text = "postgresql://me:{PASSWORD}@db/crm"

class Vault:
    url = staticmethod(fresh)
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ini(tmp_path, FUNCTIONS, "functions.py")
    ini(tmp_path, f"raise ImportError('{PASSWORD}')", "broken_functions.py")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "functions", raising=False)


@pytest.mark.usefixtures("functions")
@pytest.mark.parametrize("path", ["functions:fresh", "functions:Vault.url"])
def test_a_function_is_asked_for_the_url_each_time(path: str) -> None:
    given = parse({"database_url": path})
    assert f"postgresql://me:{PASSWORD}1@db/crm" == settings.url(given)
    assert f"postgresql://me:{PASSWORD}2@db/crm" == settings.url(given)


@pytest.mark.usefixtures("functions")
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("nowhere:url", "nowhere:url can't be imported (ModuleNotFoundError); write module:function"),
        ("broken_functions:url", "broken_functions:url can't be imported (ImportError)"),
        ("functions:absent", "functions:absent can't be imported (AttributeError)"),
        ("functions:text", "functions:text is no function"),
        ("functions:broken", "functions:broken raised ValueError instead of returning a URL"),
        ("functions:nothing", "functions:nothing returned NoneType, not the text of a URL"),
        ("functions:another", "functions:another returned str, not the text of a URL"),
        ("functions:no_url", "what functions:no_url returned can't be read: database_url is not a URL"),
    ],
)
def test_a_function_that_gives_no_url_is_named_and_its_answer_is_not(path: str, expected: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings.url(parse({"database_url": path}))
    assert expected in str(caught.value)
    assert str(caught.value).startswith("database_url: ")
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


def test_without_a_url_the_key_is_named() -> None:
    with pytest.raises(SettingsError, match="database_url is missing: set DATABASE_URL"):
        settings.url(parse({}))


# --- Prometheus


@pytest.mark.parametrize("text", ["http://localhost:9090", "https://prometheus.example/prefix", "http://[::1]:9090"])
def test_the_address_of_a_prometheus_is_read(text: str) -> None:
    assert text == parse({"prometheus_url": text + "/"}).prometheus_url


@pytest.mark.parametrize(
    "text",
    [
        "localhost:9090",
        "ftp://host",
        "https://",
        "https://host:port",
        "https://[::1",
        "https://host/a b",
        "https://host/?token=s3cret",
        "https://host/#s3cret",
        "https://me:s3cret@host",
    ],
)
def test_a_bad_address_of_a_prometheus_is_refused_and_not_repeated(text: str) -> None:
    assert (refused := refusal(prometheus_url=text)).startswith("prometheus_url")
    assert "s3cret" not in refused


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("prometheus_token_file", "a\nb"),
        ("prometheus_service", 'x"}'),
        ("prometheus_service", ""),
        ("slo_p95", "0"),
        ("slo_p95", "150"),
        ("slo_p95", "fast"),
    ],
)
def test_a_bad_setting_of_the_gates_is_refused(key: str, text: str) -> None:
    assert refusal(**{key: text}).startswith(key)


def test_the_objective_is_read_as_a_duration() -> None:
    assert (0.15, 0.2) == (parse({}).slo_p95, parse({"slo_p95": "200ms"}).slo_p95)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("public.notes", "is not a table and its column with the lead's id"),
        ("public.notes (lead_id) prepend", "is not a table and its column"),
        ("notes (lead_id)", "is not schema.table"),
        ('public.no"tes (lead_id)', "contains '\"'"),
        ("public.notes (lead_id), public.notes (other)", "names public.notes twice"),
        ("public.leads (id)", "which holds the leads themselves"),
        ("leadprotect.notes (lead_id)", "leadprotect needs a schema of its own"),
    ],
)
def test_a_table_of_leads_that_can_t_be_read_is_refused(text: str, expected: str) -> None:
    found = refusal(lead_tables=text)
    assert "lead_tables" in found
    assert expected in found
