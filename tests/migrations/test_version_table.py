"""The version table is ours: made as ours, looked at before anything is executed on it, and gone with the schema."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import psycopg
import pytest
from alembic import command
from alembic.util import CommandError
from click.testing import CliRunner

from leadprotect.cli import main
from leadprotect.doctor.repair import plan, repair
from leadprotect.errors import PreflightError
from leadprotect.migration import environment, purge, version_table
from leadprotect.preflight import standing
from leadprotect.preflight import version_table as versions
from tests.support.revisions import HEAD, MIGRATE_HEAD, NAMED, REVISIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.database import Database

SERVERS = pytest.mark.profiles("pg18", "pg15")
ONE_SERVER = pytest.mark.profiles("pg18")
FIRST = REVISIONS[0]

SPY = """
CREATE TABLE public.caught (who name, super boolean);
CREATE FUNCTION public.spy() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN
  INSERT INTO public.caught SELECT current_user, rolsuper FROM pg_roles WHERE rolname = current_user;
  RETURN NEW;
END $$;
GRANT INSERT ON public.caught TO PUBLIC;
"""
ON_OURS = {
    "CREATE TRIGGER spy BEFORE UPDATE ON {versions} FOR EACH ROW EXECUTE FUNCTION public.spy()": "trigger spy on",
    "CREATE RULE spy AS ON UPDATE TO {versions} DO ALSO INSERT INTO public.caught VALUES ('x', true)": "rule spy on",
    "CREATE POLICY spy ON {versions} USING (true)": "policy spy on",
    "ALTER TABLE {versions} ENABLE ROW LEVEL SECURITY": "row security is on for",
    "GRANT UPDATE ON {versions} TO PUBLIC": "role PUBLIC has UPDATE on",
    "GRANT UPDATE (version_num) ON {versions} TO {app}": "has UPDATE on",
    "GRANT SELECT ON {versions} TO {operator} WITH GRANT OPTION": "has SELECT on",
    "GRANT INSERT ON {versions} TO {operator}": "has INSERT on",
}
SHAPES = {
    "ALTER TABLE {versions} ALTER version_num SET DEFAULT 'x'": "with a default",
    "ALTER TABLE {versions} ALTER version_num TYPE text": "column version_num text",
    "ALTER TABLE {versions} ADD note text": "column note text",
    "ALTER TABLE {versions} ADD CHECK (version_num <> 'x')": "constraint alembic_version_version_num_check",
    "CREATE INDEX more ON {versions} (lower(version_num))": "index ",
    "CREATE TABLE public.child () INHERITS ({versions})": "a table that inherits, or is not kept",
    "ALTER TABLE {versions} OWNER TO CURRENT_USER": "belongs to postgres, not to ",
    "UPDATE {versions} SET version_num = 'x; y'": "holds 'x; y', which names no revision",
}


def everything(database: Database) -> list[str]:
    """What of ours stands outside the host's tables: schemas, and version tables wherever they are."""
    return database.sql(
        "SELECT nspname FROM pg_namespace WHERE nspname IN (%s, %s) "
        "UNION ALL SELECT oid::regclass::text FROM pg_class WHERE relname = %s AND relkind = 'r'",
        *(database.settings.schema, database.settings.quarantine, database.settings.version_table),
    )


def refusal(database: Database, revision: str = "head") -> str:
    with pytest.raises(CommandError) as caught:
        database.upgrade(revision)
    return str(caught.value)


def statements(message: str) -> list[str]:
    return [line.strip() for line in message.partition("\nA DBA can run:\n")[2].splitlines()]


# --- made as ours


@SERVERS
def test_it_stands_in_our_schema_and_belongs_to_our_owner(host: Database) -> None:
    host.upgrade(FIRST)
    owner = host.settings.role("owner")
    expected = [(host.settings.schema, "alembic_version", owner)]
    found = host.sql(
        "SELECT n.nspname, c.relname, pg_get_userbyid(c.relowner) FROM pg_class AS c "
        "JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.relname LIKE '%%alembic_version'"
    )
    assert expected == found
    acl = "SELECT DISTINCT grantee::regrole::text, privilege_type FROM aclexplode((SELECT relacl FROM pg_class"
    others = f"{acl} WHERE oid = '{{versions}}'::regclass)) WHERE grantee <> {{owner_name}}::regrole"
    assert host.sql(others) == [(host.settings.role("operator"), "SELECT")]


@SERVERS
@pytest.mark.parametrize("whose", ["", "FOR ROLE {owner}"])
def test_default_privileges_let_nobody_write_it(host: Database, whose: str) -> None:
    host.sql_script("CREATE ROLE version_svc LOGIN; GRANT USAGE ON SCHEMA public TO version_svc")
    try:
        host.upgrade(FIRST)  # the owner is a role of the cluster: another database made him
        host.downgrade()
        with host.connect(autocommit=True) as conn:
            purge.purge(conn, settings=host.settings)
        for kind in ("TABLES", "SCHEMAS"):
            host.sql(f"ALTER DEFAULT PRIVILEGES {whose} GRANT ALL ON {kind} TO version_svc")
        host.upgrade(FIRST)
        rights = "SELECT has_table_privilege('version_svc', '{versions}', 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')"
        assert host.sql(rights) == [False]
        assert host.sql("SELECT has_schema_privilege('version_svc', {versions_schema}, 'CREATE')") == [False]
        if whose:  # the control: what the owner makes otherwise is open to him
            host.sql("SET ROLE {owner}; CREATE TABLE {schema}.control ()")
            assert host.sql("SELECT has_table_privilege('version_svc', '{schema}.control', 'UPDATE')") == [True]
    finally:
        host.sql_script("DROP OWNED BY version_svc; DROP ROLE version_svc")


@SERVERS
def test_a_migrator_who_is_no_superuser_makes_it_too(host: Database) -> None:
    host.sql_script(
        "CREATE ROLE version_migrator LOGIN CREATEROLE;"
        f'GRANT CREATE ON DATABASE "{host.name}" TO version_migrator;'
        "ALTER TABLE {leads} OWNER TO version_migrator; ALTER TABLE {activities} OWNER TO version_migrator;"
        "GRANT CREATE, USAGE ON SCHEMA public TO version_migrator WITH GRANT OPTION"
    )
    try:
        config = host.config()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DATABASE_URL", host.server.url(host.name, "version_migrator"))
            message = ""
            try:
                command.upgrade(config, FIRST)
            except CommandError as error:  # roles of the cluster that others made: a DBA is asked
                message = str(error)
            for statement in statements(message):
                host.sql(statement)
            command.upgrade(config, FIRST)
            owner = "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = '{versions}'::regclass"
            assert host.sql(owner) == [host.settings.role("owner")]
            command.downgrade(config, "base")
        assert everything(host) == [host.settings.quarantine]
    finally:
        host.sql_script("REASSIGN OWNED BY version_migrator TO postgres; DROP OWNED BY version_migrator")
        host.sql_script("DROP ROLE version_migrator")


@pytest.mark.profiles("pg18", "other_names")
def test_a_script_makes_it_as_the_command_does(make_database: Callable[..., Database]) -> None:
    scripted = make_database("host")
    script = scripted.script("upgrade", FIRST)
    assert script.count(f"CREATE TABLE {scripted.text('{versions}')}") == 1
    psql(scripted, script)
    query = (
        "SELECT pg_get_userbyid(relowner), relacl::text, ARRAY(SELECT conname || pg_get_constraintdef(oid) "
        "FROM pg_constraint WHERE conrelid = c.oid) FROM pg_class AS c WHERE oid = '{versions}'::regclass"
    )
    by_script = scripted.sql(query)
    assert scripted.revision() == FIRST
    psql(scripted, scripted.script("downgrade", f"{FIRST}:base"))
    assert everything(scripted) == [scripted.settings.quarantine]
    scripted.upgrade(FIRST)
    assert by_script == scripted.sql(query)


def psql(database: Database, script: str) -> None:
    with database.connect(autocommit=True) as conn:
        lines = [line for line in script.splitlines() if not line.startswith("\\set")]
        conn.execute("\n".join(lines).encode())


# --- a table that somebody made before us


@SERVERS
def test_a_stranger_s_table_runs_nothing_and_its_number_is_not_believed(host: Database) -> None:
    host.sql_script("CREATE ROLE version_stranger; CREATE SCHEMA {schema} AUTHORIZATION version_stranger;" + SPY)
    try:
        host.sql_script(
            "SET ROLE version_stranger; CREATE TABLE {versions} (version_num varchar(32) PRIMARY KEY);"
            f"INSERT INTO {{versions}} VALUES ('{HEAD}');"
            "CREATE TRIGGER spy BEFORE UPDATE OR DELETE OR INSERT ON {versions} "
            "FOR EACH ROW EXECUTE FUNCTION public.spy()"
        )
        for act in (
            host.upgrade,
            host.downgrade,
            lambda: command.stamp(host.config(), "head"),
            lambda: command.current(host.config()),
        ):
            with pytest.raises(CommandError, match="alembic_version exists and belongs to version_stranger, not to "):
                act()  # type: ignore[no-untyped-call]
        assert host.sql("SELECT * FROM public.caught") == []
        # the control: whoever writes there runs his code
        host.sql("UPDATE {versions} SET version_num = version_num")
        assert host.sql("SELECT super FROM public.caught") == [True]
    finally:
        host.sql_script("DROP OWNED BY version_stranger CASCADE; DROP ROLE version_stranger")


@ONE_SERVER
def test_a_view_of_its_name_is_refused_unread(host: Database) -> None:
    host.sql_script("CREATE SCHEMA {schema}; CREATE VIEW {versions} AS SELECT 1 / 0 AS version_num")
    message = refusal(host)
    assert "leadprotect.alembic_version is a view, not the version table of Alembic" in message
    with host.connect() as conn, pytest.raises(PreflightError):
        versions.revision(conn, host.settings)
    with pytest.raises(psycopg.errors.DivisionByZero):  # the control
        host.sql("SELECT * FROM {versions}")


# --- what somebody did to ours


@SERVERS
@pytest.mark.parametrize(("done", "said"), ON_OURS.items())
def test_what_hangs_on_it_is_named_and_the_printed_statement_helps(expanded: Database, done: str, said: str) -> None:
    expanded.sql_script(SPY)
    expanded.upgrade(MIGRATE_HEAD)  # the control: nothing is in the way before
    expanded.sql(done)
    message = refusal(expanded)
    assert said in message
    for way in (["status"], ["rollback"]):
        assert said in CliRunner().invoke(main, way).output
    assert expanded.sql("SELECT * FROM public.caught") == []
    for statement in statements(message):
        expanded.sql(statement)
    expanded.upgrade(MIGRATE_HEAD)


@ONE_SERVER
@pytest.mark.parametrize(("done", "said"), SHAPES.items())
def test_another_shape_is_named(expanded: Database, done: str, said: str) -> None:
    expanded.upgrade(MIGRATE_HEAD)  # the control
    expanded.sql(done)
    assert said in refusal(expanded)


@ONE_SERVER
def test_without_the_check_a_trigger_runs_as_the_superuser(expanded: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    expanded.sql_script(SPY)
    expanded.sql(next(iter(ON_OURS)))
    monkeypatch.setattr(environment, "check_version_table", lambda *_, **__: True)
    monkeypatch.setattr(environment, "read_versions", lambda *_, **__: (MIGRATE_HEAD,))
    expanded.upgrade()
    assert expanded.sql("SELECT DISTINCT super FROM public.caught") == [True]


# --- gone with the last revision


@pytest.mark.profiles("pg18", "pg15", "other_names")
def test_after_downgrade_and_purge_nothing_is_left(host: Database) -> None:
    before = everything(host)
    host.upgrade(MIGRATE_HEAD)
    assert before != everything(host)
    host.downgrade()
    assert [host.settings.quarantine] == everything(host)
    with host.connect(autocommit=True) as conn:
        purge.purge(conn, settings=host.settings)
    assert [] == everything(host)
    host.upgrade()
    assert host.revision() == HEAD


@ONE_SERVER
@pytest.mark.parametrize("way", ["upgrade", "downgrade", "purge"])
def test_what_a_crash_left_is_tolerated_and_goes(host: Database, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host.upgrade(FIRST)
    with monkeypatch.context() as patch:
        patch.setattr(version_table, "drop_empty", lambda *_: None)
        host.downgrade()
    assert len(everything(host)) == 3
    if way == "upgrade":
        host.upgrade(FIRST)
        assert host.revision() == FIRST
        return
    if way == "downgrade":
        host.downgrade()
        assert [host.settings.quarantine] == everything(host)
        return
    with host.connect(autocommit=True) as conn:
        purge.purge(conn, settings=host.settings)
    assert [] == everything(host)


@ONE_SERVER
def test_the_table_of_a_host_s_own_alembic_is_nobody_s_to_drop(make_database: Callable[..., Database]) -> None:
    host = make_database("host", version_table_schema="public")
    host.upgrade(FIRST)
    host.downgrade()
    host.sql("CREATE TABLE {versions} (version_num varchar(32) PRIMARY KEY)")
    with host.connect(autocommit=True) as conn:
        purge.purge(conn, settings=host.settings)
    assert everything(host) == ["alembic_version"]


@ONE_SERVER
def test_a_schema_that_holds_something_else_stays(host: Database) -> None:
    host.upgrade(FIRST)
    host.sql("SET ROLE {owner}; CREATE TABLE {schema}.kept ()")
    with pytest.raises(CommandError, match=r"cannot drop schema .* table leadprotect\.kept depends on schema"):
        host.downgrade()
    assert host.revision() == FIRST
    host.sql("DROP TABLE {schema}.kept")
    host.downgrade()
    assert [host.settings.quarantine] == everything(host)


# --- a number proves nothing


@ONE_SERVER
def test_what_each_revision_makes_is_known(host: Database) -> None:
    for number, revision in enumerate(REVISIONS, 1):
        host.upgrade(revision)
        with host.connect() as conn:
            assert standing.lacking(conn, host.settings, REVISIONS[:number]) == [], revision
    host.sql("DROP TABLE {schema}.denial_secret")
    with host.connect() as conn:
        assert standing.lacking(conn, host.settings, REVISIONS) == ["leadprotect.denial_secret"]


LOST = {
    "ALTER TABLE {leads} DISABLE ROW LEVEL SECURITY": "row security of public.leads",
    "DROP POLICY {border_policy} ON {leads}": "policy leadprotect_border",
    "DROP TABLE {schema}.denial_secret": "leadprotect.denial_secret",
}


ALTERED = {
    "ALTER POLICY {border_policy} ON {leads} USING (true)": "policy leadprotect_border is not as shipped",
    "ALTER TABLE {schema}.lead_access_audit_seals DISABLE TRIGGER lp_append_only": "lp_append_only is disabled",
    "ALTER FUNCTION {schema}.acts_bound() SECURITY DEFINER": "SECURITY DEFINER",
    "ALTER TABLE {schema}.lead_access_audit_default DISABLE ROW LEVEL SECURITY": "row security is off",
}


@SERVERS
@pytest.mark.parametrize(("done", "said"), LOST.items())
def test_nothing_to_do_looks_at_the_database(
    database: Database, done: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    database.upgrade(contract="require")  # the control
    database.sql(done)
    with pytest.raises(
        CommandError, match=f"^nothing was done, because the version table says {HEAD}, .* lacks {said}"
    ):
        database.upgrade()
    with pytest.raises(CommandError, match=f"contract is required, and nothing was done, .* lacks {said}"):
        database.upgrade(contract="require")
    with caplog.at_level(logging.WARNING, "leadprotect"):
        database.upgrade(contract="hold")
        assert f"the database lacks {said}" in caplog.text


@ONE_SERVER
def test_restored_without_its_owner_it_is_given_back_and_not_put_aside(database: Database) -> None:
    database.sql("ALTER TABLE {versions} OWNER TO CURRENT_USER")
    with pytest.raises(CommandError, match="it was restored without its owner") as refused:
        database.upgrade()
    database.sql(str(refused.value).splitlines()[-1].strip())
    database.upgrade(contract="require")


@ONE_SERVER
@pytest.mark.parametrize(("done", "said"), ALTERED.items())
def test_nothing_to_do_looks_whether_what_stands_is_what_was_made(database: Database, done: str, said: str) -> None:
    database.sql(done)
    for how in ({}, {"contract": "require"}):
        with pytest.raises(CommandError, match=f"what it made was changed: .*{said}.*: leadprotect repair"):
            database.upgrade(**how)
    with database.connect(autocommit=True) as conn:
        repair(conn, plan(conn, settings=database.settings), settings=database.settings)
    database.upgrade(contract="require")


@ONE_SERVER
def test_a_stamped_head_is_no_schema(host: Database) -> None:
    command.stamp(host.config(), "head")
    with pytest.raises(CommandError, match=r"lacks leadprotect\.territories, "):
        host.upgrade(contract="require")
    command.stamp(host.config(), "base")
    assert everything(host) == []
    host.upgrade(NAMED["expand_audit"])


@ONE_SERVER
def test_host_rls_off_needs_no_policies(make_database: Callable[..., Database]) -> None:
    database = make_database("host", host_rls="off")
    database.upgrade()
    database.upgrade(contract="require")
    assert database.revision() == HEAD
