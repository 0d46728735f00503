"""Tables that hold data of leads, from the settings to contract and back: refused, named, protected, given back."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from alembic.util import CommandError

import leadprotect
from leadprotect.doctor.examine import CHECKS, examine
from leadprotect.doctor.repair import plan, repair
from leadprotect.doctor.status import status
from leadprotect.migration import gate
from leadprotect.migration.apply import apply
from leadprotect.migration.purge import purge
from tests.migrations.test_apply import set_to
from tests.migrations.test_preflight import refused
from tests.support.children import CONTACTS, LEAD_TABLES, NOTES, TABLES, contact, contracted, grant, with_children
from tests.support.revisions import MIGRATE_HEAD

if TYPE_CHECKING:
    from collections.abc import Callable

    from leadprotect.doctor.finding import Symptom
    from tests.support.database import Database

ONE_SERVER = pytest.mark.profiles("pg18")


def standing(database: Database) -> list[Any]:
    """What the catalog holds of both tables: flags, policies, triggers, grants."""
    query = f"""
        SELECT c.relname::text, c.relrowsecurity, c.relforcerowsecurity, c.relacl::text,
               ARRAY(SELECT p.polname::text || ' ' || coalesce(pg_get_expr(p.polqual, p.polrelid), '')
                     FROM pg_policy AS p WHERE p.polrelid = c.oid ORDER BY 1),
               ARRAY(SELECT t.tgname::text || t.tgenabled::text FROM pg_trigger AS t
                     WHERE t.tgrelid = c.oid AND NOT t.tgisinternal ORDER BY 1),
               ARRAY(SELECT a.attacl::text FROM pg_attribute AS a
                     WHERE a.attrelid = c.oid AND a.attacl IS NOT NULL AND a.attacl <> '{{}}' ORDER BY 1)
        FROM pg_class AS c WHERE c.oid IN ('{CONTACTS}'::regclass, '{NOTES}'::regclass) ORDER BY 1
        """
    return database.sql(query)


def conditions(database: Database) -> dict[str, gate.Condition]:
    with database.connect() as conn:
        return {one.name: one for one in gate.conditions(conn, settings=database.settings)}


def run(database: Database, statements: str | None) -> None:
    """What the gate prints, as a DBA runs it."""
    database.sql_script((statements or "").split(" or ")[0])


# --- up and down


def test_downgrade_gives_the_tables_back_as_they_were(make_database: Callable[..., Database]) -> None:
    database = with_children(make_database)
    database.sql_script(f"""
        ALTER TABLE {NOTES} ENABLE ROW LEVEL SECURITY;
        CREATE POLICY theirs ON {NOTES} USING (body <> 'secret')
        """)
    before = standing(database)
    database.upgrade("head", contract="require")
    protected = standing(database)
    assert [row[1] for row in protected] == [True, True]
    assert [len(row[4]) for row in protected] == [5, 4], "ours, and one of theirs where everybody appends"
    database.downgrade(MIGRATE_HEAD)
    assert standing(database) == before
    database.upgrade("head", contract="require")
    assert standing(database) == protected


def test_row_security_that_the_host_had_goes_on_deciding(make_database: Callable[..., Database]) -> None:
    database = with_children(make_database)
    database.sql_script(f"""
        ALTER TABLE {CONTACTS} ENABLE ROW LEVEL SECURITY;
        CREATE POLICY theirs ON {CONTACTS} USING (email <> 'secret')
        """)
    database.upgrade("head", contract="require")
    lead = database.lead("DE", owner=database.user(1))
    seen, _ = contact(database, lead, "open"), contact(database, lead, "secret")
    with database.acting("seller_de", 1) as conn:
        assert database.query(conn, f"SELECT id FROM {CONTACTS}") == [seen]


@ONE_SERVER
def test_activities_with_row_security_of_their_own_may_be_such_a_table(make_database: Callable[..., Database]) -> None:
    database = make_database("host", lead_tables="public.activities (lead_id) append")
    database.sql_script(
        "ALTER TABLE {activities} ENABLE ROW LEVEL SECURITY; CREATE POLICY a ON {activities} USING (true)"
    )
    database.upgrade("head", contract="require")
    assert conditions(database)["visibility"].met


def test_what_is_activities_too_stays_readable_for_us_until_the_base(make_database: Callable[..., Database]) -> None:
    """Undoing contract once took the grant of a further table of activities: no backfill could read it from then on."""
    database = make_database("host", lead_tables=LEAD_TABLES)
    database.sql_script(TABLES + "; ALTER TABLE crm.notes ADD author {user_id_type}, ADD at timestamptz")
    database.sections = {
        "notes": {
            "table": "crm.notes", "lead_id_column": "lead_id", "user_id_column": "author",
            "kind_column": "", "at_column": "at",
        }
    }  # fmt: skip
    before = dump(database)
    database.upgrade("head", contract="require")
    lead = database.lead("DE")
    database.downgrade(MIGRATE_HEAD)
    database.sql("INSERT INTO crm.notes (lead_id, author, at) VALUES (%s, %s, now())", lead, database.user(1))
    database.sql("DELETE FROM {schema}.user_lead_assignments")
    leadprotect.backfill(database.url, ["DE"], settings=database.settings)
    assert database.owner(lead) == database.user(1)
    database.downgrade("base")
    with database.connect() as conn:
        purge(conn, settings=database.settings)
    assert dump(database) == before


def dump(database: Database) -> list[str]:
    command = [str(database.server.programs / "pg_dump"), "--schema-only", "--dbname", database.url]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [line for line in done.stdout.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]


@pytest.mark.parametrize("owners", [{}, {"owners_from": "column", "owner_column": "seller"}], ids=["act", "column"])
def test_after_leaving_a_dump_is_as_before_we_came(
    make_database: Callable[..., Database], owners: dict[str, str]
) -> None:
    database = make_database("host", lead_tables=LEAD_TABLES, **owners)
    database.sql_script(TABLES + "; ALTER TABLE {leads} ADD seller {user_id_type}")
    if owners:  # then no table of activities need be there
        database.sql("DROP TABLE {activities}")
    before = dump(database)
    database.upgrade("head", contract="require")
    assert dump(database) != before
    database.downgrade("base")
    with database.connect() as conn:
        purge(conn, settings=database.settings)
    assert dump(database) == before


def test_a_table_that_was_renamed_stops_the_way_down_before_its_first_step(
    make_database: Callable[..., Database],
) -> None:
    database = contracted(make_database)
    database.sql_script(f"ALTER TABLE {NOTES} RENAME TO remarks")
    with pytest.raises(CommandError, match="had another name when it was protected"):
        database.downgrade(MIGRATE_HEAD)
    database.sql_script("ALTER TABLE crm.remarks RENAME TO notes")
    database.downgrade(MIGRATE_HEAD)


# --- preflight

REFUSED = {
    "there is no table crm.gone": ("crm.gone (lead_id)", ""),
    "crm.notes has no column lead": ("crm.notes (lead)", ""),
    "crm.notes.body is text": ("crm.notes (body)", ""),
    "crm.listing is not an ordinary table": (
        "crm.listing (lead_id)",
        f"CREATE VIEW crm.listing AS SELECT * FROM {NOTES}",
    ),
    "crm.notes has no index that begins with lead_id: CREATE INDEX CONCURRENTLY": (
        "crm.notes (lead_id)",
        "DROP INDEX crm.notes_lead_id_idx",
    ),
    "shares its rows by inheritance": ("crm.notes (lead_id)", f"CREATE TABLE crm.old () INHERITS ({NOTES})"),
    "_child_border exists on the host's tables": (
        "crm.notes (lead_id)",
        f"CREATE POLICY {{child_border_policy}} ON {NOTES} USING (true)",
    ),
    "_child_edit exists on the host's tables": (
        "crm.notes (lead_id)",
        f"""
        CREATE FUNCTION crm.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
        CREATE TRIGGER {{child_edit}} BEFORE UPDATE ON {NOTES} FOR EACH ROW EXECUTE FUNCTION crm.f()
        """,
    ),
}


@ONE_SERVER
def test_an_index_of_the_rows_that_have_a_lead_is_enough(make_database: Callable[..., Database]) -> None:
    database = make_database("host", lead_tables="crm.notes (lead_id)")
    partial = "DROP INDEX crm.notes_lead_id_idx; CREATE INDEX notes_lead_id_idx ON crm.notes (lead_id) WHERE "
    database.sql_script(TABLES + partial + "lead_id IS NOT NULL")
    database.upgrade(MIGRATE_HEAD)
    database.downgrade("base")
    # control: of an index of some of them a lead's other rows are not found
    database.sql_script(partial + "body <> ''")
    with refused(database, "crm.notes has no index that begins with lead_id"):
        pass


@ONE_SERVER
@pytest.mark.parametrize("expected", REFUSED)
def test_what_would_fail_is_refused_before_anything_is_touched(
    make_database: Callable[..., Database], expected: str
) -> None:
    lead_tables, script = REFUSED[expected]
    database = make_database("host", lead_tables=lead_tables)
    database.sql_script(TABLES + script)
    with refused(database, expected):
        pass


@ONE_SERVER
def test_a_migrating_role_that_does_not_own_such_a_table_is_told_what_helps(
    make_database: Callable[..., Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    database = make_database("host", lead_tables="crm.notes (lead_id)")
    database.sql_script(TABLES)
    migrator = f"{database.name}_migrator"
    database.sql_script(f"""
        CREATE ROLE "{migrator}" LOGIN CREATEROLE;
        GRANT CREATE ON DATABASE "{database.name}" TO "{migrator}";
        ALTER TABLE {{leads}} OWNER TO "{migrator}"; ALTER TABLE {{activities}} OWNER TO "{migrator}"
        """)
    monkeypatch.setenv("DATABASE_URL", database.server.url(database.name, migrator))
    with refused(database, f"lead_tables: role {migrator} does not own crm.notes") as statements:
        assert f'ALTER TABLE "crm"."notes" OWNER TO "{migrator}";' in statements
        assert not [line for line in statements if '"postgres"' in line]
    monkeypatch.setenv("DATABASE_URL", database.url)
    database.sql_script(
        f'REASSIGN OWNED BY "{migrator}" TO postgres; DROP OWNED BY "{migrator}"; DROP ROLE "{migrator}"'
    )


# --- the gate


def test_the_gate_names_who_would_be_locked_out_of_them(make_database: Callable[..., Database]) -> None:
    database = with_children(make_database)
    assert conditions(database)["lead_tables"].met
    grant(database, "outsider")
    found = conditions(database)["lead_tables"]
    outsider = database.profile.login("outsider")
    assert not found.met
    assert f"{outsider} has privileges on" in found.detail
    with pytest.raises(CommandError, match="outsider has privileges on"):
        database.upgrade("head", contract="require")
    database.sql_script(f'REVOKE ALL ON {CONTACTS}, {NOTES} FROM "{outsider}"')
    database.upgrade("head", contract="require")


def test_the_gate_names_who_may_not_read_the_leads_by_which_rows_are_seen(
    make_database: Callable[..., Database],
) -> None:
    database = with_children(make_database)
    login = database.profile.login("seller_ch")
    database.sql_script(f'REVOKE ALL ON {{leads}} FROM "{login}"')
    found = conditions(database)["lead_tables"]
    assert not found.met
    run(database, found.remedy)
    assert conditions(database)["lead_tables"].met
    database.upgrade("head", contract="require")
    lead = database.lead("CH", owner=database.user(1))
    row = contact(database, lead)
    with database.acting("seller_ch", 1, "CH") as conn:
        assert database.query(conn, f"SELECT id FROM {CONTACTS}") == [row]


@ONE_SERVER
def test_where_the_territory_is_an_expression_its_columns_are_asked_for(make_database: Callable[..., Database]) -> None:
    database = make_database("host", lead_tables=LEAD_TABLES, territory_expression="coalesce(territory, city)")
    database.sql_script(TABLES)
    database.upgrade(MIGRATE_HEAD)
    database.create_logins()
    grant(database, "seller_de")
    assert conditions(database)["lead_tables"].met
    login = database.profile.login("seller_de")
    database.sql_script(f'REVOKE ALL ON {{leads}} FROM "{login}"')
    assert '("id", "territory", "city")' in str(conditions(database)["lead_tables"].remedy)


def test_the_gate_names_a_view_that_reads_them_as_its_owner(make_database: Callable[..., Database]) -> None:
    database = with_children(make_database)
    login = database.profile.login("seller_de")
    database.sql_script(f"""
        CREATE VIEW crm.all_notes AS SELECT * FROM {NOTES};
        GRANT SELECT ON crm.all_notes TO "{login}"
        """)
    found = conditions(database)["lead_tables_ways"]
    assert not found.met
    assert "crm.all_notes reads crm.notes as its owner" in found.detail
    run(database, found.remedy)
    assert conditions(database)["lead_tables_ways"].met


def test_a_key_that_takes_rows_from_a_deleted_lead_waits_for_somebody_to_answer_for_it(
    make_database: Callable[..., Database],
) -> None:
    database = with_children(make_database)
    database.sql_script(f"""
        ALTER TABLE {NOTES} DROP CONSTRAINT notes_lead_id_fkey,
        ADD CONSTRAINT notes_lead_id_fkey FOREIGN KEY (lead_id) REFERENCES {{leads}} ON DELETE SET NULL
        """)
    found = conditions(database)["lead_tables_keys"]
    assert not found.met
    assert "notes_lead_id_fkey takes the rows of crm.notes from a lead" in found.detail
    with pytest.raises(CommandError, match="notes_lead_id_fkey"):
        database.upgrade("head", contract="require")
    run(database, found.remedy)
    assert conditions(database)["lead_tables_keys"].met
    assert (
        "ON DELETE CASCADE"
        in database.sql("SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'notes_lead_id_fkey'")[0]
    )


def test_with_such_a_key_accepted_the_deletion_is_refused_and_nothing_is_opened(
    make_database: Callable[..., Database],
) -> None:
    database = with_children(make_database)
    database.sql_script(f"""
        ALTER TABLE {NOTES} DROP CONSTRAINT notes_lead_id_fkey,
        ADD CONSTRAINT notes_lead_id_fkey FOREIGN KEY (lead_id) REFERENCES {{leads}} ON DELETE SET NULL
        """)
    database.upgrade("head", contract="require", accept="lead_tables_keys:1")
    lead = database.lead("DE", owner=database.user(1))
    database.sql(f"INSERT INTO {NOTES} (lead_id) VALUES (%s)", lead)
    with pytest.raises(Exception, match="by maintenance only"), database.acting("seller_de", 1) as conn:
        database.query(conn, "DELETE FROM {leads} WHERE {lead_id} = %s", lead)
    assert database.sql(f"SELECT lead_id FROM {NOTES}") == [lead]


TOUCH = f"""
    CREATE TABLE crm.calls (lead {{lead_id_type}});
    CREATE FUNCTION crm.touch() RETURNS trigger LANGUAGE plpgsql AS $body$
    BEGIN UPDATE {CONTACTS} SET email = 'touched' WHERE "of lead" = NEW.lead; RETURN NEW; END
    $body$;
    CREATE TRIGGER touch AFTER INSERT ON crm.calls FOR EACH ROW EXECUTE FUNCTION crm.touch()
    """


def test_code_of_the_host_that_would_change_rows_in_silence_waits_for_somebody_s_word(
    make_database: Callable[..., Database],
) -> None:
    database = with_children(make_database)
    assert conditions(database)["lead_tables_code"].met
    database.sql_script(TOUCH)
    found = conditions(database)["lead_tables_code"]
    assert not found.met
    assert found.detail.startswith('trigger touch on crm.calls changes rows of crm."lead contacts"')
    assert conditions(database)["host_code"].met  # no lead itself is changed
    for how, met in (("DEFINER", True), ("INVOKER", False)):
        database.sql(f"ALTER FUNCTION crm.touch() SECURITY {how}")
        assert conditions(database)["lead_tables_code"].met == met
    with pytest.raises(CommandError, match="trigger touch on"):
        database.upgrade("head", contract="require")
    database.upgrade("head", contract="require", accept="lead_tables_code:1")
    login = database.profile.login("seller_de")
    database.sql_script(f'GRANT INSERT ON crm.calls TO "{login}"')
    lead = database.lead("DE", owner=database.user(1))
    row = contact(database, lead, "as it was")
    for seller, seen in ((2, "as it was"), (1, "touched")):  # whom it concerns, and the control
        with database.acting("seller_de", seller) as conn:
            database.query(conn, "INSERT INTO crm.calls VALUES (%s)", lead)
        assert [seen] == database.sql(f"SELECT email FROM {CONTACTS} WHERE id = %s", row)


# --- doctor


def test_a_function_that_runs_as_the_owner_of_the_rows_is_named(make_database: Callable[..., Database]) -> None:
    database = contracted(make_database)
    database.sql_script(f"""
        CREATE FUNCTION crm.everything() RETURNS SETOF text LANGUAGE sql SECURITY DEFINER
        AS 'SELECT email FROM {CONTACTS}'
        """)
    with database.connect(autocommit=True) as conn:
        found = examine(conn, settings=database.settings)
    assert ["function crm.everything()"] == [one.where for one in found.findings if one.check == "definer-function"]


DAMAGES = {
    "leads-row-security-off": f"ALTER TABLE {CONTACTS} DISABLE ROW LEVEL SECURITY",
    "policy-missing": f"DROP POLICY {{child_border_policy}} ON {CONTACTS}",
    "policy-changed": f"ALTER POLICY {{child_update_policy}} ON {NOTES} USING (true)",
    "lead-trigger-missing": f"DROP TRIGGER {{child_move}} ON {NOTES}",
    "lead-trigger-off": f"ALTER TABLE {CONTACTS} DISABLE TRIGGER {{child_edit}}",
    "lead-trigger-changed": f"""
        DROP TRIGGER {{child_edit}} ON {NOTES};
        CREATE TRIGGER {{child_edit}} BEFORE UPDATE ON {NOTES} FOR EACH ROW WHEN (OLD.lead_id IS NOT NULL)
        EXECUTE FUNCTION {{schema}}.child_edit('lead_id');
        ALTER TABLE {NOTES} ENABLE ALWAYS TRIGGER {{child_edit}}
        """,
}


def examined(database: Database) -> tuple[Symptom, ...]:
    checks = [
        check for check in CHECKS if check.name in {*DAMAGES, "setting-not-applied", "child-table", "publication"}
    ]
    with database.connect(autocommit=True) as conn:
        return tuple(examine(conn, settings=database.settings, checks=checks).findings)


def faults(database: Database) -> list[str]:
    return [one.check for one in examined(database)]


@pytest.mark.nightly_elsewhere("by day a sound one has no danger there, and each check asks the catalog of both")
def test_doctor_finds_each_fault_of_such_a_table_and_repair_mends_it(make_database: Callable[..., Database]) -> None:
    database = contracted(make_database)
    before = standing(database)
    assert faults(database) == []
    for check, script in DAMAGES.items():
        database.sql_script(script)
        assert faults(database) == [check]
        with database.connect(autocommit=True) as conn:
            repair(conn, plan(conn, settings=database.settings), settings=database.settings)
        assert faults(database) == [], check
    assert standing(database) == before


def test_doctor_names_a_table_that_only_the_setting_or_only_the_database_protects(
    make_database: Callable[..., Database],
) -> None:
    database = contracted(make_database)
    database.overrides["lead_tables"] = "crm.lead contacts (of lead)"
    assert faults(database) == ["setting-not-applied"]
    database.overrides["lead_tables"] = f"{LEAD_TABLES}, public.user_lead_assignments (id)"
    assert "setting-not-applied" in faults(database)
    database.overrides["lead_tables"] = "crm.lead contacts (of lead), crm.notes (lead_id)"
    assert "setting-not-applied" in faults(database)


@ONE_SERVER
def test_doctor_names_a_publication_that_carries_one(make_database: Callable[..., Database]) -> None:
    database = contracted(make_database)
    database.sql_script(f"CREATE PUBLICATION notes FOR TABLE {NOTES}")
    assert faults(database) == ["publication"]


PARENTS = {
    "a child": "CREATE TABLE crm.every (LIKE {one}); ALTER TABLE {one} INHERIT crm.every",
    "a partition": """
        CREATE TABLE crm.every (LIKE {one}) PARTITION BY RANGE ({key});
        ALTER TABLE crm.every ATTACH PARTITION {one} DEFAULT
        """,
}


@pytest.mark.everywhere
def test_no_table_that_contract_protects_becomes_part_of_another_one(make_database: Callable[..., Database]) -> None:
    """Through a parent neither its row security nor the triggers of its statements would be met."""
    database = contracted(make_database)
    protected = {
        database.text("{leads}"): ("{refuse_move}", "{lead_id}", "inheritance"),
        CONTACTS: ("{child_move}", "id", "lead_tables_ways"),
        NOTES: ("{child_move}", "id", "lead_tables_ways"),
    }
    for one, (keeps, key, condition) in protected.items():
        for what, script in PARENTS.items():
            attach = script.replace("{one}", one).replace("{key}", key)
            with pytest.raises(psycopg.errors.Error, match=r"prevents table .* from becoming") as refused_by:
                database.sql_script(attach)
            assert database.text(keeps).strip('"') in str(refused_by.value), (one, what)
            # control: without the trigger nothing keeps them apart, and what is printed does
            database.sql_script(f"DROP TRIGGER {keeps} ON {one}")
            database.sql_script(attach)
            assert sorted(faults(database)) == ["child-table", "lead-trigger-missing"], (one, what)
            ways = conditions(database)[condition]
            assert not ways.met
            (remedy,) = (found.mends for found in examined(database) if found.check == "child-table")
            assert remedy == ways.remedy
            database.sql_script(remedy or "")
            with database.connect(autocommit=True) as conn:
                repair(conn, plan(conn, settings=database.settings), settings=database.settings)
            database.sql_script("DROP TABLE crm.every")
            assert faults(database) == [], (one, what)


@ONE_SERVER
def test_a_table_that_inherits_from_a_protected_one_is_named_until_it_does_not(
    make_database: Callable[..., Database],
) -> None:
    database = contracted(make_database)
    for one in (NOTES, "{leads}"):
        database.sql_script(f"CREATE TABLE crm.more () INHERITS ({one})")
        (found,) = examined(database)
        assert (found.check, found.where) == ("child-table", "crm.more")
        with database.connect(autocommit=True) as conn:
            assert not status(conn, settings=database.settings).sound
        database.sql_script(f"{found.mends}; DROP TABLE crm.more")
    with database.connect(autocommit=True) as conn:
        assert status(conn, settings=database.settings).sound


# --- apply


def test_apply_protects_a_table_named_later_and_gives_back_one_that_is_not_named_any_more(
    make_database: Callable[..., Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    database = with_children(make_database, lead_tables="crm.lead contacts (of lead)")
    before = standing(database)
    database.upgrade("head", contract="require")
    assert [row[1] for row in standing(database)] == [True, False]
    set_to(database, monkeypatch, lead_tables="crm.notes (lead_id) append")
    assert apply(dry_run=True).changes[0].key == "lead_tables"
    assert apply().done
    assert [row[1] for row in standing(database)] == [False, True]
    assert faults(database) == []
    database.downgrade(MIGRATE_HEAD)
    assert standing(database) == before


def test_upgrade_head_says_what_is_gone_from_such_a_table(make_database: Callable[..., Database]) -> None:
    database = contracted(make_database)
    database.sql_script(f"DROP POLICY {{child_border_policy}} ON {NOTES}")
    with pytest.raises(CommandError, match=r"child_border on crm\.notes"):
        database.upgrade("head", contract="require")
