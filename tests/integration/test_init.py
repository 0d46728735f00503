"""`leadprotect init`: what it proposes for a database that somebody else made, what it asks, and what it writes."""

from __future__ import annotations

import configparser
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from click.testing import CliRunner

from leadprotect import settings
from leadprotect.adoption.ini import CHAIN
from leadprotect.adoption.proposal import propose
from leadprotect.cli import init as asking
from leadprotect.cli import main
from leadprotect.settings import Settings, parse
from leadprotect.settings.files import migrations
from leadprotect.settings.names import territory_columns
from tests.hosts import DJANGO, LIVES, SUPABASE, Shape
from tests.security.conftest import kept, make_host
from tests.support.alembic import alembic
from tests.support.revisions import MIGRATE_HEAD

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.database import Database
    from tests.support.hosts import Host

__all__ = ["kept", "make_host"]

TOLD_BY_A_DATABASE = [
    "leads_table", "lead_id_column", "lead_id_type", "territory_column", "territories", "user_id_type",
    "activities_table", "activity_id_column", "activity_lead_id_column", "activity_user_id_column",
    "activity_kind_column", "activity_at_column", "qualifying_kinds",
]  # fmt: skip


OF_OTHER_NAMES = {
    "activities_table": "crm.touches",
    "activity_user_id_column": "seller",
    "activity_kind_column": "what",
    "activity_at_column": "happened",
}
"""What nobody could tell who does not know the host."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one, whose process knows the database and no setting."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("LEADPROTECT_")]:
        monkeypatch.delenv(name)
    settings.current.cache_clear()
    return tmp_path


@pytest.fixture
def filled(host: Database, folder: Path) -> Database:
    """The host of a profile, with leads of two territories and calls."""
    assert folder.is_dir()
    for territory in ("DE", "DE", "CH", None):
        host.activity(host.lead(territory), host.user(1))
    return host


def init(*arguments: str, stdin: str | None = None) -> tuple[int, str]:
    ran = CliRunner().invoke(main, ["init", *arguments], input=stdin)
    assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.exception
    return ran.exit_code, ran.output


def section(file: Path) -> dict[str, str]:
    parser = configparser.ConfigParser()
    parser.read(file, encoding="utf-8")
    return dict(parser["leadprotect"])


def whole(known: Settings, key: str) -> Any:
    """A value; of a list, what is in it in whatever order."""
    value = getattr(known, key)
    return sorted(value) if isinstance(value, tuple) else value


def as_written(known: Settings, keys: list[str]) -> dict[str, Any]:
    return {key: getattr(known, key) for key in keys}


# --- what it proposes


def test_the_settings_of_a_host_are_what_stands_in_its_catalog(filled: Database, folder: Path) -> None:
    given = OF_OTHER_NAMES if filled.profile.name == "other_names" else {}
    code, said = init("--yes", *(word for key in given for word in ("--set", f"{key}={given[key]}")))
    assert 0 == code, said
    wanted = {**as_written(filled.settings, TOLD_BY_A_DATABASE), "qualifying_kinds": ("QUALIFIED_CALL",)}
    assert wanted == as_written(parse(section(folder / "alembic.ini")), TOLD_BY_A_DATABASE)


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("shape", LIVES, ids=str)
def test_of_a_host_that_somebody_else_made_it_tells_what_his_settings_say(
    make_host: Callable[..., Host], folder: Path, shape: Shape
) -> None:
    host = make_host(shape)
    for name in [name for name in os.environ if name.startswith("LEADPROTECT_")]:
        del os.environ[name]
    with psycopg.connect(host.url, autocommit=True) as conn:
        proposal = propose(conn, given={}, guess=True)
    assert folder.is_dir()
    assert [] == proposal.open
    found = parse(proposal.settings)
    differs = {key for key in TOLD_BY_A_DATABASE if whole(found, key) != whole(host.settings, key)}
    assert set() == differs
    # an enum's expression names its labels, of which a person may want fewer
    assert territory_columns(host.settings) == territory_columns(found)
    forced = host.sql("SELECT relforcerowsecurity FROM pg_class WHERE oid = {leads_name}::regclass")
    assert forced == [found.host_rls == "force"]
    assert shape.row_security == any("row security of its own" in one for one in proposal.remarks)


@pytest.mark.profiles("pg18")
def test_a_login_that_row_security_binds_is_told_that_rows_are_hidden_from_it(
    make_host: Callable[..., Host], folder: Path
) -> None:
    """The application owns its tables, and a forced policy shows it nothing without a tenant."""
    host = make_host(DJANGO)
    login = host.role(DJANGO.migrator)
    with psycopg.connect(host.url_of(DJANGO.migrator), autocommit=True) as conn:
        bound = propose(conn, given={}, guess=True)
    with psycopg.connect(host.url, autocommit=True) as conn:
        free = propose(conn, given={}, guess=True)
    assert folder.is_dir()
    assert f"binds {login} and hides rows of it: run init as a login that sees all of them" in bound.hidden
    assert ("", []) == (free.hidden, free.open)
    os.environ["DATABASE_URL"] = host.url_of(DJANGO.migrator)
    code, said = init("--yes")
    assert (1, True) == (code, bound.hidden in " ".join(said.split())), said


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize(
    ("column", "owners", "said"),
    [
        ("assigned_to uuid", ("column", "activities"), ""),
        ("assigned_to bigint", ("activities",), "but users are uuid and it is bigint"),
        ("assigned_to uuid REFERENCES crm.sellers", ("column", "activities"), ""),
        ("assigned_to uuid REFERENCES crm.companies", ("activities",), ""),
    ],
)
def test_an_owner_that_the_host_names_himself_comes_first(
    filled: Database, folder: Path, column: str, owners: tuple[str, ...], said: str
) -> None:
    filled.sql_script("CREATE TABLE crm.sellers (id uuid PRIMARY KEY); CREATE TABLE crm.companies (LIKE crm.sellers)")
    filled.sql_script(f"ALTER TABLE crm.companies ADD PRIMARY KEY (id); ALTER TABLE {{leads}} ADD COLUMN {column}")
    code, output = init("--yes")
    assert (0, True) == (code, said in output), output
    found = parse(section(folder / "alembic.ini"))
    assert (owners, "assigned_to" if "column" in owners else "") == (found.owners_from, found.owner_column)


@pytest.mark.profiles("pg18")
def test_without_activities_owners_come_from_the_column(filled: Database, folder: Path) -> None:
    filled.sql_script("DROP TABLE {activities}; ALTER TABLE {leads} ADD COLUMN owner_id bigint")
    assert 0 == init("--yes")[0]
    found = parse(section(folder / "alembic.ini"))
    assert (("column",), "owner_id", "bigint") == (found.owners_from, found.owner_column, found.user_id_type)


def test_nothing_is_written_into_the_database(filled: Database) -> None:
    filled.sql(f'ALTER DATABASE "{filled.name}" SET default_transaction_read_only = on')
    assert 0 == init("--yes")[0] or filled.profile.name == "other_names"


# --- what it asks


@pytest.mark.profiles("pg18")
def test_what_a_database_does_not_tell_is_one_error_that_names_the_option(host: Database, folder: Path) -> None:
    assert [] == host.sql("SELECT FROM {leads}")
    code, said = init()
    assert 1 == code
    assert "territories: public.leads.territory holds nothing yet: which territories are there?" in said
    assert "Say it: --set 'territories=" in said
    assert "qualifying_kinds: which kinds of public.activities.kind make an owner" in said
    assert [] == list(folder.iterdir())
    code, said = init("--set", "territories=DE, CH", "--set", "qualifying_kinds=call")
    assert (0, "DE, CH") == (code, section(folder / "alembic.ini")["territories"]), said


@pytest.mark.profiles("pg18")
def test_a_table_that_may_be_meant_is_asked_for_and_guessed_with_yes(filled: Database, folder: Path) -> None:
    filled.sql_script("CREATE TABLE crm.leads AS TABLE {leads}; ALTER TABLE crm.leads ADD PRIMARY KEY (id)")
    filled.sql_script("ALTER TABLE {activities} DROP CONSTRAINT activities_lead_id_fkey")
    code, said = init()
    assert 1 == code
    assert "leads_table: which table holds the leads? Say it: --set 'leads_table=crm.leads' (or public.leads)" in said
    assert 0 == init("--set", "leads_table=public.leads")[0]
    assert "public.leads" == section(folder / "alembic.ini")["leads_table"]


@pytest.mark.profiles("pg18")
def test_on_a_terminal_it_asks_one_thing_after_the_other(
    host: Database, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "on_a_terminal", lambda: True)
    host.sql_script("CREATE TABLE crm.leads AS TABLE {leads}; ALTER TABLE crm.leads ADD PRIMARY KEY (id)")
    host.sql_script("ALTER TABLE {activities} DROP CONSTRAINT activities_lead_id_fkey")
    code, said = init(stdin="2\nDE, CH\ncall\n")  # the second of the tables, then what nothing tells yet
    assert 0 == code, said
    assert ["public.leads", "DE, CH", "call"] == [
        section(folder / "alembic.ini")[key] for key in ("leads_table", "territories", "qualifying_kinds")
    ]


@pytest.mark.profiles("pg18")
def test_a_territory_is_never_guessed(filled: Database) -> None:
    filled.sql("ALTER TABLE {leads} RENAME COLUMN territory TO city_of_court")
    filled.sql("ALTER TABLE {leads} ADD COLUMN a_note text")
    filled.sql("ANALYZE {leads}")
    code, said = init("--yes")
    assert 1 == code
    assert "territory_column: no text column of public.leads is called like a territory" in said
    # what holds a few values comes first, whatever its name is and wherever it stands
    assert "--set 'territory_column=city_of_court' (or" in said


CONTACTS = """
    CREATE TABLE crm.login (user_id uuid PRIMARY KEY); INSERT INTO crm.login SELECT DISTINCT {author} FROM {activities};
    CREATE TABLE crm.lookup_site_id (code int PRIMARY KEY, description text, short_description text);
    INSERT INTO crm.lookup_site_id VALUES (1, 'Bern', 'BE'), (2, 'Basel', 'BS');
    ALTER TABLE {leads} DROP COLUMN territory, ADD COLUMN owner uuid, ADD COLUMN site int REFERENCES crm.lookup_site_id;
    ALTER TABLE {leads} ADD FOREIGN KEY (owner) REFERENCES crm.login;
    UPDATE {leads} SET site = 1 + (get_byte(decode(right(id::text, 2), 'hex'), 0) % 2);
    ALTER TABLE {activities} ADD COLUMN assign_date timestamptz; ALTER TABLE {activities} RENAME {at} TO entered;
    ALTER TABLE {leads} RENAME TO contact
    """


@pytest.mark.profiles("pg18")
def test_leads_that_are_called_contacts_are_asked_for_first_and_known_by_what_they_refer_to(filled: Database) -> None:
    filled.sql_script(CONTACTS.replace("{author}", "user_id").replace("{at}", "created_at"))
    code, said = init("--yes")
    assert (1, True) == (code, "Say it: --set 'leads_table=public.contact'" in said), said
    with psycopg.connect(filled.url, autocommit=True) as conn:
        found = propose(conn, given={"leads_table": "public.contact"}, guess=True).settings
    assert "site" in found["territory_expression"]
    assert {"BE", "BS"} >= {*found["territories"].split(", ")}
    assert ("owner", "entered") == (found["owner_column"], found["activity_at_column"])
    # control: keys that say nothing are no users
    filled.sql("ALTER TABLE crm.login RENAME user_id TO number")
    with psycopg.connect(filled.url, autocommit=True) as conn:
        assert "owner_column" not in propose(conn, given={"leads_table": "public.contact"}, guess=True).settings


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("word", ["leads_table", "lead_table=public.leads", "=x"])
def test_a_setting_that_is_none_is_wrong_usage(filled: Database, word: str) -> None:
    assert filled.url
    assert 2 == init("--set", word)[0]


@pytest.mark.profiles("pg18")
def test_a_table_that_is_not_there_is_named(filled: Database) -> None:
    assert filled.url
    code, said = init("--set", "leads_table=public.lead")
    assert (1, True) == (
        code,
        "leads_table: there is no table public.lead; there are public.activities, public.leads" in said,
    )
    code, said = init("--yes", "--set", "territory_column=teritory")
    assert (1, True) == (code, "territory_column: public.leads has no column teritory; it has " in said), said


# --- what it writes


@pytest.mark.profiles("pg18")
def test_the_next_upgrade_says_what_it_does(filled: Database, folder: Path) -> None:
    assert 0 == init("--yes")[0]
    done = alembic(filled, "upgrade", MIGRATE_HEAD, cwd=folder)
    assert 0 == done.returncode, done.stderr
    assert f"-> {MIGRATE_HEAD}" in done.stderr
    assert MIGRATE_HEAD == filled.revision()


OWN = """\
# our own chain

[alembic]
script_location = %(here)s/mig   ; where Django's are, too
sqlalchemy.url = postgresql://nobody@nowhere/x

[loggers]
# the root says warnings
keys = root,alembic

[logger_root]
level = WARNING
handlers =

[logger_alembic]
level = INFO
handlers =
qualname = alembic
"""


@pytest.mark.profiles("pg18")
def test_no_line_of_a_host_s_own_file_is_lost(filled: Database, folder: Path) -> None:
    assert filled.url
    file = folder / "alembic.ini"
    file.write_text(OWN, encoding="utf-8")
    code, said = init("--yes")
    assert (0, True) == (code, f"alembic -n {CHAIN} upgrade head" in said), said
    now = file.read_text(encoding="utf-8")
    kept = [line for line in OWN.splitlines() if line not in now.splitlines()]
    assert ["keys = root,alembic"] == kept
    assert "keys = root,alembic,leadprotect\n" in now
    parser = configparser.ConfigParser({"here": str(folder)})
    parser.read_string(now)
    assert str(migrations()) == parser[CHAIN]["script_location"]
    assert {"leadprotect", CHAIN, "logger_leadprotect"} <= {*parser.sections()}
    before = now
    assert (1, True) == (init("--yes")[0], "--force replaces it" in init("--yes")[1])
    assert before == file.read_text(encoding="utf-8")
    assert 0 == init("--yes", "--force", "--set", "schema=guard")[0]
    assert "guard" == section(file)["schema"]
    assert {line for line in OWN.splitlines() if line not in kept} <= {*file.read_text(encoding="utf-8").splitlines()}
    assert before == now


@pytest.mark.profiles("pg18")
def test_a_dry_run_writes_nothing_and_shows_everything(filled: Database, folder: Path) -> None:
    assert filled.url
    code, said = init("--yes", "--dry-run")
    assert 0 == code
    assert "[leadprotect]\n# called like leads, and 1 table refers to it\nleads_table = public.leads\n" in said
    assert [] == list(folder.iterdir())


@pytest.mark.profiles("pg18")
def test_json_tells_settings_with_reasons_and_what_was_written(filled: Database, folder: Path) -> None:
    assert filled.url
    code, said = init("--yes", "--json")
    told = json.loads(said)
    assert (0, True, str(folder / "alembic.ini")) == (code, told["written"], str(folder / told["file"]))
    assert {
        "key": "leads_table",
        "value": "public.leads",
        "reason": "called like leads, and 1 table refers to it",
    } in told["proposed"]


@pytest.mark.profiles("pg18")
def test_a_password_is_never_written(filled: Database, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", filled.url.replace("postgres@", "postgres:hidden@"))
    assert 0 == init("--yes")[0]
    assert "hidden" not in (folder / "alembic.ini").read_text(encoding="utf-8")


@pytest.mark.profiles("pg18")
def test_what_preflight_would_refuse_is_said_at_once(filled: Database) -> None:
    filled.sql_script("CREATE TABLE public.more () INHERITS ({leads})")
    code, said = init("--yes")
    assert (0, True) == (code, "note: preflight would refuse: leads_table: public.leads shares its rows" in said), said


# --- what hangs together: expressions, conditions, tables with data of leads, whom a host's policies ask


def proposed(database: Database, script: str) -> dict[str, str]:
    """What it proposes once the script has run, with the likeliest answers."""
    database.sql_script(script)
    with psycopg.connect(database.url, autocommit=True) as conn:
        return propose(conn, given={}, guess=True).settings


@pytest.mark.profiles("pg18")
def test_a_territory_of_two_columns_is_the_first_that_speaks(filled: Database) -> None:
    second = "ALTER TABLE {leads} ADD COLUMN country_code varchar(2);"
    assert "territory_expression" not in proposed(filled, second)
    found = proposed(filled, "UPDATE {leads} SET country_code = 'AT' WHERE territory IS NULL")
    assert 'coalesce("territory", "country_code")' == found["territory_expression"]
    assert {"DE", "CH", "AT"} == {*found["territories"].split(", ")}
    # where both speak and say other things, the second is no territory
    assert "territory_expression" not in proposed(filled, "UPDATE {leads} SET country_code = 'FR'")


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize(
    ("kind", "expression"),
    [
        ("char(2)", '"territory"::text'),
        (
            "public.land",
            (
                "CASE \"territory\" WHEN 'DE' THEN 'DE' WHEN 'CH' THEN 'CH' "
                "ELSE CASE WHEN \"territory\" IS NOT NULL THEN 'a new label' ELSE NULL END END"
            ),
        ),
    ],
)
def test_a_territory_of_another_type_becomes_an_expression_that_upgrades(
    filled: Database, folder: Path, kind: str, expression: str
) -> None:
    filled.sql_script("CREATE TYPE public.land AS ENUM ('DE', 'CH')")
    filled.sql_script(f"ALTER TABLE {{leads}} ALTER COLUMN territory TYPE {kind} USING territory::{kind}")
    code, said = init("--yes")
    assert (0, False) == (code, "preflight would refuse" in said), said
    assert expression == section(folder / "alembic.ini")["territory_expression"]
    assert 0 == alembic(filled, "upgrade", MIGRATE_HEAD, cwd=folder).returncode


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize(
    ("column", "condition"),
    [
        ("deleted boolean NOT NULL DEFAULT false", 'NOT "deleted"'),
        ("is_archived boolean", '"is_archived" IS NOT TRUE'),
        ("deleted_at timestamptz", '"deleted_at" IS NULL'),
        ("deleted_by uuid", None),
    ],
)
def test_rows_that_the_host_counts_as_deleted_make_no_owner(
    filled: Database, column: str, condition: str | None
) -> None:
    assert condition == proposed(filled, f"ALTER TABLE {{activities}} ADD COLUMN {column}").get("activity_condition")


PLACES = """
    CREATE TABLE public.provinces (id int PRIMARY KEY, name text, code varchar(10));
    INSERT INTO public.provinces VALUES (1, 'Bavaria', 'BY'), (2, 'Zurich', 'ZH'), (3, 'nobody is there', 'NO');
    ALTER TABLE {leads} DROP COLUMN territory, ADD COLUMN province_id int REFERENCES public.provinces;
    UPDATE {leads} SET province_id = 1 + (get_byte(decode(right(id::text, 2), 'hex'), 0) % 2);
    """


@pytest.mark.profiles("pg18")
def test_the_code_of_a_place_that_a_lead_refers_to_is_its_territory(filled: Database, folder: Path) -> None:
    filled.sql_script(PLACES)
    code, said = init("--yes")
    assert (0, False) == (code, "preflight would refuse" in said), said
    written = section(folder / "alembic.ini")
    assert re.fullmatch(r"""CASE "province_id"( WHEN '[12]' THEN '(BY|ZH)'){2} END""", written["territory_expression"])
    assert {"BY", "ZH"} == {*written["territories"].split(", ")}
    assert "until territory_expression names it" in said
    assert 0 == alembic(filled, "upgrade", MIGRATE_HEAD, cwd=folder).returncode
    assert "shipped" not in CliRunner().invoke(main, ["doctor"]).output


@pytest.mark.profiles("pg18")
def test_the_territories_of_an_expression_that_is_given_are_what_it_says(filled: Database, folder: Path) -> None:
    assert filled.url
    code, said = init("--yes", "--set", "territory_expression=lower(territory)")
    assert 0 == code, said
    assert {"de", "ch"} == {*section(folder / "alembic.ini")["territories"].split(", ")}


@pytest.mark.profiles("pg18")
def test_that_every_activity_counts_is_an_answer(filled: Database, folder: Path) -> None:
    filled.sql("UPDATE {activities} SET kind = 'nothing usual'")
    code, said = init()  # control: where nothing is said, it is asked for
    assert (1, True) == (code, "qualifying_kinds: which kinds of" in said)
    code, said = init("--set", "activity_kind_column=")
    assert 0 == code, said
    assert "" == section(folder / "alembic.ini")["activity_kind_column"]


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("column", ["owner_id", "salesman_id", "sales_rep", "colour"])
def test_a_table_about_leads_is_none_of_leads(filled: Database, column: str) -> None:
    filled.sql_script(f"""
        ALTER TABLE {{leads}} RENAME TO customers;
        ALTER TABLE public.customers ADD {column} uuid;
        CREATE TABLE public.lead_sources (id int PRIMARY KEY, code text, territory text);
        """)
    code, said = init("--yes")
    assert 1 == code
    assert (
        "leads_table: no table is called like leads: which one holds them? Say it: --set 'leads_table=public.custom"
        in said
    )


POLYMORPHIC = """
    ALTER TABLE {activities} DROP COLUMN lead_id, ADD COLUMN subject_id %s, ADD COLUMN subject_type text;
    INSERT INTO {activities} (subject_id, subject_type, user_id, kind, created_at)
    SELECT l.id, 'App\\Models\\Lead', gen_random_uuid(), 'QUALIFIED_CALL', now() FROM {leads} AS l;
    INSERT INTO {activities} (subject_id, subject_type, user_id, kind, created_at)
    SELECT gen_random_uuid(), 'App\\Models\\' || called, gen_random_uuid(), 'QUALIFIED_CALL', now()
    FROM {leads} AS l, (VALUES ('Customer'), ('LostLead')) AS others (called)
    """


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize(("kind", "column"), [("uuid", "subject_id"), ("text", '"subject_id"::uuid')])
def test_activities_of_anything_are_those_of_leads_only(filled: Database, folder: Path, kind: str, column: str) -> None:
    found = proposed(filled, POLYMORPHIC % kind)
    assert "\"subject_type\" = 'App' || chr(92) || 'Models' || chr(92) || 'Lead'" == found["activity_condition"]
    assert column == found["activity_lead_id_column"]
    code, told = init("--yes")
    assert 0 == code, told
    done = alembic(filled, "upgrade", MIGRATE_HEAD, cwd=folder)
    assert 0 == done.returncode, done.stderr


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("says", ["res_model", "model", "res_type"])
def test_the_name_of_a_model_is_no_kind_of_activity(filled: Database, folder: Path, says: str) -> None:
    filled.sql_script(f"""
        CREATE TABLE public.kinds (id int PRIMARY KEY);
        ALTER TABLE {{activities}} DROP lead_id, DROP kind, ADD res_id uuid, ADD {says} text,
          ADD activity_type_id int REFERENCES public.kinds;
        INSERT INTO {{activities}} (res_id, {says}, user_id, created_at)
        SELECT l.id, 'crm.lead', gen_random_uuid(), now() FROM {{leads}} AS l;
        """)
    code, said = init("--yes")
    assert 0 == code, said
    written = section(folder / "alembic.ini")
    assert (f"\"{says}\" = 'crm.lead'", "") == (written["activity_condition"], written["activity_kind_column"])
    assert "public.activities.activity_type_id may say which activities make an owner" in said
    assert 0 == alembic(filled, "upgrade", MIGRATE_HEAD, cwd=folder).returncode


@pytest.mark.profiles("pg18")
def test_tables_whose_rows_go_with_their_lead_are_protected_with_it(filled: Database) -> None:
    with psycopg.connect(filled.url, autocommit=True) as conn:
        filled.sql_script("""
            CREATE TABLE public.contacts (id int, lead_id uuid REFERENCES {leads} ON DELETE CASCADE);
            CREATE INDEX ON public.contacts (lead_id);
            CREATE TABLE public.lead_notes (id int, lead_id uuid REFERENCES {leads} ON DELETE CASCADE);
            CREATE TABLE public.orders (id int, lead_id uuid REFERENCES {leads});
            """)
        found = propose(conn, given={}, guess=True)
    assert "public.activities (lead_id) append, public.contacts (lead_id)" == found.settings["lead_tables"]
    index = 'CREATE INDEX CONCURRENTLY ON "public"."lead_notes" ("lead_id");'
    assert [True] == [index in remark for remark in found.remarks if "lead_notes" in remark]
    # whose rows stay without it may hold data of a lead as well
    assert [True] == ["public.orders (lead_id) refers" in remark for remark in found.remarks if "orders" in remark]
    assert parse(found.settings).lead_tables[0].append


@pytest.mark.profiles("pg18")
def test_what_names_a_lead_by_a_wider_number_is_cast_or_has_the_column_written_out(
    filled: Database, folder: Path
) -> None:
    filled.sql_script("""
        CREATE TABLE public.deals (id serial PRIMARY KEY, territory text);
        INSERT INTO public.deals (territory) VALUES ('DE'), ('CH'), (''), (' ');
        CREATE TABLE public.notes (id bigserial PRIMARY KEY, user_id bigint, created_at timestamptz,
          deal_id bigint NOT NULL REFERENCES public.deals ON DELETE CASCADE);
        CREATE INDEX ON public.notes (deal_id);
        INSERT INTO public.notes (deal_id, user_id, created_at) SELECT id, 1, now() FROM public.deals;
        """)
    given = ("--yes", "--set", "leads_table=public.deals", "--set", "activities_table=public.notes")
    code, said = init(*given, "--dry-run")
    assert (0, False) == (code, "preflight would refuse" in said), said
    assert 'activity_lead_id_column = "deal_id"::integer\n' in said
    assert "lead_tables =" not in said
    # '' is no territory, and told so; what no role can have is another thing
    assert (True, False) == ("no territory 1" in said, "deals.territory holds ''" in said), said
    assert "deals.territory holds ' '" in said
    (remark,) = (line for line in said.splitlines() if "rewrites the table: " in line)
    for statement in remark.partition("rewrites the table: ")[2].split("; "):
        filled.sql_script(statement)
    filled.sql("DELETE FROM public.deals WHERE territory = ' '")
    code, said = init(*given, "--set", "lead_tables=public.notes (deal_ref) append")
    assert (0, False, False) == (code, "preflight would refuse" in said, "rewrites the table" in said), said
    assert 0 == alembic(filled, "upgrade", MIGRATE_HEAD, cwd=folder).returncode


@pytest.mark.profiles("pg18")
def test_a_table_with_rows_of_anything_is_named_with_the_column_that_lead_tables_takes(
    filled: Database, folder: Path
) -> None:
    filled.sql_script("""
        CREATE TABLE public.messages (id bigserial PRIMARY KEY, "resId" uuid, "resModel" text);
        INSERT INTO public.messages ("resId", "resModel")
        SELECT gen_random_uuid(), m FROM unnest(ARRAY['partner', 'order']) AS m
        """)
    with psycopg.connect(filled.url, autocommit=True) as conn:
        # control: where none of them is of a lead
        assert [] == [one for one in propose(conn, given={}, guess=True).remarks if "messages" in one]
        filled.sql('INSERT INTO public.messages ("resId", "resModel") SELECT id, \'crm.lead\' FROM {leads}')
        (said,) = (one for one in propose(conn, given={}, guess=True).remarks if "messages" in one)
    script = said.partition("rewrites the table: ")[2]
    for statement in script.split("; "):
        filled.sql_script(statement)
    assert filled.sql("SELECT count(lead_ref) FROM public.messages") == [4]
    code, told = init("--yes", "--set", "lead_tables=public.messages (lead_ref)")
    assert (0, False) == (code, "messages (resId" in told), told
    assert 0 == alembic(filled, "upgrade", MIGRATE_HEAD, cwd=folder).returncode


@pytest.mark.profiles("pg18")
def test_code_of_several_steps_is_to_end_whole_where_it_is_denied(filled: Database) -> None:
    body = "$$ BEGIN UPDATE leads SET city = 'x'; INSERT INTO activities (kind) VALUES ('x'); END $$"
    reads = "CREATE FUNCTION public.look() RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM id FROM leads; END $$;"
    assert "denied_edit" not in proposed(filled, reads)
    assert (
        "raise"
        == proposed(filled, f"CREATE FUNCTION public.win() RETURNS void LANGUAGE plpgsql AS {body}")["denied_edit"]
    )
    assert "denied_edit" not in proposed(filled, "ALTER FUNCTION public.win() SECURITY DEFINER")


@pytest.mark.profiles("pg18")
def test_a_user_in_a_json_setting_is_read_where_the_policies_read_him(make_host: Callable[..., Host]) -> None:
    host = make_host(SUPABASE)
    with psycopg.connect(host.url, autocommit=True) as conn:
        found = propose(conn, given={}, guess=True)
        assert host.settings.user_guc == found.settings["user_guc"]
        assert [True] == [
            "territory_guc = request.jwt.claims ->> territory" in one for one in found.remarks if "jwt" in one
        ]
        host.sql_script("""
            CREATE FUNCTION public.my_market() RETURNS text LANGUAGE sql STABLE
            AS $$ SELECT current_setting('request.jwt.claims', true)::json ->> 'market' $$
            """)
        found = propose(conn, given={}, guess=True)
        assert "request.jwt.claims ->> market" == found.settings["territory_guc"]
        number = "put the number into a claim of its own"
        assert not [one for one in found.remarks if number in one]
        by_number = propose(conn, given={"user_id_type": "bigint"}, guess=True)
    assert [one for one in by_number.remarks if number in one]


@pytest.mark.profiles("pg18")
def test_names_in_camel_case_are_understood(filled: Database) -> None:
    found = proposed(filled, """
        ALTER TABLE {activities} RENAME COLUMN created_at TO "createdAt";
        ALTER TABLE {activities} RENAME COLUMN user_id TO "userId";
        ALTER TABLE {activities} RENAME COLUMN kind TO "activityType"
        """)  # fmt: skip
    assert ["createdAt", "userId", "activityType"] == [
        found[f"activity_{key}_column"] for key in ("at", "user_id", "kind")
    ]


LINKED = """
    DROP TABLE {activities};
    CREATE TABLE public."Users" (id uuid PRIMARY KEY);
    ALTER TABLE {leads} ADD COLUMN "assignedTo" uuid REFERENCES public."Users";
    CREATE TABLE public."AuditLog" (
      id uuid PRIMARY KEY, "entityType" text, "entityId" uuid, action text, "userId" uuid, "createdAt" timestamptz);
    CREATE TABLE public."Activities" (
      id uuid PRIMARY KEY DEFAULT gen_random_uuid(), type text NOT NULL, "createdBy" uuid,
      "createdAt" timestamptz DEFAULT now());
    CREATE TABLE public."ActivityLinks" (
      id uuid PRIMARY KEY DEFAULT gen_random_uuid(), "activityId" uuid REFERENCES public."Activities",
      "entityType" text, "entityId" uuid);
    WITH called AS (INSERT INTO public."Activities" (type, "createdBy") VALUES ('call', gen_random_uuid()) RETURNING id)
    INSERT INTO public."ActivityLinks" ("activityId", "entityType", "entityId")
    SELECT called.id, 'lead', leads.id FROM called, {leads} AS leads
    """
"""Activities that a table of links leads to, beside an audit trail of every change; all in camel case."""


@pytest.mark.profiles("pg18")
def test_an_audit_trail_is_none_of_activities_and_an_owner_s_column_is_told_in_camel_case(filled: Database) -> None:
    found = proposed(filled, LINKED)
    assert ("column", "assignedTo") == (found["owners_from"], found["owner_column"])
    assert "activities_table" not in found


@pytest.mark.profiles("pg18")
def test_activities_that_links_lead_to_are_had_by_the_view_that_it_writes_out(filled: Database, folder: Path) -> None:
    filled.sql_script(LINKED)
    code, said = init("--yes", "--dry-run")
    assert 0 == code, said
    told = " ".join(said.split())
    (view,) = re.findall(r"CREATE VIEW .+?;", told)
    filled.sql_script(view)
    named, base = re.findall(r"--set '(\S+)'", told)
    code, said = init("--yes", "--set", named)
    assert (1, True) == (code, "is a view: of which table is each row of it one?" in said), said
    assert 0 == init("--yes", "--set", named, "--set", base)[0]
    found = section(folder / "alembic.ini")
    assert ("\"entityType\" = 'lead'", "column, activities") == (found["activity_condition"], found["owners_from"])
    assert 0 == alembic(filled, "upgrade", MIGRATE_HEAD, cwd=folder).returncode
    assert 0 == CliRunner().invoke(main, ["backfill", "--all"]).exit_code
    owners = filled.sql("SELECT DISTINCT user_id FROM {schema}.user_lead_assignments")
    assert owners == filled.sql('SELECT "createdBy" FROM public."Activities"')


@pytest.mark.profiles("pg18")
def test_who_says_that_owners_come_from_the_column_is_asked_for_no_activities(filled: Database, folder: Path) -> None:
    filled.sql_script("""
        ALTER TABLE {activities} RENAME COLUMN kind TO what_it_was; ALTER TABLE {leads} ADD COLUMN "assignedTo" uuid
        """)
    assert 1 == init()[0]  # control: else which kind of them makes an owner
    code, said = init("--set", "owners_from=column")
    assert 0 == code, said
    found = section(folder / "alembic.ini")
    assert ("column", "assignedTo", False) == (found["owners_from"], found["owner_column"], "activities_table" in found)


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("name", ["deletedAt", "isArchived"])
def test_deleted_rows_are_told_in_camel_case(filled: Database, name: str) -> None:
    kind = "timestamptz" if name.endswith("At") else "boolean"
    found = proposed(filled, f'ALTER TABLE {{activities}} ADD COLUMN "{name}" {kind}')
    assert f'"{name}" IS N' in found["activity_condition"]
