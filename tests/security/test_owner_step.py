"""After contract the host's own column for the owner and the owner are one, whichever of the two is written."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from click.testing import CliRunner

from leadprotect import assign, claim, errors, release, transfer
from leadprotect.backfilling.verify import verify_owners
from leadprotect.cli import main
from leadprotect.migration.gate import Condition, conditions
from tests.support.profiles import NIGHTLY
from tests.support.revisions import HEAD, MIGRATE_HEAD

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.database import Database

SYSTEM = 99
"""Who never owns, where excluded_users names him."""
GIVE = "UPDATE {leads} SET seller = %s WHERE {lead_id} = %s RETURNING true"
INSERT = "INSERT INTO {leads} ({lead_id}, {territory}, seller) VALUES (%s, %s, %s)"
STEPS = 400 if NIGHTLY else 60
ROUNDS = 8 if NIGHTLY else 1


@pytest.fixture
def hiding(make_database: Callable[..., Database]) -> Database:
    """After contract, with the default of denied_edit."""
    return make_database("stepping")


def named(database: Database, lead: Any) -> str | None:
    """Whom the column names."""
    found: list[str | None] = database.sql("SELECT seller::text FROM {leads} WHERE {lead_id} = %s", lead)
    return found[0]


def new_lead(database: Database, owner: int | None = None, territory: str | None = "DE") -> Any:
    lead = database.new_id()
    database.sql(INSERT, lead, territory, owner and database.user(owner))
    return lead


def out_of_step(database: Database) -> list[Any]:
    return database.sql(
        "SELECT l.{lead_id}, l.seller::text, a.user_id::text FROM {leads} AS l "
        "LEFT JOIN {schema}.user_lead_assignments AS a ON a.lead_id = l.{lead_id} AND a.territory = l.{territory} "
        "WHERE l.{territory} IN ('DE', 'CH') "
        "AND l.seller::text IS DISTINCT FROM a.user_id::text ORDER BY 1"
    )


def test_a_change_of_owner_writes_the_column(hiding: Database) -> None:
    lead = new_lead(hiding)
    with hiding.acting("seller_de", 1) as conn:
        claim(conn, lead)
    assert hiding.user(1) == named(hiding, lead)
    with hiding.acting("manager_de", 9) as conn:
        transfer(conn, lead, hiding.user(2))
    assert hiding.user(2) == named(hiding, lead)
    with hiding.acting("seller_de", 2) as conn:
        release(conn, lead)
    assert named(hiding, lead) is None
    with hiding.acting("manager_de", 9) as conn:
        assign(conn, lead, hiding.user(3))
    assert hiding.user(3) == named(hiding, lead)
    # the write of the column is no edit of somebody who did not edit
    assert ["ASSIGN", "ASSIGN", "UNASSIGN", "ASSIGN"] == hiding.audit("action::text")


def test_a_write_of_the_column_changes_the_owner_where_he_may(hiding: Database) -> None:
    lead = new_lead(hiding)
    with hiding.acting("seller_de", 1) as conn:
        assert [True] == hiding.query(conn, GIVE, hiding.user(1), lead)
    assert hiding.user(1) == hiding.owner(lead)
    with hiding.acting("manager_de", 9) as conn:
        assert [True] == hiding.query(conn, GIVE, hiding.user(2), lead)
    assert hiding.user(2) == hiding.owner(lead)
    with hiding.acting("seller_de", 2) as conn:
        assert [True] == hiding.query(conn, GIVE, None, lead)
    assert hiding.owner(lead) is None
    assert [
        ("ASSIGN", "owner", f"by seller; claim to {hiding.user(1)}"),
        ("ASSIGN", "manager", f"by seller; assign to {hiding.user(2)}"),
        ("UNASSIGN", "owner", "by seller; release"),
    ] == hiding.audit("action::text, reason, note")


@pytest.mark.parametrize("denied_edit", ["hide", "raise"])
def test_a_write_that_is_not_allowed_is_hidden_or_refused(
    make_database: Callable[..., Database], denied_edit: str
) -> None:
    database = make_database("stepping", denied_edit=denied_edit)
    if denied_edit == "raise":
        applied = CliRunner().invoke(main, ["apply", "--yes"])
        assert 0 == applied.exit_code, applied.output
    mine, theirs, free = new_lead(database, 1), new_lead(database, 2), new_lead(database)
    attempts = [(mine, 3), (theirs, 1), (theirs, None), (free, 3)]
    for lead, user in attempts:
        with database.acting("seller_de", 1) as conn:
            if denied_edit == "hide":
                assert [] == database.query(conn, GIVE, user and database.user(user), lead)
            else:
                with pytest.raises(psycopg.Error, match="denied"):
                    database.query(conn, GIVE, user and database.user(user), lead)
                conn.rollback()
    # nor is anything else of a lead that he could take
    with database.acting("seller_de", 1) as conn:
        query = "UPDATE {leads} SET company = 'Mine' WHERE {lead_id} = %s RETURNING true"
        if denied_edit == "hide":
            assert [] == database.query(conn, query, free)
        else:
            with pytest.raises(psycopg.Error, match="denied"):
                database.query(conn, query, free)
            conn.rollback()
    assert (database.user(1), database.user(2), None) == tuple(map(database.owner, (mine, theirs, free)))
    assert [] == out_of_step(database)


def test_a_lead_is_born_with_its_owner_by_the_same_rules(hiding: Database) -> None:
    own, given, free = (hiding.new_id() for _ in range(3))
    with hiding.acting("seller_de", 1) as conn:
        hiding.query(conn, INSERT, own, "DE", hiding.user(1))
        hiding.query(conn, INSERT, free, "DE", None)
    with hiding.acting("manager_de", 9) as conn:
        hiding.query(conn, INSERT, given, "DE", hiding.user(2))
    with hiding.acting("seller_de", 1) as conn:
        with pytest.raises(psycopg.Error, match="denied") as refused:
            hiding.query(conn, INSERT, hiding.new_id(), "DE", hiding.user(2))
        conn.rollback()
    assert "not_manager" == refused.value.diag.message_detail
    assert (hiding.user(1), hiding.user(2), None) == tuple(map(hiding.owner, (own, given, free)))


def test_a_user_who_never_owns_stands_for_nobody(
    make_database: Callable[..., Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    database = make_database("host", owners_from="column", owner_column="seller")
    system = database.overrides["excluded_users"] = database.user(SYSTEM)
    monkeypatch.setenv("LEADPROTECT_EXCLUDED_USERS", system)
    database.sql("ALTER TABLE {leads} ADD seller {user_id_type}")
    database.upgrade("head", contract="require", accept="unowned:1,unprotected:1")
    database.create_logins()
    lead = new_lead(database, 1)
    with database.acting("seller_de", 1) as conn:
        assert [True] == database.query(conn, GIVE, system, lead)
    assert (None, system) == (database.owner(lead), named(database, lead))
    with database.acting("manager_de", 9) as conn:
        with pytest.raises(errors.LeadProtectError, match="does not take the owner"):
            assign(conn, lead, system)
        conn.rollback()
    assert ("UNASSIGN", "owner", "by seller; release") == database.audit("action::text, reason, note")[-1]


def test_other_columns_change_beside_it_for_whom_may_take_the_lead(hiding: Database) -> None:
    lead, free = new_lead(hiding, 1), new_lead(hiding)
    query = "UPDATE {leads} SET seller = %s, city = 'Bern' WHERE {lead_id} = %s RETURNING true"
    with hiding.acting("manager_de", 9) as conn:
        assert [True] == hiding.query(conn, query, hiding.user(2), lead)
    with hiding.acting("seller_de", 3) as conn:
        assert [True] == hiding.query(conn, query, hiding.user(3), free)
    with hiding.connect("manager_de") as conn:  # a manager without a user edits nothing, but may give it to somebody
        hiding.context(conn, None, "DE")
        with pytest.raises(psycopg.Error, match="denied"):
            hiding.query(conn, query.replace("Bern", "Chur"), hiding.user(4), lead)
        conn.rollback()
    assert [("EDIT", "manager"), ("EDIT", "owner")] == [
        row for row in hiding.audit("action::text, reason") if row[0] == "EDIT"
    ]
    assert [] == out_of_step(hiding)


def test_maintenance_is_followed_and_recorded(hiding: Database) -> None:
    leads = [new_lead(hiding, 1) for _ in range(3)]
    hiding.sql("UPDATE {leads} SET seller = %s", hiding.user(2))
    assert [hiding.user(2)] * 3 == [hiding.owner(lead) for lead in leads]
    hiding.sql("UPDATE {leads} SET {territory} = 'CH'")
    # nobody's there, until somebody says so
    assert [None] * 3 == [named(hiding, lead) for lead in leads]
    hiding.sql("UPDATE {leads} SET {territory} = 'DE'")
    assert [hiding.user(2)] * 3 == [named(hiding, lead) for lead in leads]
    assert {("ASSIGN", "maintenance")} == set(hiding.audit("action::text, reason")) - {("EDIT", "maintenance")}


def test_a_host_that_keeps_its_column_keeps_the_owner_too(hiding: Database) -> None:
    lead = new_lead(hiding, 1)
    hiding.sql_script("""
        CREATE FUNCTION public.keep() RETURNS trigger LANGUAGE plpgsql
        AS 'BEGIN NEW.seller := OLD.seller; RETURN NEW; END';
        CREATE TRIGGER keep BEFORE UPDATE ON {leads} FOR EACH ROW EXECUTE FUNCTION public.keep()
        """)
    with hiding.acting("manager_de", 9) as conn:
        with pytest.raises(errors.LeadProtectError, match="does not take the owner"):
            transfer(conn, lead, hiding.user(2))
        conn.rollback()
    assert hiding.user(1) == hiding.owner(lead) == named(hiding, lead)


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_column_and_owner_are_one_after_each_statement_of_a_random_life(hiding: Database, seed: int) -> None:
    """Both sides change what they may and what they may not, one lead or many, and neither falls behind."""
    chance = random.Random(seed)  # noqa: S311 - worlds, no secret
    leads = [new_lead(hiding, owner) for owner in (1, 2, 3, None, None)] + [new_lead(hiding, 1, "CH")]
    standing = "SELECT lead_id, territory, user_id FROM {schema}.user_lead_assignments ORDER BY 1, 2"
    changed, refused = 0, []
    for _ in range(STEPS):
        before = hiding.sql(standing)
        login, user = chance.choice([("seller_de", 1), ("seller_de", 2), ("manager_de", 9), (None, None)])
        with hiding.connect(login) as conn:
            if user:
                hiding.context(conn, hiding.user(user), "DE")
            try:
                leads += one_of_both_sides(hiding, conn, chance, leads)
                conn.commit()
            except psycopg.Error as error:
                refused.append(error.sqlstate)
        assert [] == out_of_step(hiding)
        changed += before != hiding.sql(standing)
    assert changed > STEPS / 5
    assert len(refused) > STEPS / 20
    assert {"LP403", "LP422", "42501"} >= set(refused)


def one_of_both_sides(
    database: Database, conn: psycopg.Connection[Any], chance: random.Random, leads: list[Any]
) -> list[Any]:
    """A statement of ours or of the host, and the lead that it made."""
    new, lead, made = chance.choice([None, 1, 2, 3]), chance.choice(leads), database.new_id()
    to = new and database.user(new)
    kinds: list[tuple[str, tuple[Any, ...]]] = [
        ("SELECT {schema}.claim_lead(%s)", (lead,)),
        ("SELECT {schema}.release_lead(%s)", (lead,)),
        ("SELECT {schema}.assign_lead(%s, %s)", (lead, to)),
        (GIVE, (to, lead)),
        ("UPDATE {leads} SET seller = %s, city = 'x' WHERE random() < 0.5", (to,)),
        ("UPDATE {leads} SET {territory} = %s WHERE {lead_id} = %s", (chance.choice(["DE", "CH"]), lead)),
        (INSERT, (made, "DE", to)),
    ]
    statement, values = chance.choice(kinds)
    database.query(conn, statement, *values)
    return [made] if statement == INSERT else []


def test_without_its_trigger_the_column_falls_behind(hiding: Database) -> None:
    """The control: what the test above holds is held by the pair of triggers, and doctor tells that it is gone."""
    lead = new_lead(hiding, 1)
    hiding.sql("DROP TRIGGER {follow_column} ON {leads}")
    with hiding.acting("manager_de", 9) as conn:
        transfer(conn, lead, hiding.user(2))
    assert [(lead, hiding.user(1), hiding.user(2))] == out_of_step(hiding)
    told = CliRunner().invoke(main, ["doctor"]).output
    assert "follow_column is missing" in told
    assert "owner-column-differs" in told


@pytest.mark.nightly_elsewhere("by day a random life has the column and the owner there")
def test_what_differed_at_contract_is_said_and_can_be_written(hiding: Database) -> None:
    lead = new_lead(hiding, 1)
    hiding.sql("UPDATE {schema}.user_lead_assignments SET user_id = %s", hiding.user(2))
    told = CliRunner().invoke(main, ["doctor"]).output
    assert "owner-column-differs" in told
    # whom the column names is no truth of the backfill alone
    verified = CliRunner().invoke(main, ["backfill", "--verify", "DE"])
    assert 3 == verified.exit_code
    assert "1 name somebody else in seller, " in verified.output
    assert f"  column: {lead}\n" in verified.output
    with hiding.connect("operator") as conn:
        (found,) = verify_owners(conn, ["DE"])
    assert (1, (lead,), False) == (found.differing, found.differing_leads, found.complete)
    assert [1] == hiding.sql("SELECT {schema}.settle_owner_column('DE')")
    assert [] == out_of_step(hiding)
    assert hiding.user(2) == named(hiding, lead)
    assert 0 == CliRunner().invoke(main, ["backfill", "--verify", "DE"]).exit_code
    diagnosed = CliRunner().invoke(main, ["doctor"])
    assert "owner-column-differs" not in diagnosed.output
    assert 0 == diagnosed.exit_code, diagnosed.output


NOISY = """
CREATE TABLE public.history (lead text);
CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.seller IS DISTINCT FROM OLD.seller THEN INSERT INTO public.history VALUES (NEW.{lead_id}::text); END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER note AFTER UPDATE ON {leads} FOR EACH ROW EXECUTE FUNCTION public.note()
"""
QUIET = """
CREATE FUNCTION public.stamp() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN  -- insert into nothing
  IF NEW IS DISTINCT FROM OLD AND TG_OP = 'update x' THEN NEW.seller := NEW.seller; END IF; RETURN NEW;
END $$;
CREATE TRIGGER stamp BEFORE UPDATE ON {leads} FOR EACH ROW EXECUTE FUNCTION public.stamp()
"""


@pytest.mark.nightly_elsewhere("by day the gate names such a trigger there")
def test_a_trigger_that_would_run_as_our_reader_is_named_and_mended(hiding: Database) -> None:
    hiding.sql_script(QUIET)
    assert "owner-column-code" not in CliRunner().invoke(main, ["doctor"]).output
    hiding.sql_script(NOISY)
    lead = new_lead(hiding, 1)
    # what is named is so
    with hiding.acting("manager_de", 9) as conn:
        with pytest.raises(errors.LeadProtectError, match="permission denied for table history"):
            transfer(conn, lead, hiding.user(2))
        conn.rollback()
    assert "owner-column-code" in CliRunner().invoke(main, ["doctor"]).output

    (mends,) = hiding.sql("SELECT remedy FROM {schema}.column_code()")
    hiding.sql(mends)

    assert "owner-column-code" not in CliRunner().invoke(main, ["doctor"]).output
    with hiding.acting("manager_de", 9) as conn:
        transfer(conn, lead, hiding.user(2))
    assert [str(lead)] == hiding.sql("SELECT lead FROM public.history")


def test_the_gate_names_a_trigger_that_would_run_as_our_reader(make_database: Callable[..., Database]) -> None:
    database = make_database("host", owners_from="column", owner_column="seller")
    database.sql("ALTER TABLE {leads} ADD seller {user_id_type}")
    database.sql_script(QUIET)
    database.upgrade(MIGRATE_HEAD)
    assert asked(database).met
    database.sql_script(NOISY)
    found = asked(database)
    assert (False, True) == (found.met, found.detail.startswith("trigger note on "))
    database.upgrade(accept="owner_column_code:1,unowned:1,unprotected:1")
    assert HEAD == database.revision()


def asked(database: Database) -> Condition:
    with database.connect() as conn:
        return next(one for one in conditions(conn, settings=database.settings) if one.name == "owner_column_code")


def test_going_back_leaves_the_column_as_it_is(hiding: Database) -> None:
    lead = new_lead(hiding, 1)
    with hiding.acting("manager_de", 9) as conn:
        transfer(conn, lead, hiding.user(2))
    hiding.downgrade()
    assert hiding.user(2) == named(hiding, lead)
    assert [] == hiding.sql("SELECT FROM pg_trigger WHERE tgrelid = '{leads}'::regclass AND NOT tgisinternal")
    granted = "SELECT FROM pg_attribute WHERE attrelid = '{leads}'::regclass AND attacl::text LIKE '%%=w/%%'"
    assert [] == hiding.sql(granted)
