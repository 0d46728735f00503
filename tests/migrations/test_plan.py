"""leadprotect plan: what the next upgrade would do, said before it does it, and by a transaction that can't write."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from alembic.util import CommandError
from click.testing import CliRunner

from leadprotect import backfill, phases
from leadprotect.authoring.chain import read_revision
from leadprotect.authoring.locktrace import trace_locks
from leadprotect.cli import main
from leadprotect.database.catalog import one
from leadprotect.database.modes import in_sql
from leadprotect.doctor.keys import index_not_leakproof
from leadprotect.planning.plan import plan_deploy
from leadprotect.planning.sheet import sheet
from leadprotect.planning.steps import BUILDS
from leadprotect.settings import current, ident
from tests.support.browser import opened
from tests.support.children import LEAD_TABLES, TABLES
from tests.support.revisions import HEAD, MIGRATE_HEAD, SCRIPTS, STOPS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy import Engine

    from leadprotect.planning.plan import DeployPlan
    from tests.support.database import Database

CLOSED = "etl"
"""A login with privileges on the leads and no role of ours."""


def planned(database: Database, login: str | None = None) -> DeployPlan:
    with database.connect(login) as conn:
        return plan_deploy(conn, settings=database.settings)


def command(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["plan", *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout


def dumped(database: Database) -> list[str]:
    done = subprocess.run(
        [str(database.server.programs / "pg_dump"), "--dbname", database.url],
        check=True,
        capture_output=True,
        text=True,
    )
    return [line for line in done.stdout.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]


# --- how it would end


def test_on_a_fresh_host_every_revision_is_pending_and_contract_waits(host: Database) -> None:
    host.lead("DE")
    found = planned(host)
    assert (None, "none", [script.revision for script in SCRIPTS]) == (
        found.revision,
        found.phase,
        [step.revision for step in found.steps],
    )
    assert ("through", 0) == (found.outcome, found.exit_code)
    host.activity(host.lead("DE"), host.user(1))
    host.sql("ANALYZE {leads}")
    host.sql("ANALYZE {activities}")
    found = planned(host)
    assert ("stops at the gate", 3, ["owners"]) == (found.outcome, found.exit_code, [one.name for one in found.closed])
    assert MIGRATE_HEAD == found.applies[-1]


@pytest.mark.profiles("pg18")
def test_a_kind_that_makes_no_owner_is_foreseen_to_keep_the_gate_closed(make_database: Callable[..., Database]) -> None:
    found = []
    for kinds in ("QUALIFIED_CALL", "call"):
        database = make_database("host", qualifying_kinds=kinds)
        for _ in range(25):
            database.activity(database.lead("DE"), database.user(1))
        foreseen = {one.name for one in planned(database).closed}
        database.upgrade(MIGRATE_HEAD)
        asked = {one.name for one in planned(database).closed}
        found.append((foreseen, asked))
    # before the backfill nobody owns anything: what it will mend is nobody's to answer for
    assert [({"owners"}, {"owners"}), ({"unowned"}, {"unowned"})] == found


def test_where_an_upgrade_goes_through_and_where_it_stops_is_what_it_then_does(host: Database) -> None:
    host.activity(host.lead("DE"), host.user(1))
    host.sql("ANALYZE {leads}")
    host.sql("ANALYZE {activities}")
    for expected in ("stops at the gate", "stops at the gate", "through", "nothing to do"):
        found = planned(host)
        assert expected == found.outcome
        before = phases.through(host.revision())
        host.upgrade("head")
        assert (*before, *found.applies) == phases.through(host.revision())
        if expected == "stops at the gate" and before:
            backfill(host.url, ["DE", "CH"], settings=host.settings)


def test_at_the_head_there_is_nothing_to_do(database: Database) -> None:
    found = planned(database, "operator")
    assert ("nothing to do", 0, (), (), ()) == (
        found.outcome,
        found.exit_code,
        found.steps,
        found.losses,
        found.refusals,
    )
    assert (0, True) == (
        (done := command())[0],
        done[1].startswith(f"nothing to do: the database is at the head {HEAD}"),
    )


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize(
    ("done", "said"),
    [
        ("ALTER TABLE {leads} DISABLE ROW LEVEL SECURITY", "row security of "),
        ("ALTER POLICY {border_policy} ON {leads} USING (true)", "policy leadprotect_border is not as shipped"),
    ],
)
def test_at_the_head_it_names_what_is_gone_or_changed_as_an_upgrade_does(
    database: Database, done: str, said: str
) -> None:
    database.sql(done)
    found = planned(database)
    assert ("refused", 1, True) == (found.outcome, found.exit_code, said in found.lacking[0])
    with pytest.raises(CommandError, match=said):
        database.upgrade()


def test_what_preflight_would_refuse_is_refused_with_what_a_dba_can_run(make_database: Callable[..., Database]) -> None:
    database = make_database("host", leads_table="crm.nowhere", exempt_roles="nobody_here")
    found = planned(database)
    assert ("refused", 1, ()) == (found.outcome, found.exit_code, found.applies)
    with pytest.raises(CommandError) as refused:
        database.upgrade("head")
    said = str(refused.value)
    assert [] == [problem for problem in found.refusals if problem not in said]
    assert {"leads_table", "exempt_roles"} <= {problem.partition(":")[0] for problem in found.refusals}
    assert 1 == command()[0]


@pytest.mark.profiles("pg18")
def test_a_revision_that_this_version_does_not_know_is_refused(database: Database) -> None:
    versions = f"{ident(database.settings.version_table_schema)}.{ident(database.settings.version_table)}"
    database.sql(f"UPDATE {versions} SET version_num = 'lp_9999_expand_later'")
    assert ("refused", "unknown") == ((found := planned(database)).outcome, found.phase)


def test_usage_is_an_error_of_its_own() -> None:
    assert 2 == CliRunner().invoke(main, ["plan", "--jsn"]).exit_code


# --- it reads only


@pytest.mark.parametrize("phase", ["host", "expanded", "head"])
def test_a_plan_writes_nothing(make_database: Callable[..., Database], phase: str, tmp_path: Path) -> None:
    database = make_database(phase)
    database.activity(database.lead("DE"), database.user(1))
    before = dumped(database)
    code, _ = command("--html", str(tmp_path / "plan.html"))
    assert code in (0, 3)
    assert before == dumped(database)


def test_a_login_whose_sessions_may_not_write_gets_the_same_plan(host: Database) -> None:
    free = planned(host)
    with host.connect() as conn:
        conn.execute("SET default_transaction_read_only = on")
        conn.commit()
        asked = plan_deploy(conn, settings=host.settings)
    assert (free.outcome, free.applies, free.losses) == (asked.outcome, asked.applies, asked.losses)
    assert ["read_only" in line for line in asked.unseen if line not in free.unseen] == [True]
    host.sql(f'ALTER DATABASE "{host.name}" SET default_transaction_read_only = on')
    kept = planned(host)
    assert ("refused", True) == (kept.outcome, "read-only" in kept.refusals[0])
    assert free.losses == kept.losses


# --- the locks


@pytest.mark.profiles("pg18")
def test_the_locks_that_an_upgrade_takes_are_those_that_were_predicted(make_database: Callable[..., Database]) -> None:
    database = make_database("host", lead_tables=LEAD_TABLES)
    database.sql_script(TABLES)
    found = planned(database)
    assert (HEAD, ()) == (found.applies[-1], found.refusals)
    names = [*database.settings.host_tables, *(child.table for child in database.settings.lead_tables)]
    places = {name: ident(*name.split(".", 1)) for name in names}
    for step in found.steps:
        said = {lock.table: lock.mode for lock in step.locks}
        assert said == {
            table: mode for table, mode in taken(database, step.revision, places).items() if mode != "ACCESS SHARE"
        }
        if step.revision in STOPS:
            left = planned(database)
            assert phases.pending(step.revision) == tuple(later.revision for later in left.steps)
            assert ((), ()) == (left.refusals, left.lacking)
    assert "ACCESS EXCLUSIVE" == {lock.table: lock.mode for lock in found.steps[-1].locks}["crm.lead contacts"]


def taken(database: Database, revision: str, places: dict[str, str]) -> dict[str, str]:
    """The strongest lock on each table that is seen while the revision is applied."""

    def migrate(engine: Engine) -> None:
        config = database.config()
        config.attributes["connection"] = engine
        from alembic import command as alembic  # noqa: PLC0415 - beside the function of this name

        alembic.upgrade(config, revision)

    concurrently = "autocommit_block" in phases.file(revision).read_text("utf-8")
    watched = {name: places[name] for name in places if not concurrently or name in database.settings.host_tables}
    seen = trace_locks(database.url, watched, migrate, concurrently=concurrently)
    # foreign keys to the leads read them
    return {name: in_sql(mode) for name, mode in seen.items()}


def test_the_revision_whose_time_grows_with_the_data_is_the_one_that_builds_indexes() -> None:
    builds = [script.revision for script in SCRIPTS if "upgrade" in uses_index(script.revision)]
    assert [BUILDS] == builds


def uses_index(revision: str) -> str:
    """Which way of a revision builds an index on a table of the host."""
    read = read_revision(phases.file(revision))
    if "CREATE INDEX CONCURRENTLY" not in read.source:
        return ""
    upgrade = read.source.partition("def upgrade()")[2].partition("def downgrade()")[0]
    return "upgrade" if "leads_index()" in upgrade else "downgrade"


@pytest.mark.profiles("pg18")
def test_an_index_that_is_to_be_built_is_measured_on_a_sample(host: Database) -> None:
    for _ in range(30):
        host.activity(host.lead("DE"), host.user(1))
    host.sql("ANALYZE {leads}")
    host.sql("ANALYZE {activities}")
    (build,) = [step for step in planned(host).steps if step.revision == BUILDS]
    others = [step for step in planned(host).steps if step.revision != BUILDS]
    assert (build.seconds or 0) > max(step.seconds or 0 for step in others)
    assert build.disk_bytes > max(step.disk_bytes for step in others)
    assert "30 of them was measured" in build.how
    host.upgrade(BUILDS)
    assert [] == [step for step in planned(host).steps if step.seconds != others[0].seconds]


# --- who would lose what


def planted(database: Database) -> str:
    """A host that contract would take something from, of each kind; returns the login that has no role of ours."""
    login = database.profile.login(CLOSED)
    if not database.sql("SELECT FROM pg_roles WHERE rolname = %s", login):
        database.sql(f'CREATE ROLE "{login}" LOGIN')
    leads = database.settings.leads_table.split(".", 1)
    database.sql_script(f"""
        GRANT USAGE ON SCHEMA crm, public TO "{login}";
        GRANT SELECT, INSERT ON {{leads}} TO "{login}";
        CREATE INDEX by_company ON {{leads}} (lower(company));
        CREATE VIEW public.lead_report AS SELECT count(*) AS leads FROM {{leads}};
        GRANT SELECT ON public.lead_report TO "{login}";
        CREATE TABLE public.orders (id bigint, lead {{lead_id_type}});
        GRANT INSERT ON public.orders TO "{login}";
        CREATE FUNCTION public.won() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN UPDATE {{leads}} SET city = 'won' WHERE {{lead_id}} = NEW.lead; RETURN NEW; END $$;
        CREATE TRIGGER won AFTER INSERT ON public.orders FOR EACH ROW EXECUTE FUNCTION public.won();
        CREATE FUNCTION public.next_lead() RETURNS {{lead_id_type}} LANGUAGE sql AS
        $$ SELECT {{lead_id}} FROM {ident(*leads)} LIMIT 1 FOR UPDATE SKIP LOCKED $$
        """)
    return login


@pytest.mark.parametrize("phase", ["host", "expanded"])
def test_each_planted_loss_is_found_with_the_login_and_what_helps(
    make_database: Callable[..., Database], phase: str
) -> None:
    database = make_database(phase)
    before = {(loss.kind, loss.login) for loss in planned(database).losses}
    login = planted(database)
    found = planned(database)
    of_login = ("reads", "edits", "copy", "views", "host code")
    wanted: set[tuple[str, str | None]] = {(kind, login) for kind in of_login}
    wanted |= {("indexes", None), ("queues", None)}
    assert (set(), wanted) == (wanted & before, wanted & {(loss.kind, loss.login) for loss in found.losses})
    assert [] == [loss for loss in found.losses if (loss.kind, loss.login) in wanted and not loss.remedy]
    assert ("stops at the gate", {"logins", "views", "host_code"}) == (
        found.outcome,
        {one.name for one in found.closed},
    )


@pytest.mark.parametrize("phase", ["host", "expanded"])
def test_what_helps_can_be_pasted_and_helps(make_database: Callable[..., Database], phase: str) -> None:
    database = make_database(phase)
    login = planted(database)
    remedies = {loss.remedy for loss in planned(database).losses if loss.login in (login, None) and loss.kind != "copy"}
    database.upgrade(MIGRATE_HEAD)  # which makes the roles that are granted
    try:
        for remedy in sorted(filter(None, remedies)):
            if not remedy.startswith("SELECT"):
                for statement in remedy.split("; "):
                    database.sql(statement.replace("%", "%%").removesuffix(";"))
        found = planned(database)
    finally:  # a role is the cluster's, and other databases have the same login
        ours = ", ".join(ident(database.settings.role(name)) for name in ("app", "DE", "CH"))
        database.sql(f"REVOKE {ours} FROM {ident(login)}")
    assert ("through", ()) == (found.outcome, found.closed)
    left = {(loss.kind, loss.login) for loss in found.losses if loss.remedy}
    # an index that serves no more stays where it is, beside the one that does
    assert {("copy", login), ("indexes", None), ("queues", None)} == {one for one in left if one[1] in (login, None)}


def test_a_login_whose_transactions_are_serializable_is_told_that_more_of_them_fail(host: Database) -> None:
    login = planted(host)
    assert [] == [loss for loss in planned(host).losses if loss.kind == "isolation"]
    host.sql(f"ALTER DATABASE {ident(host.name)} SET default_transaction_isolation = 'serializable'")
    (found,) = [loss for loss in planned(host).losses if (loss.kind, loss.login) == ("isolation", login)]
    host.sql(str(found.remedy))
    assert [] == [loss for loss in planned(host).losses if (loss.kind, loss.login) == ("isolation", login)]


def test_indexes_that_serve_no_search_are_those_of_the_gate_before_it_stands(host: Database) -> None:
    host.sql("ALTER TABLE {leads} ADD tags text[], ADD words tsvector")
    indexes = ("USING gin (words)", "USING gin (tags)", "(city text_pattern_ops)", "(city, lower(company))", "(city)")
    for index in indexes:
        host.sql(f"CREATE INDEX ON {{leads}} {index}")
    foreseen = {(loss.what, loss.remedy) for loss in planned(host).losses if loss.kind == "indexes"}
    host.upgrade(MIGRATE_HEAD)
    assert foreseen == {(loss.what, loss.remedy) for loss in planned(host).losses if loss.kind == "indexes"}
    found = host.sql("SELECT index, remedy FROM {schema}.lost_searches({leads_name}::regclass) ORDER BY 1")
    assert (4, {remedy for _, remedy in found}) == (len(foreseen), {remedy for _, remedy in foreseen})
    with host.connect() as conn:
        named = {fault.what.split()[1].rpartition(".")[2] for fault in index_not_leakproof.ask(conn, host.settings)}
    assert {index.rpartition(".")[2] for index, _ in found} == named


def test_what_helps_a_copy_goes_into_a_table_that_generates_columns(host: Database) -> None:
    login = planted(host)
    host.sql("ALTER TABLE {leads} ADD place text GENERATED ALWAYS AS (lower(city)) STORED")
    host.sql("ALTER TABLE {leads} ADD number integer GENERATED ALWAYS AS IDENTITY")
    (remedy,) = {one.remedy for one in planned(host).losses if (one.kind, one.login) == ("copy", login)}
    table, copy, insert = str(remedy).split("; ")
    with host.connect() as conn:
        conn.execute(table.encode())
        names = f"{ident(host.settings.lead_id_column)}, city, number"
        with conn.cursor().copy(copy.replace("leads_in", f"leads_in ({names})").encode()) as rows:
            rows.write_row((host.new_id(), "Bern", 7))
        assert 1 == conn.execute(insert.encode()).rowcount
        assert [("bern", 7)] == conn.execute(host.text("SELECT place, number FROM {leads}").encode()).fetchall()


def test_before_and_after_the_migrate_step_the_same_is_said_of_logins(make_database: Callable[..., Database]) -> None:
    database = make_database("host")
    planted(database)
    before = planned(database)
    database.upgrade(MIGRATE_HEAD)
    after = planned(database)
    assert (False, True) == (before.gate_asked, after.gate_asked)
    assert said(before.losses) == said(after.losses)
    assert {one.name for one in before.closed} == {one.name for one in after.closed}


def test_of_lead_tables_the_same_views_and_code_are_named_before_and_after_the_migrate_step(
    make_database: Callable[..., Database],
) -> None:
    """Each by the name of the condition that the gate then closes for."""
    database = make_database("host", lead_tables="public.notes (lead)")
    login = planted(database)
    database.sql_script(f"""
        CREATE TABLE public.notes (lead {{lead_id_type}}, said text);
        CREATE INDEX ON public.notes (lead);
        CREATE VIEW public.note_report AS SELECT count(*) AS notes FROM public.notes;
        GRANT SELECT ON public.note_report TO "{login}";
        CREATE FUNCTION public.noted() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN UPDATE public.notes SET said = 'won' WHERE lead = NEW.lead; RETURN NEW; END $$;
        CREATE TRIGGER noted AFTER INSERT ON public.orders FOR EACH ROW EXECUTE FUNCTION public.noted();
        """)
    before = planned(database)
    database.upgrade(MIGRATE_HEAD)
    after = planned(database)
    of_tables = {("views", login, "lead_tables_ways"), ("host code", login, "lead_tables_code")}
    assert of_tables <= said(before.losses) == said(after.losses)
    assert {"views", "host_code", "lead_tables_ways", "lead_tables_code"} <= {one.name for one in before.closed}
    assert {one.name for one in before.closed} == {one.name for one in after.closed}


def said(losses: Any) -> set[tuple[str, str | None, str | None]]:
    return {(loss.kind, loss.login, loss.condition) for loss in losses}


@pytest.mark.profiles("pg18")
def test_with_row_security_left_alone_nobody_loses_anything(make_database: Callable[..., Database]) -> None:
    database = make_database("host", host_rls="off")
    planted(database)
    assert ((), "through") == ((found := planned(database)).losses, found.outcome)


def test_a_login_that_sees_only_its_own_sessions_is_told_what_it_does_not_see(expanded: Database) -> None:
    with expanded.connect():
        found = planned(expanded, "operator")
        assert ("through", True) == (found.outcome, found.gate_asked)
        assert {"pg_read_all_stats", "owner"} <= {
            word for line in found.unseen for word in ("pg_read_all_stats", "owner") if word in line
        }
        outside = planned(expanded, "outsider")
    assert ("stops at the gate", ["gate"]) == (outside.outcome, [one.name for one in outside.closed])
    assert f"GRANT {ident(expanded.settings.role('operator'))} TO" in (outside.closed[0].remedy or "")


def test_a_login_that_may_not_enter_the_schema_of_the_leads_is_told_what_it_needs(host: Database) -> None:
    """The first look of whoever is to migrate, before a DBA granted anything."""
    login = f"outside-{host.name}"
    host.sql(f'CREATE ROLE "{login}" LOGIN')
    try:
        host.sql("REVOKE USAGE ON SCHEMA public, crm FROM PUBLIC")
        with psycopg.connect(host.server.url(host.name, login)) as conn:
            found = plan_deploy(conn, settings=host.settings)
    finally:
        host.sql(f'DROP ROLE "{login}"')
    assert "refused" == found.outcome
    schema = ident(host.settings.leads_table.split(".")[0])
    assert f"GRANT USAGE ON SCHEMA {schema} TO {ident(login)} WITH GRANT OPTION;" in found.statements


# --- who is in the way


def test_a_session_that_holds_a_table_is_named_with_what_ends_it(host: Database) -> None:
    assert () == planned(host).obstacles
    with host.connect() as holder:
        holder.execute("SET application_name = 'nightly import'")
        host.query(holder, "LOCK TABLE {leads} IN ROW EXCLUSIVE MODE")
        (found,) = planned(host).obstacles
        pid = holder.info.backend_pid
    assert ("lock", pid, "nightly import") == (found.kind, found.pid, found.application)
    assert f"ROW EXCLUSIVE on {host.settings.leads_table}" in found.what
    assert f"SELECT pg_terminate_backend({pid});" == found.remedy
    assert (found.age or 0) > 0


@pytest.mark.profiles("pg18")
def test_a_table_that_somebody_holds_whole_keeps_no_plan_from_being_made(
    make_database: Callable[..., Database],
) -> None:
    for phase in ("host", "expanded"):
        database = make_database(phase)
        database.lead("DE")
        with database.connect() as holder, database.connect() as conn:
            database.query(holder, "LOCK TABLE {leads} IN ACCESS EXCLUSIVE MODE")
            conn.execute("SET lock_timeout = '100ms'")
            conn.commit()
            found = plan_deploy(conn, settings=database.settings)
            pid = holder.info.backend_pid
        assert [("lock", pid)] == [(one.kind, one.pid) for one in found.obstacles]
        assert [True] == list({"lock timeout" in line or "a lock" in line for line in found.unseen if "lock" in line})


@pytest.mark.profiles("pg18")
def test_a_job_of_pg_cron_that_sets_no_context_is_named(host: Database) -> None:
    login = planted(host)
    leads = host.settings.leads_table
    host.sql_script("CREATE SCHEMA cron; CREATE TABLE cron.job "
                    "(jobid bigint, username text, command text, active boolean, database text)")  # fmt: skip
    for number, command in enumerate([f"UPDATE {leads} SET city = 'x'", "SELECT 1",
                                      f"SELECT set_context('a', 'DE'); SELECT FROM {leads}"], start=1):  # fmt: skip
        host.sql("INSERT INTO cron.job VALUES (%s, %s, %s, true, %s)", number, login, command, host.name)
    (found,) = [loss for loss in planned(host).losses if loss.kind == "jobs"]
    assert (login, f"exempt_roles = {login}") == (found.login, found.remedy)
    assert "job 1 of pg_cron" in found.what
    assert "'x'" not in found.what


@pytest.mark.profiles("pg18")
def test_a_reader_is_in_the_way_of_contract_alone(make_database: Callable[..., Database]) -> None:
    for phase, expected in (("host", []), ("expanded", ["lock"])):
        database = make_database(phase)
        with database.connect() as reader:
            database.query(reader, "SELECT count(*) FROM {leads}")
            # at the base nothing would be enforced: its gate is closed
            kinds = [one.kind for one in planned(with_window(database) if phase == "host" else database).obstacles]
        assert expected == kinds


def with_window(database: Database) -> Database:
    database.overrides["observation_window"] = "7 days"
    return database


@pytest.mark.profiles("pg18")
def test_another_migration_is_named(host: Database) -> None:
    from leadprotect.migration.locks import lock_name  # noqa: PLC0415

    with host.connect() as holder:
        holder.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", (lock_name(host.settings),))
        assert [("migration", holder.info.backend_pid)] == [(one.kind, one.pid) for one in planned(host).obstacles]


@pytest.mark.profiles("pg18")
def test_a_slot_that_nobody_reads_is_named(host: Database) -> None:
    name = f"plan_{host.name}"
    with host.connect(autocommit=True) as conn:
        level = one(conn, "SELECT setting FROM pg_settings WHERE name = 'wal_level'")
    assert level in ("replica", "logical")
    host.sql("SELECT pg_create_physical_replication_slot(%s, true)", name)
    try:
        found = planned(host).obstacles
        assert [f"SELECT pg_drop_replication_slot('{name}');  -- or let its reader come back"] == [
            one.remedy for one in found if name in one.what
        ]
    finally:
        host.sql("SELECT pg_drop_replication_slot(%s)", name)


# --- as text, JSON and page


@pytest.mark.profiles("pg18")
def test_the_text_leads_from_the_verdict_to_what_can_be_pasted(
    expanded: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = planted(expanded)
    for width in (60, 80, 140):
        monkeypatch.setenv("COLUMNS", str(width))
        code, text = command()
        lines = text.splitlines()
        assert (3, True) == (code, lines[0].startswith("stops at the gate: no revision would be applied"))
        mends = ["ALTER VIEW public.lead_report SET (security_invoker = true);"]
        assert mends * 2 == [
            line.strip().removesuffix(" or name the readers in exempt_roles") for line in lines if "ALTER VIEW" in line
        ]
        assert f"  {login}" in lines
        prose = [
            line
            for line in lines
            if not line.strip().startswith(("ALTER", "GRANT", "CREATE", "INSERT", "SELECT", "/*", "let it", "see"))
        ]
        assert [] == [line for line in prose if len(line) > min(width, 120)]


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("columns", ["60", "80"])
def test_what_a_refusal_says_to_run_stands_whole_on_a_line_of_its_own(
    make_database: Callable[..., Database], columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = make_database("host", lead_tables="public.remarks (lead)")
    host.sql("CREATE TABLE public.remarks (lead {lead_id_type} REFERENCES {leads})")
    monkeypatch.setenv("COLUMNS", columns)
    code, text = command()
    index = 'CREATE INDEX CONCURRENTLY ON "public"."remarks" ("lead");'
    assert (1, True) == (code, index in map(str.strip, text.splitlines())), text


@pytest.mark.profiles("pg18")
def test_json_is_the_whole_plan(expanded: Database) -> None:
    planted(expanded)
    code, text = command("--json")
    told, found = json.loads(text), planned(expanded)
    assert (code, told["exit_code"], told["outcome"]) == (3, 3, found.outcome)
    assert [step.revision for step in found.steps] == [step["revision"] for step in told["steps"]]
    assert [loss.remedy for loss in found.losses] == [loss["remedy"] for loss in told["losses"]]


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_shows_the_plan_whole(expanded: Database, width: int) -> None:
    login = planted(expanded)
    found = planned(expanded)
    page = opened(sheet(found), width=width)
    assert (f"Plan: {found.verdict}", 0, []) == (
        page.measured["title"],
        page.measured["wider"],
        page.measured["outside"],
    )
    for text in (
        login,
        "STOPS AT THE GATE",
        "ALTER VIEW public.lead_report SET (security_invoker = true);",
        "GRANT",
    ):
        assert text in page.measured["text"]
    assert [] == [step.revision for step in found.steps if step.revision not in page.measured["text"]]


@pytest.mark.profiles("pg18")
def test_a_page_that_can_t_be_written_is_one_clear_error(host: Database) -> None:
    del host
    current.cache_clear()
    done = CliRunner().invoke(main, ["plan", "--html", "/nowhere/plan.html"])
    assert (1, True) == (done.exit_code, "--html: /nowhere/plan.html can't be written to" in done.output)
