"""Every condition of the gate: what closes it, and that the remedy it prints opens it."""

from __future__ import annotations

import re
import shlex
from argparse import Namespace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from alembic import command
from alembic.util import CommandError
from click.testing import CliRunner
from psycopg import sql

from leadprotect.cli import main
from leadprotect.errors import ProtectionUnavailable
from leadprotect.migration import gate
from leadprotect.migration.gate import Condition
from leadprotect.planning.plan import plan_deploy
from leadprotect.settings import ident
from tests.support.revisions import HEAD, MIGRATE_HEAD, NAMED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.database import Database

WEEK = "7 days"
BEFORE_RLS = ["visibility", "owners", "transition", "constraints", "observation_window"]
ALL = [
    *(*BEFORE_RLS, "territories", "unprotected", "unowned", "contextless_writes", "logins", "exempt_roles"),
    *("inheritance", "referential_actions", "host_triggers", "views", "searches"),
    *("unique_keys", "host_code", "copy_from", "queues"),
]


@pytest.fixture
def watched(make_database: Callable[..., Database]) -> Database:
    """A migrated database whose observation window is over."""
    database = make_database("expanded", observation_window=WEEK)
    database.sql("UPDATE {schema}.backfill_jobs SET registered_at = now() - interval '8 days'")
    return database


@pytest.fixture
def login(watched: Database) -> Iterator[Callable[..., str]]:
    """A function that makes a login of the cluster for this test alone; its name is returned."""
    made: list[str] = []

    def make(*, options: str = "LOGIN") -> str:
        name = f"gate-{watched.name}-{len(made)}"
        watched.sql(f'CREATE ROLE "{name}" {options}')
        made.append(name)
        return name

    yield make
    for name in made:
        watched.sql(f'REASSIGN OWNED BY "{name}" TO postgres')
        watched.sql(f'DROP OWNED BY "{name}"')
        watched.sql(f'DROP ROLE "{name}"')


def asked(database: Database, **settings: Any) -> dict[str, Condition]:
    changed = database.overrides | {key: str(value) for key, value in settings.items()}
    database.overrides, before = changed, database.overrides
    try:
        with database.connect() as conn:
            return {found.name: found for found in gate.conditions(conn, settings=database.settings)}
    finally:
        database.overrides = before


def only(database: Database, name: str, **settings: Any) -> Condition:
    """The condition, and no other, is false."""
    found = asked(database, **settings)
    assert [condition.name for condition in found.values() if not condition.met] == [name]
    return found[name]


def is_open(database: Database, **settings: Any) -> bool:
    return gate.closed(list(asked(database, **settings).values())) is None


def runs(remedy: str | None) -> None:
    """Run a remedy that is a command of ours."""
    assert remedy is not None
    program, *arguments = shlex.split(remedy)
    assert program == "leadprotect"
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output


def statements(remedy: str | None) -> str:
    """The SQL of a remedy, up to its last semicolon."""
    assert remedy is not None
    return remedy[: remedy.rindex(";") + 1]


def execute(database: Database, script: str) -> None:
    with database.connect(autocommit=True) as conn:
        conn.execute(sql.SQL(script))  # printed by the gate


def test_the_gate_is_open_when_nothing_is_in_the_way(watched: Database) -> None:
    assert list(asked(watched)) == ALL
    assert is_open(watched)
    assert all(condition.remedy is None for condition in asked(watched).values())
    watched.upgrade()
    assert watched.revision() == HEAD


def test_an_operator_may_ask_and_nobody_else(watched: Database) -> None:
    with watched.connect("operator") as conn:
        assert gate.closed(gate.conditions(conn, settings=watched.settings)) is None
    for name in ("seller_de", "auditor_de", "outsider"):
        with watched.connect(name) as conn, pytest.raises(ProtectionUnavailable):
            gate.conditions(conn, settings=watched.settings)


def test_before_the_migrate_step_there_is_no_gate(host: Database) -> None:
    with host.connect() as conn, pytest.raises(ProtectionUnavailable):
        gate.conditions(conn, settings=host.settings)


# --- owners


def test_a_lead_with_a_qualifying_activity_needs_its_owner(make_database: Callable[..., Database]) -> None:
    database = make_database("host")
    leads = [database.lead("DE"), database.lead("DE"), database.lead("CH")]
    for lead in leads:
        database.activity(lead, database.user(1))
    database.activity(database.lead("CH"), database.user(1), kind="NEWSLETTER")
    database.activity(database.lead(None), database.user(1))
    database.upgrade()
    assert database.revision() == MIGRATE_HEAD
    found = only(database, "owners")
    assert found.detail == (
        "1 leads in CH have a qualifying activity but no owner, 2 leads in DE have a qualifying activity but no owner"
    )
    assert found.remedy == "leadprotect backfill CH DE"
    runs(found.remedy)
    assert is_open(database)
    database.upgrade()
    assert database.revision() == HEAD


def test_a_lead_released_by_hand_needs_no_owner(watched: Database) -> None:
    lead = watched.lead("DE")
    watched.activity(lead, watched.user(1))
    watched.sql("DELETE FROM {schema}.user_lead_assignments")
    assert not asked(watched)["owners"].met
    watched.sql(
        "INSERT INTO {schema}.user_lead_assignments (lead_id, territory, source) VALUES (%s, 'DE', 'release')", lead
    )
    assert asked(watched)["owners"].met


# --- constraints


@pytest.mark.parametrize("state", ["DISABLE", "ENABLE REPLICA", "ENABLE"])
@pytest.mark.parametrize("suffix", ["transition", "note_writes"])
def test_a_trigger_of_the_transition_that_does_not_always_fire_closes_the_gate(
    watched: Database, state: str, suffix: str
) -> None:
    """An activity of that time makes no owner, and the older one would be enforced."""
    watched.sql(f'ALTER TABLE {{activities}} {state} TRIGGER "{watched.settings.role(suffix)}"')
    found = only(watched, "transition")
    assert ("is disabled" if state == "DISABLE" else "does not fire always") in found.detail
    execute(watched, statements(found.remedy))
    assert is_open(watched)


@pytest.mark.everywhere("servers keep the trigger of a partition in their own ways")
def test_a_trigger_of_the_transition_that_one_partition_lacks_closes_the_gate(
    make_database: Callable[..., Database],
) -> None:
    """Activities arrive in a partition, and only its own trigger sees them."""
    database = make_database("host", activities_table="crm.every")
    database.sql_script(
        """
        CREATE TABLE crm.every (LIKE {activities} INCLUDING DEFAULTS) PARTITION BY LIST ({activity_kind});
        CREATE TABLE crm.rest PARTITION OF crm.every DEFAULT PARTITION BY LIST ({activity_kind});
        CREATE TABLE crm.calls PARTITION OF crm.rest FOR VALUES IN ('QUALIFIED_CALL');
        CREATE INDEX ON crm.every ({activity_lead_id})
        """.replace("{activities}", database.profile.settings.get("activities_table", "public.activities"))
    )
    database.upgrade(MIGRATE_HEAD)
    trigger = database.settings.role("transition")
    for state, said in (("DISABLE", "is disabled"), ("ENABLE", "does not fire always")):
        assert asked(database)["transition"].met
        database.sql(f'ALTER TABLE crm.calls {state} TRIGGER "{trigger}"')
        found = asked(database)["transition"]
        assert found.detail == f"the trigger of own_active_lead on crm.calls {said}"
        execute(database, statements(found.remedy))


def test_a_trigger_of_the_transition_that_is_gone_closes_the_gate(watched: Database) -> None:
    watched.sql(f'DROP TRIGGER "{watched.settings.role("territory")}" ON {{leads}}')
    assert "the trigger of own_moved_lead" in only(watched, "transition").detail
    assert "alembic downgrade" in str(only(watched, "transition").remedy)
    watched.downgrade(NAMED["expand_indexes"])
    watched.upgrade(MIGRATE_HEAD)
    assert asked(watched)["transition"].met


def test_a_constraint_that_is_not_validated_closes_the_gate(watched: Database) -> None:
    watched.sql("ALTER TABLE {schema}.lead_protection_rules ADD CONSTRAINT \"a 'b'\" CHECK (true) NOT VALID")
    found = only(watched, "constraints")
    assert found.detail.startswith("not validated: \"a 'b'\" on ")
    execute(watched, statements(found.remedy))
    assert is_open(watched)


# --- observation window


def test_the_observation_window_must_be_over(make_database: Callable[..., Database]) -> None:
    database = make_database("expanded", observation_window=WEEK)
    found = only(database, "observation_window")
    assert found.detail.endswith("the observation window is 7 days")
    assert found.remedy is not None
    assert found.remedy.startswith("wait until ")
    assert not is_open(database, observation_window="1 hour")
    assert is_open(database, observation_window="0")
    database.sql("UPDATE {schema}.backfill_jobs SET registered_at = now() - interval '7 days 1 second'")
    assert is_open(database)


def test_the_window_begins_anew_when_a_backfill_ends(watched: Database) -> None:
    watched.sql("UPDATE {schema}.backfill_jobs SET finished_at = now() WHERE territory = 'CH'")
    only(watched, "observation_window")


# --- territories


def test_a_lead_of_an_unknown_territory_would_be_seen_by_nobody(watched: Database) -> None:
    watched.lead("AT")
    watched.sql("DELETE FROM {schema}.contextless_writes")
    found = only(watched, "territories")
    assert found.detail == "1 leads carry the unknown territory 'AT'"
    assert found.remedy == "leadprotect territory add AT"
    runs(found.remedy)
    watched.sql("UPDATE {schema}.backfill_jobs SET registered_at = now() - interval '8 days'")
    assert is_open(watched)


def test_what_stands_in_a_lead_never_becomes_part_of_a_command(watched: Database) -> None:
    watched.lead("x; rm -rf\n\x1b[31m'")
    watched.sql("DELETE FROM {schema}.contextless_writes")
    found = only(watched, "territories")
    assert found.detail == "1 leads carry the unknown territory 'x; rm -rf  [31m'''"
    assert found.remedy == "correct the territory of these leads"


# --- writes without a context


def write(database: Database, login: str, *, declared: bool = False) -> None:
    with database.connect(login) as conn:
        if declared:
            database.context(conn, database.user(1), "DE")
        database.query(conn, "UPDATE {leads} SET city = 'Ulm'")


def qualified(database: Database, name: str) -> str:
    """The table as PostgreSQL writes it outside its search_path."""
    with database.connect() as conn:
        conn.execute("SET search_path = pg_catalog")
        return str(database.query(conn, f"SELECT {name}::regclass::text")[0])


def test_a_write_without_a_context_closes_the_gate_for_the_window(watched: Database) -> None:
    write(watched, "seller_de", declared=True)
    assert is_open(watched)
    write(watched, "seller_de")
    write(watched, "seller_ch", declared=True)
    found = only(watched, "contextless_writes")
    name = watched.sql("SELECT quote_ident(%s)", watched.profile.login("seller_de"))[0]
    assert found.detail.startswith(f"login {name} wrote to {qualified(watched, '{leads_name}')} without a context at ")
    assert found.remedy is not None
    assert found.remedy.startswith("deploy the version that sets its context (leadprotect.acting_as) and wait until ")
    assert is_open(watched, exempt_roles=watched.profile.login("seller_de"))
    # time passes
    watched.sql("UPDATE {schema}.contextless_writes SET at = at - interval '7 days 1 minute'")
    assert is_open(watched)


def test_a_note_stands_for_the_writes_of_the_minute_after_it(make_database: Callable[..., Database]) -> None:
    database = make_database("host", observation_window=WEEK)
    database.upgrade()
    database.create_logins()
    database.sql("UPDATE {schema}.backfill_jobs SET registered_at = now() - interval '8 days'")
    write(database, "seller_de")
    database.sql("UPDATE {schema}.contextless_writes SET at = at - interval '30 seconds'")
    write(database, "seller_de")
    assert database.sql("SELECT count(*) FROM {schema}.contextless_writes") == [1]
    # the note is older than the window, the write after it is not
    database.sql("UPDATE {schema}.contextless_writes SET at = at - interval '7 days' + interval '15 seconds'")
    only(database, "contextless_writes")
    database.sql("UPDATE {schema}.contextless_writes SET at = at - interval '1 minute'")
    assert is_open(database)


def test_without_a_window_not_every_write_is_noted_either(expanded: Database) -> None:
    for _ in range(3):
        write(expanded, "seller_de")
    assert expanded.sql("SELECT count(*) FROM {schema}.contextless_writes") == [1]


@pytest.mark.parametrize("statement", ["DELETE FROM {activities}", "UPDATE {activities} SET {activity_kind} = 'X'"])
def test_activities_count_as_well(watched: Database, statement: str) -> None:
    with watched.connect("seller_de") as conn:
        watched.query(conn, statement)
    assert f"wrote to {qualified(watched, '{activities_name}')} without" in only(watched, "contextless_writes").detail


# --- logins


def grant(database: Database, privilege: str, name: str) -> None:
    database.sql(f'GRANT {privilege} TO "{name}"')


def test_a_login_that_would_be_locked_out_closes_the_gate(watched: Database, login: Callable[..., str]) -> None:
    name = login()
    assert is_open(watched)
    grant(watched, "SELECT ON {leads}", name)
    found = only(watched, "logins")
    label = watched.settings.leads_table
    assert found.detail == (
        f'login "{name}" has privileges on {label} but is no member of {watched.settings.role("app")} and a territory'
    )
    assert is_open(watched, exempt_roles=name)
    execute(watched, statements(found.remedy))
    assert is_open(watched)


@pytest.mark.parametrize("held", [(), ("app",), ("app", "de", "ch")])
def test_a_login_that_inherits_nothing_is_let_in_by_what_the_gate_prints(
    watched: Database, login: Callable[..., str], held: tuple[str, ...]
) -> None:
    """A second GRANT changes no option that it does not name; nor does the first one, for who was made NOINHERIT."""
    name = login(options="LOGIN NOINHERIT")
    grant(watched, "SELECT ON {leads}", name)
    for office in held:
        grant(watched, f'"{watched.settings.role(office)}"', name)
    remedy = only(watched, "logins").remedy  # control: with all three as well
    execute(watched, statements(remedy))
    assert is_open(watched)


def test_the_login_for_backups_may_stay_as_long_as_no_service_can_become_it(watched: Database) -> None:
    """It was made before contract, as the how-to says, reads every table, and row security does not bind it."""
    backup = watched.settings.role("backup")
    watched.sql_script(f'CREATE ROLE "{backup}" LOGIN BYPASSRLS; GRANT pg_read_all_data TO "{backup}"')
    try:
        assert is_open(watched)
        watched.sql(f'GRANT "{backup}" TO "{watched.profile.login("seller_de")}"')
        assert f"become {backup}" in str(only(watched, "exempt_roles").detail).replace('"', "")
    finally:
        watched.sql_script(f'DROP OWNED BY "{backup}"; DROP ROLE "{backup}"')


def test_what_takes_an_exempt_role_away_does_so_whoever_granted_it_and_by_which_group(
    watched: Database, login: Callable[..., str]
) -> None:
    exempt, giver, group = login(options="NOLOGIN"), login(options="NOLOGIN"), login(options="NOLOGIN")
    service, other = login(), login(options="NOLOGIN")
    inside = f"{{app}}, {ident(watched.settings.territory_role('DE'))}"
    watched.sql_script(
        f'GRANT {inside} TO "{service}"; GRANT "{exempt}" TO "{giver}" WITH ADMIN OPTION; '
        f'SET ROLE "{giver}"; GRANT "{exempt}" TO "{group}"; GRANT "{exempt}" TO "{service}" WITH ADMIN OPTION; '
        f'RESET ROLE; GRANT "{group}" TO "{service}"; SET ROLE "{service}"; GRANT "{exempt}" TO "{other}"; RESET ROLE'
    )
    found = only(watched, "exempt_roles", exempt_roles=exempt)
    execute(watched, statements(found.remedy))
    assert is_open(watched, exempt_roles=exempt)
    held = "SELECT pg_has_role(%s, %s, 'MEMBER')"
    assert [[True], [False]] == [watched.sql(held, name, exempt) for name in (other, service)]


def test_a_login_with_bypassrls_is_named_by_the_plan_as_by_the_gate(
    watched: Database, login: Callable[..., str]
) -> None:
    name = login(options="LOGIN BYPASSRLS")
    grant(watched, "SELECT ON {leads}", name)
    found = only(watched, "logins")
    assert name in found.detail
    with watched.connect() as conn:
        planned = plan_deploy(conn, settings=watched.settings)
    (loss,) = [one for one in planned.losses if one.login == name]
    assert "logins" == loss.condition
    execute(watched, statements(loss.remedy))
    assert is_open(watched)


def test_a_member_without_a_territory_is_locked_out_too(watched: Database, login: Callable[..., str]) -> None:
    name = login()
    grant(watched, "SELECT ON {leads}", name)
    grant(watched, "{app}", name)
    only(watched, "logins")


@pytest.mark.parametrize(
    "privilege",
    ["SELECT ({territory}) ON {leads}", "UPDATE ({territory}) ON {leads}", "DELETE ON {leads}", "pg_read_all_data"],
)
def test_every_kind_of_privilege_counts(watched: Database, login: Callable[..., str], privilege: str) -> None:
    name = login()
    grant(watched, privilege, name)
    assert f'login "{name}" has privileges' in only(watched, "logins").detail


def test_a_privilege_of_a_group_counts_also_when_it_must_be_taken_with_set_role(
    watched: Database, login: Callable[..., str]
) -> None:
    group, name = login(options="NOLOGIN"), login(options="LOGIN NOINHERIT")
    grant(watched, "SELECT ON {leads}", group)
    assert is_open(watched)  # a role without login can't be locked out
    grant(watched, f'"{group}"', name)
    assert f'login "{name}"' in only(watched, "logins").detail


def test_a_privilege_of_everybody_counts_for_every_login(watched: Database, login: Callable[..., str]) -> None:
    name = login()
    watched.sql("GRANT SELECT ON {leads} TO PUBLIC")
    assert f'login "{name}"' in only(watched, "logins").detail


@pytest.mark.parametrize("privilege", ["SELECT", "UPDATE", "SELECT (city)", "UPDATE ({territory})"])
def test_an_auditor_counts_as_soon_as_he_may_do_more_than_contract_lets_auditors_do(
    watched: Database, login: Callable[..., str], privilege: str
) -> None:
    name = login()
    grant(watched, "{auditor}", name)
    for readable in ("{lead_id}", "{territory}"):
        watched.sql(f"GRANT SELECT ({readable}) ON {{leads}} TO {{auditor}}")
    assert is_open(watched)
    grant(watched, f"{privilege} ON {{leads}}", name)
    assert f'login "{name}" has privileges' in only(watched, "logins").detail


def test_privileges_on_other_tables_do_not_count(watched: Database, login: Callable[..., str]) -> None:
    grant(watched, "SELECT ON {activities}", login())
    assert is_open(watched)


def test_who_migrates_another_database_of_the_server_is_no_service_of_this_one(
    watched: Database, login: Callable[..., str]
) -> None:
    """Roles are those of the cluster: what a DBA granted for the one must not close the gate of the other."""
    name = login()
    grant(watched, "{owner}, {reader}", name)
    assert is_open(watched)
    grant(watched, "SELECT ON {leads}", name)  # the control
    assert name in only(watched, "logins").detail


def test_the_owner_of_the_table_may_stay_while_it_is_idle(watched: Database, login: Callable[..., str]) -> None:
    name = login()
    watched.sql(f'GRANT ALL ON SCHEMA public, crm TO "{name}"')
    watched.sql(f'ALTER TABLE {{leads}} OWNER TO "{name}"')
    grant(watched, "{app}", name)  # so that it can call set_context
    assert is_open(watched)
    # a service that logs in as the owner declares its context, and is not bound by row security
    with psycopg.connect(watched.server.url(watched.name, name)) as conn:
        watched.context(conn, watched.user(1), "DE")
        watched.query(conn, "UPDATE {leads} SET city = 'Ulm'")
    found = only(watched, "logins")
    assert (
        f'login "{name}" owns {watched.settings.leads_table}, so row security does not bind it, and wrote at'
        in found.detail
    )
    assert found.remedy is not None
    assert found.remedy.startswith("let the service log in as another member of ")
    assert is_open(watched, exempt_roles=name)
    watched.sql("UPDATE {schema}.contextless_writes SET at = at - interval '7 days 1 minute'")
    assert is_open(watched)


def test_a_member_of_the_owner_counts_as_the_owner(watched: Database, login: Callable[..., str]) -> None:
    owner, name = login(options="NOLOGIN"), login()
    watched.sql(f'ALTER TABLE {{leads}} OWNER TO "{owner}"')
    grant(watched, f'"{owner}"', name)
    assert is_open(watched)


def test_with_force_it_is_said_that_the_owner_is_bound_too(watched: Database, login: Callable[..., str]) -> None:
    """Row security would bind his next UPDATE of all leads to a few of them."""
    name = login()
    watched.sql(f'ALTER TABLE {{leads}} OWNER TO "{name}"')
    said = f'so "{name}", who owns it, is bound like anybody else'
    assert said not in asked(watched)["logins"].detail  # the control
    assert said in asked(watched, host_rls="force")["logins"].detail
    assert is_open(watched, host_rls="force")
    watched.sql("ALTER TABLE {leads} FORCE ROW LEVEL SECURITY")
    assert said in asked(watched)["logins"].detail


# --- whether anybody can edit, and what is protected


def fill(database: Database, *, owned: int = 0, unowned: int = 0, unprotected: int = 0) -> None:
    for number in range(owned + unowned):
        database.lead("DE", owner=database.user(1) if number < owned else None)
    for _ in range(unprotected):
        database.lead(None)
    database.sql("DELETE FROM {schema}.contextless_writes")


def test_a_contract_after_which_hardly_anybody_could_edit_waits_for_somebody_s_word(watched: Database) -> None:
    fill(watched, owned=8, unowned=17)
    found = only(watched, "unowned")
    assert found.detail.startswith("17 of 25 leads of the territories have no owner")
    assert found.remedy is not None
    assert found.remedy.endswith("alembic -x accept=unowned:0.68 upgrade head")
    watched.upgrade(accept="unowned:0.67")
    assert watched.revision() == MIGRATE_HEAD
    watched.upgrade(accept="unowned:0.68")
    assert watched.revision() == HEAD
    assert asked(watched)["unowned"].detail.endswith("; accepted up to a share of 0.68")
    accepted = (
        "SELECT condition, share::float8, accepted_by::text FROM {schema}.accepted_conditions ORDER BY accepted_at"
    )
    assert watched.sql(accepted) == [("unowned", 0.67, "postgres"), ("unowned", 0.68, "postgres")]


def test_half_of_the_leads_without_owner_and_a_handful_of_any_kind_are_nobody_s_mistake(watched: Database) -> None:
    fill(watched, owned=12, unowned=12)
    assert is_open(watched)
    fill(watched, unowned=1)
    only(watched, "unowned")


def test_a_few_leads_say_nothing(watched: Database) -> None:
    fill(watched, unowned=19)
    assert is_open(watched)


def test_a_contract_that_would_protect_hardly_anything_waits_for_somebody_s_word(watched: Database) -> None:
    fill(watched, owned=9, unprotected=21)
    found = only(watched, "unprotected")
    assert found.detail.startswith("21 of 30 leads have no territory")
    watched.upgrade(accept="unprotected:0.7")
    assert watched.revision() == HEAD


def test_what_was_accepted_comes_back_after_a_downgrade(watched: Database) -> None:
    fill(watched, unowned=20)
    watched.upgrade(accept="unowned:1")
    watched.downgrade("base")
    watched.upgrade(MIGRATE_HEAD)
    assert asked(watched)["unowned"].met


def test_a_script_carries_what_is_accepted(watched: Database) -> None:
    fill(watched, unowned=20)
    script = watched.script("upgrade", f"{MIGRATE_HEAD}:head", accept="unowned:1,unprotected:0.25")
    assert script.count("accept_condition('unowned', 1)") == script.count("accept_condition('unprotected', 0.25)") == 1
    assert script.index("accept_condition") < script.index("require_open_gate")


def test_what_two_conditions_ask_for_is_pasted_as_it_is_printed(watched: Database) -> None:
    fill(watched, owned=8, unowned=17)
    config = watched.config()
    config.cmd_opts = Namespace(x=["accept=unowned:0.68", "accept=shadow:1", "contract=require"])
    command.upgrade(config, "head")
    assert watched.sql("SELECT condition FROM {schema}.accepted_conditions ORDER BY 1") == ["shadow", "unowned"]
    config.cmd_opts = Namespace(x=["contract=require", "contract=auto"])
    with pytest.raises(CommandError, match="-x contract=auto: require is said before; say contract once"):
        command.upgrade(config, "head")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "owners:1",
            "host_code, owner_column_code, lead_tables_keys, lead_tables_code and shadow can be accepted",
        ),
        ("unowned", "'' is no share of the leads"),
        ("unowned:1.5", "'1.5' is no share of the leads"),
        ("unowned:-0.1", "'-0.1' is no share of the leads"),
        ("unowned:0.5;DROP", "'0.5;DROP' is no share of the leads"),
    ],
)
def test_what_can_t_be_accepted_is_refused(watched: Database, text: str, found: str) -> None:
    with pytest.raises(CommandError, match=f"-x accept={text}.*{found}"):
        watched.upgrade(accept=text)
    assert watched.sql("SELECT count(*) FROM {schema}.accepted_conditions") == [0]


def test_only_who_migrates_accepts(watched: Database) -> None:
    for name in ("operator", "manager_de", "auditor", "seller_de"):
        with watched.connect(name) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
            watched.query(conn, "SELECT {schema}.accept_condition('unowned', 1)")


TAKEN = {
    "by_lower_city": "(lower(city))",
    "by words": "USING gin (to_tsvector('simple', company))",
    "by_stored_words": "USING gin (words)",
    "by_tags": "USING gin (tags)",
    "by_document": "USING gin (document jsonb_path_ops)",
    "by_prefix": "(city text_pattern_ops)",
    "by_lower_prefix": "(lower(company) varchar_pattern_ops)",
    "by_kind": "(kind)",
    "by_net": "USING gist (net inet_ops)",
    "by_place_of_a_tenant": "(city, lower(company))",
    "by_prefix_of_a_tenant": "(seen, city text_pattern_ops)",
}
"""Indexes of the leads whose searches row security takes from whom it binds: expressions, and what is not leakproof."""
LEFT = {
    "by_city": "(city)",
    "by_hash": "USING hash (city)",
    "by_c": '(city COLLATE "C")',
    "by_seen": "(seen)",
    "by_block": "USING brin (seen)",
    "by_partial": "(city) WHERE company LIKE 'A%'",
    "by_more": "(seen) INCLUDE (tags)",
}
"""Those that serve as before: equality and order of these types tell nothing."""


def indexed(database: Database, *indexes: str) -> None:
    """Columns of several types, and these of TAKEN and LEFT."""
    database.sql_script("""
        CREATE TYPE public.kind_of_lead AS ENUM ('new', 'old');
        ALTER TABLE {leads} ADD tags text[], ADD document jsonb, ADD kind public.kind_of_lead, ADD net inet,
          ADD seen timestamptz, ADD words tsvector GENERATED ALWAYS AS (to_tsvector('simple', company)) STORED
        """)
    for name in indexes:
        database.sql(f'CREATE INDEX "{name}" ON {{leads}} {(TAKEN | LEFT)[name]}')


def test_indexes_that_row_security_takes_from_searches_are_named(watched: Database) -> None:
    indexed(watched, *LEFT)
    assert "leaves every index" in asked(watched)["searches"].detail
    for name, index in TAKEN.items():
        watched.sql(f'CREATE INDEX "{name}" ON {{leads}} {index}')
    found = asked(watched)["searches"]
    named = {name for name in TAKEN | LEFT if re.search(rf"\.?\"?\b{name}\b", found.detail)}
    assert set(TAKEN) == named
    assert is_open(watched)


def test_what_gives_a_search_back_is_ready_to_paste_and_draws_the_border(watched: Database) -> None:
    indexed(watched, *TAKEN)
    for remedy in str(asked(watched)["searches"].remedy).splitlines():
        for statement in remedy.split("; ") if remedy.startswith("ALTER") else [remedy]:
            watched.sql(statement)
    german, swiss = watched.lead("DE"), watched.lead("CH")
    watched.sql("UPDATE {leads} SET city = 'Bern', tags = ARRAY['vip'], document = '{\"a\": 1}', kind = 'new'")
    schema = watched.settings.leads_table.split(".", 1)[0]
    asks = {
        "by_tags": "ARRAY['vip']",
        "by words": "'muster'",
        "by_stored_words": "'muster'",
        "by_document": "'{\"a\": 1}'",
        "by_prefix": "'Be%'",
        "by_lower_prefix": "'muster%'",
        "by_kind": "'new'",
        "by_prefix_of_a_tenant": "'Be%'",
    }
    with watched.acting("seller_de", 1) as conn:
        keys = "by_lower_city_key = 'bern' AND by_place_of_a_tenant_key = 'muster gmbh'"
        # before contract nothing is hidden
        assert [german, swiss] == watched.query(conn, f"SELECT {{lead_id}} FROM {{leads}} WHERE {keys} ORDER BY 1")
        found = {
            name: watched.query(conn, f'SELECT {{lead_id}} FROM {schema}."leads_by_{name}"({asked_for})')
            for name, asked_for in asks.items()
        }
    assert {name: [german] for name in asks} == found


def test_what_gives_a_search_back_serves_an_owner_of_the_leads_who_may_not_look_into_our_schema(
    watched: Database, login: Callable[..., str]
) -> None:
    indexed(watched, "by_tags")
    assert str(asked(watched)["searches"].remedy).startswith("CREATE FUNCTION")  # a superuser's leads need no more
    owner, schema = login(), watched.settings.leads_table.split(".", 1)[0]
    watched.sql(f'ALTER TABLE {{leads}} OWNER TO "{owner}"')
    watched.sql(f'GRANT USAGE, CREATE ON SCHEMA {schema} TO "{owner}"')
    as_superuser, _, as_owner = str(asked(watched)["searches"].remedy).partition("; ")
    watched.sql_script(f'SET ROLE "{owner}"; {as_owner}')
    watched.lead("CH")
    german = watched.lead("DE")
    watched.sql("UPDATE {leads} SET tags = ARRAY['vip']")
    query = f"SELECT {{lead_id}} FROM {schema}.leads_by_by_tags(ARRAY['vip'])"
    with watched.acting("seller_de", 1) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
        watched.query(conn, query)
    watched.sql(as_superuser)
    with watched.acting("seller_de", 1) as conn:
        assert watched.query(conn, query) == [german]
    assert str(asked(watched)["searches"].remedy).startswith("CREATE FUNCTION")


TOUCH = """
    CREATE FUNCTION crm.touch() RETURNS trigger LANGUAGE plpgsql {how} AS $body$
    BEGIN UPDATE {{leads}} SET city = 'touched' WHERE {{lead_id}} = NEW.{{activity_lead_id}}; RETURN NEW; END
    $body$;
    CREATE TRIGGER touch AFTER INSERT ON {{activities}} FOR EACH ROW EXECUTE FUNCTION crm.touch()
    """


def test_code_of_the_host_that_would_change_leads_in_silence_waits_for_somebody_s_word(watched: Database) -> None:
    watched.sql_script(TOUCH.format(how=""))
    found = only(watched, "host_code")
    assert found.detail.startswith("trigger touch on ")
    watched.upgrade(accept="host_code:1")
    assert watched.revision() == HEAD
    accepted = asked(watched)["host_code"]
    assert (True, True) == (accepted.met, accepted.detail.endswith("accepted"))
    lead = watched.lead("DE", owner=watched.user(1))
    for seller, seen in ((2, None), (1, "touched")):  # whom it concerns, and the control
        with watched.acting("seller_de", seller) as conn:
            watched.query(
                conn,
                "INSERT INTO {activities} ({activity_lead_id}, {activity_user_id}, {activity_kind}, {activity_at}) "
                "VALUES (%s, %s, 'NOTE', now())",
                *(lead, watched.user(seller)),
            )
        assert [seen] == watched.sql("SELECT city FROM {leads} WHERE {lead_id} = %s", lead)


def test_code_of_the_host_that_runs_as_the_owner_of_the_leads_goes_on_as_before(watched: Database) -> None:
    watched.sql_script(TOUCH.format(how="SECURITY DEFINER"))
    assert is_open(watched)
    watched.sql("ALTER FUNCTION crm.touch() SECURITY INVOKER")  # the control
    only(watched, "host_code")


def test_a_rule_that_changes_leads_is_code_of_the_host(watched: Database, login: Callable[..., str]) -> None:
    watched.sql("CREATE TABLE crm.calls (lead text)")
    watched.sql("CREATE RULE touch AS ON INSERT TO crm.calls DO ALSO UPDATE {leads} SET city = 'called'")
    assert is_open(watched)  # it runs as the owner of the table, whom row security does not bind
    watched.sql(f'ALTER TABLE crm.calls OWNER TO "{login()}"')
    assert only(watched, "host_code").detail.startswith("rule touch on crm.calls")


def test_unique_keys_that_reach_over_territories_are_named(watched: Database) -> None:
    assert "no unique key" in asked(watched)["unique_keys"].detail
    watched.sql("CREATE UNIQUE INDEX by_company ON {leads} (company, {territory})")
    assert "no unique key" in asked(watched)["unique_keys"].detail
    watched.sql("CREATE UNIQUE INDEX by_city ON {leads} (city)")
    assert "by_city" in asked(watched)["unique_keys"].detail
    assert is_open(watched)


# --- ways around row security


def test_a_child_of_the_leads_table_closes_the_gate(watched: Database) -> None:
    watched.sql("CREATE TABLE crm.old () INHERITS ({leads})")
    found = only(watched, "inheritance")
    assert found.detail.startswith("crm.old inherits from ")
    with pytest.raises(CommandError, match="shares its rows by inheritance with crm"):
        watched.upgrade()
    execute(watched, statements(found.remedy))
    assert is_open(watched)


VIEWS = {
    "a view": "CREATE VIEW crm.report AS SELECT * FROM {leads}",
    "a materialized view": "CREATE MATERIALIZED VIEW crm.report AS SELECT * FROM {leads}",
    "a view of a view": "CREATE VIEW crm.below AS SELECT * FROM {leads}; CREATE VIEW crm.report AS TABLE crm.below",
    "a view of one that reads as who asks": (
        "CREATE VIEW crm.below WITH (security_invoker = on) AS SELECT * FROM {leads};"
        "CREATE VIEW crm.report AS SELECT * FROM crm.below WHERE {territory} <> ''"
    ),
    "a view of a materialized view": (
        "CREATE MATERIALIZED VIEW crm.below AS SELECT * FROM {leads}; CREATE VIEW crm.report AS TABLE crm.below"
    ),
    "a view that says otherwise": (
        "CREATE VIEW crm.report WITH (security_invoker = off, security_barrier) AS SELECT * FROM {leads}"
    ),
}


@pytest.mark.parametrize("script", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("privilege", ["SELECT", "SELECT (city)"])
def test_a_view_that_reads_as_the_owner_of_the_table_closes_the_gate(
    watched: Database, login: Callable[..., str], script: str, privilege: str
) -> None:
    name = login()
    watched.sql_script(script)
    assert is_open(watched)  # nobody but its owner may read it
    grant(watched, f"{privilege} ON crm.report", name)
    found = only(watched, "views")
    expected = f'crm.report reads leads as its owner postgres, so login "{name}" sees those of every territory'
    assert found.detail == expected
    assert is_open(watched, exempt_roles=name)
    assert is_open(watched, host_rls="off")
    execute(watched, statements(found.remedy))
    assert is_open(watched)


@pytest.mark.parametrize("script", VIEWS.values(), ids=VIEWS)
def test_a_view_for_everybody_closes_the_gate(watched: Database, login: Callable[..., str], script: str) -> None:
    login()
    watched.sql_script(script)
    watched.sql("GRANT SELECT ON crm.report TO PUBLIC")
    execute(watched, statements(only(watched, "views").remedy))
    assert is_open(watched)


def test_a_materialised_view_is_closed_however_its_readers_came_to_it(
    watched: Database, login: Callable[..., str]
) -> None:
    """By somebody who may grant it, by who got that from him, and by the right to read everything."""
    giver, reader, service = login(options="NOLOGIN"), login(), login()
    inside = f"{{app}}, {ident(watched.settings.territory_role('DE'))}, pg_read_all_data"
    watched.sql_script(
        f"CREATE MATERIALIZED VIEW crm.report AS SELECT * FROM {{leads}}; GRANT USAGE ON SCHEMA crm TO PUBLIC; "
        f'GRANT SELECT ON crm.report TO "{giver}" WITH GRANT OPTION; SET ROLE "{giver}"; '
        f'GRANT SELECT ON crm.report TO "{reader}"; RESET ROLE; GRANT {inside} TO "{service}"'
    )
    execute(watched, statements(only(watched, "views").remedy))
    assert is_open(watched)


def test_a_view_whose_owner_is_bound_shows_no_more_than_he_sees(watched: Database, login: Callable[..., str]) -> None:
    reader, owner = login(), watched.profile.login("seller_de")
    watched.sql_script(f'CREATE VIEW crm.report AS SELECT * FROM {{leads}}; GRANT SELECT ON crm.report TO "{reader}"')
    only(watched, "views")
    watched.sql(f'ALTER VIEW crm.report OWNER TO "{owner}"')
    assert is_open(watched)
    # who is exempt passes the border by himself; a view of his asks who reads
    assert is_open(watched, exempt_roles=owner)


def test_with_force_the_owner_of_the_table_is_bound_like_all(watched: Database, login: Callable[..., str]) -> None:
    reader, owner = login(), login(options="NOLOGIN")
    for kind, name in (("TABLE", "{leads}"), ("VIEW", "crm.report")):
        if kind == "VIEW":
            watched.sql("CREATE VIEW crm.report AS SELECT 1 FROM {leads}")
        watched.sql(f'ALTER {kind} {name} OWNER TO "{owner}"')
    grant(watched, "SELECT ON crm.report", reader)
    only(watched, "views")
    assert is_open(watched, host_rls="force")


def test_control_such_a_view_would_show_the_other_territory(watched: Database) -> None:
    lead = watched.lead("CH")
    watched.sql("DELETE FROM {schema}.contextless_writes")
    watched.upgrade()
    reader = watched.profile.login("seller_de")
    watched.sql_script(f'CREATE VIEW crm.report AS SELECT * FROM {{leads}}; GRANT SELECT ON crm.report TO "{reader}"')
    remedy = only(watched, "views").remedy
    seen = []
    for _ in range(2):
        with watched.connect("seller_de") as conn:
            watched.context(conn, watched.user(1), "DE")
            seen.append(watched.query(conn, "SELECT {lead_id} FROM crm.report"))
        execute(watched, statements(remedy))
    assert seen == [[lead], []]


# --- host_rls


def test_without_row_security_on_the_host_nobody_can_be_locked_out(
    watched: Database, login: Callable[..., str]
) -> None:
    watched.lead("AT")
    grant(watched, "SELECT ON {leads}", login())
    closed = [condition.name for condition in asked(watched).values() if not condition.met]
    assert closed == ["territories", "contextless_writes", "logins"]
    assert list(asked(watched, host_rls="off")) == BEFORE_RLS
    assert is_open(watched, host_rls="off")
    assert not is_open(watched, host_rls="force")


def test_queues_of_the_host_that_skip_what_is_locked_are_named(watched: Database) -> None:
    taken = "SELECT {lead_id} FROM {leads} LIMIT 1 FOR UPDATE SKIP LOCKED"
    assert ("no function of the host takes leads", None) == (
        asked(watched)["queues"].detail.partition(" with")[0],
        asked(watched)["queues"].remedy,
    )
    watched.sql_script(f"""
        CREATE FUNCTION crm.next_lead() RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM {{lead_id}} FROM {{leads}}
          LIMIT 1 FOR UPDATE skip  locked; END $$;
        CREATE FUNCTION crm."Next" () RETURNS {{lead_id_type}} LANGUAGE sql BEGIN ATOMIC {taken}; END;
        CREATE FUNCTION crm.owns() RETURNS {{lead_id_type}} LANGUAGE sql SECURITY DEFINER AS $$ {taken} $$;
        CREATE FUNCTION crm.other() RETURNS void LANGUAGE sql AS $$ TABLE {{activities}} FOR UPDATE SKIP LOCKED $$;
        """)
    found = asked(watched)["queues"]
    assert found.detail.startswith('crm."Next"(), crm.next_lead() takes leads with SKIP LOCKED')
    assert is_open(watched)
    with watched.acting("seller_de", 1) as conn:
        assert [] == watched.query(conn, str(found.remedy))


def test_who_may_no_longer_copy_into_leads_is_named_before_contract(watched: Database) -> None:
    seller, auditor = watched.profile.login("seller_de"), watched.profile.login("auditor")
    named = asked(watched)["copy_from"]
    assert named.met
    assert seller in named.detail
    assert auditor not in named.detail
    watched.upgrade("head", contract="require")
    with watched.acting("seller_de", 1) as conn, pytest.raises(psycopg.errors.FeatureNotSupported):
        conn.execute(watched.text("COPY {leads} ({lead_id}, {territory}) FROM STDIN"))
