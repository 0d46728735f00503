"""The hub: audit and owners of two databases in a third, as an auditor asks for them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from click.testing import CliRunner

from leadprotect import settings
from leadprotect.cli import main
from leadprotect.errors import ConnectionUnusable, InvalidRequest, PreflightError, SettingsError
from leadprotect.fleet import hub
from leadprotect.fleet.hub import create_hub, drop_hub, hub_schema, open_hub, spokes
from leadprotect.fleet.hub_check import verify_hub
from leadprotect.settings import ident, literal
from leadprotect.settings.databases import TerritoryDatabase
from leadprotect.settings.files import CONFIG, write_ini
from tests.conftest import make_template, use
from tests.support import passwords, servers
from tests.support.auditing import record, seal
from tests.support.database import Database
from tests.support.hub import AUDIT, Hubs
from tests.support.profiles import NIGHTLY
from tests.support.topology import pooler

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.profiles import Profile

EVERYTHING = """
    SELECT 'schema', nspname::text FROM pg_namespace WHERE nspname !~ '^pg_(temp|toast_temp)'
    UNION ALL SELECT 'relation', relname::text FROM pg_class
    WHERE relkind <> 't' AND relnamespace::regnamespace::text !~ '^pg_'
    UNION ALL SELECT 'type', typname::text FROM pg_type WHERE typnamespace::regnamespace::text !~ '^pg_'
    UNION ALL SELECT 'extension', extname::text FROM pg_extension
    UNION ALL SELECT 'server', srvname::text FROM pg_foreign_server
    UNION ALL SELECT 'mapping', srvname::text FROM pg_user_mappings
    ORDER BY 1, 2
    """


@pytest.fixture
def hubs(make_database: Callable[..., Database]) -> Hubs:
    """Two territories, each at head in a database of its own, and a database without a hub."""
    return Hubs(make_database("head"), make_database("head"), make_database("empty"))


@pytest.fixture
def made(hubs: Hubs) -> Hubs:
    """The same with rows and a hub."""
    hubs.fill()
    return hubs


def drop(hubs: Hubs) -> tuple[str, ...]:
    with open_hub(hubs.hub.url) as conn:
        return drop_hub(conn, hubs.settings()).kept


def test_an_auditor_asks_both_territories_at_once(made: Hubs) -> None:
    assert [("CH", 2), ("DE", 3)] == made.ask("auditor_both", AUDIT)
    owners = "SELECT territory, user_id::text FROM {hub}.user_lead_assignments ORDER BY 1"
    assert [("CH", made.ch.user(1)), ("DE", made.de.user(1))] == made.ask("auditor_both", owners)
    edits = (
        "SELECT count(*) FROM {hub}.lead_access_audit WHERE action = 'EDIT' AND outcome = 'ALLOW' AND reason = 'owner'"
    )
    assert [(5,)] == made.ask("auditor_both", edits)
    assert [(3,)] == made.ask("auditor_de", f"{edits} AND territory = 'DE'")


def test_what_has_no_territory_comes_once_for_each_database(made: Hubs) -> None:
    """A server shows it to an auditor in whatever context he asks; it is no row of DE, and none of CH."""
    record(made.de, None)
    record(made.de, None)
    record(made.ch, None)
    assert [("CH", 2), ("DE", 3)] == made.ask("auditor_both", AUDIT)
    where = "SELECT database, count(*) FROM {hub}.lead_access_audit_without_territory GROUP BY 1 ORDER BY 1"
    assert [("CH", 1), ("DE", 2)] == made.ask("auditor_both", where)
    assert "same" == made.verify().verdict
    # the control: without the policy of the table they come with each territory
    made.run("ALTER TABLE {hub}.lead_access_audit DISABLE ROW LEVEL SECURITY")
    assert None in {code for code, _ in made.ask("auditor_both", AUDIT)}


def test_it_is_verified_against_each_server_s_own_numbers_and_newest_seals(made: Hubs) -> None:
    found = made.verify()
    assert "same" == found.verdict
    newest = made.ch.sql(
        "SELECT number || ' ' || encode(hash, 'hex') FROM {schema}.lead_access_audit_seals "
        "WHERE territory = 'CH' ORDER BY number DESC LIMIT 1"
    )
    said = {(one.territory, one.what): one.hub for one in found.numbers}
    assert {("CH", "newest seal"): newest[0], ("CH", "attempts"): "2", ("CH", "owners"): "1"} == {
        key: value for key, value in said.items() if key[0] == "CH"
    }
    record(made.ch, "CH")
    seal(made.ch)
    assert "same" == made.verify().verdict


@pytest.mark.profiles("pg18")
def test_what_each_side_adds_is_seen_at_once_and_its_newest_seal_is_the_server_s(made: Hubs) -> None:
    def said() -> dict[tuple[str | None, str], str | None]:
        found = made.verify()
        assert "same" == found.verdict
        return {(one.territory, one.what): one.hub for one in found.numbers if one.territory}

    before = said()
    for database, code in ((made.de, "DE"), (made.ch, "CH")):
        record(database, code)
        grown = said()
        assert int(before[code, "attempts"] or 0) + 1 == int(grown[code, "attempts"] or 0)
        assert before[code, "newest seal"] == grown[code, "newest seal"]
        seal(database)
        sealed = said()
        assert {(code, "newest seal")} == {key for key, value in sealed.items() if grown[key] != value}
        before = sealed


@pytest.mark.profiles("pg18")
def test_an_auditor_who_is_another_login_there_sees_what_that_one_sees(made: Hubs) -> None:
    record(made.de, None)
    view = "SELECT database, count(*) FROM {hub}.lead_access_audit_without_territory GROUP BY 1"
    made.map("auditor_both", "DE", there=made.login("auditor_de"))
    assert [("CH", 2), ("DE", 3)] == made.ask("auditor_both", AUDIT)
    assert [("DE", 1)] == made.ask("auditor_both", view)
    assert "same" == made.verify().verdict
    made.map("auditor_both", "DE", there=made.login("seller_de"))
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied"):
        made.ask("auditor_both", view)
    found = made.verify()
    assert "not judged" == found.verdict
    assert {"DE"} == {one.territory for one in found.numbers if one.territory and one.verdict == "not judged"}


@pytest.mark.profiles("pg18")
def test_a_mapping_to_somebody_who_sees_less_is_said_not_taken_for_an_empty_audit(made: Hubs) -> None:
    made.map("auditor_both", "CH", there=made.login("auditor_de"))
    assert [("DE", 3)] == made.ask("auditor_both", AUDIT)
    found = made.verify()
    assert "differs" == found.verdict
    wrong = [(one.territory, one.what, one.hub, one.server) for one in found.numbers if one.verdict == "differs"]
    assert ("CH", "attempts", "0", "2") in wrong
    assert {"CH"} == {code for code, *_ in wrong}


@pytest.mark.profiles("pg18")
def test_who_has_no_user_mapping_is_told_where_it_comes_from(made: Hubs) -> None:
    with open_hub(made.hub.url) as conn:
        found = verify_hub(conn, made.settings())
    assert "not judged" == found.verdict
    assert all("hub create --auditor LOGIN prints the statement" in one.detail for one in found.numbers)


@pytest.mark.profiles("pg18")
def test_a_territory_is_not_judged_by_a_login_that_does_not_hold_it(made: Hubs) -> None:
    found = made.verify(login="auditor_de")
    assert "not judged" == found.verdict
    assert {"CH"} == {one.territory for one in found.numbers if one.verdict == "not judged"}


@pytest.mark.profiles("pg18")
def test_a_server_that_is_down_is_named_and_the_other_is_judged(made: Hubs) -> None:
    s = made.settings()
    dead = TerritoryDatabase(f"{s.databases[1].url}&connect_timeout=1&port=1", ("CH",))
    with open_hub(made.hub.url) as conn:
        create_hub(conn, replace(s, databases=(s.databases[0], dead)))
    with open_hub(made.hub.login_url("auditor_both")) as conn:
        found = verify_hub(conn, replace(s, databases=(s.databases[0], dead)))
    assert "not judged" == found.verdict
    assert {"DE attempts": "same", "DE owners": "same", "DE newest seal": "same", "CH server": "not judged"} == {
        f"{one.database} {one.what}": one.verdict for one in found.numbers if one.territory or one.database == "CH"
    }


def test_made_again_it_stays_and_what_is_missing_is_put_back(made: Hubs) -> None:
    assert not made.create().changed
    more = made.create(auditor=["CH"])
    assert more.changed
    assert all(statement.startswith("GRANT") for statement in more.statements)
    made.run("DROP FOREIGN TABLE {hub}.user_lead_assignments_ch")
    made.run(f"ALTER SERVER {made.server('DE')} OPTIONS (DROP options)")
    with pytest.raises(PreflightError, match="user_lead_assignments_ch"):
        made.verify()
    assert made.create().changed
    assert "same" == made.verify().verdict
    assert not made.create().changed


@pytest.mark.profiles("pg18")
def test_a_territory_that_comes_or_goes_changes_the_hub_and_keeps_its_mappings(made: Hubs) -> None:
    s = made.settings()
    one = replace(s, databases=s.databases[:1])
    with open_hub(made.hub.url) as conn:
        assert create_hub(conn, one).changed
    assert [("DE", 3)] == made.ask("auditor_both", AUDIT)
    assert made.create(auditor_both=[]).changed
    made.map("auditor_both", "CH")
    assert [("CH", 2), ("DE", 3)] == made.ask("auditor_both", AUDIT)


def test_dropped_it_leaves_nothing_behind(made: Hubs, make_database: Callable[..., Database]) -> None:
    untouched = make_database("empty")
    assert untouched.sql(EVERYTHING) != made.hub.sql(EVERYTHING)
    assert () == drop(made)
    assert untouched.sql(EVERYTHING) == made.hub.sql(EVERYTHING)
    assert () == drop(made)


def killed_at(monkeypatch: pytest.MonkeyPatch, hubs: Hubs, at: int) -> None:
    """Let the session be ended before its statement of this number."""
    real, left = hub._run, [at]  # noqa: SLF001 - where a statement of it is sent

    def run(conn: psycopg.Connection[Any], statement: str) -> None:
        left[0] -= 1
        if not left[0]:
            hubs.hub.sql("SELECT pg_terminate_backend(%s, 5000)", conn.info.backend_pid)
        real(conn, statement)

    monkeypatch.setattr(hub, "_run", run)


@pytest.mark.profiles("pg18")
def test_killed_anywhere_it_is_made_and_dropped_whole_or_not_at_all(
    hubs: Hubs, monkeypatch: pytest.MonkeyPatch
) -> None:
    untouched = hubs.hub.sql(EVERYTHING)
    with open_hub(hubs.hub.url) as conn:
        statements = len(create_hub(conn, hubs.settings(), dry_run=True).statements)
    for at in range(1, statements + 1, 1 if NIGHTLY else 4):
        with monkeypatch.context() as patch, open_hub(hubs.hub.url) as conn:
            killed_at(patch, hubs, at)
            with pytest.raises(psycopg.OperationalError):
                create_hub(conn, hubs.settings())
        assert untouched == hubs.hub.sql(EVERYTHING)
    assert statements == len(hubs.create().statements)
    made = hubs.hub.sql(EVERYTHING)
    assert untouched != made
    with open_hub(hubs.hub.url) as conn:
        undone = len(drop_hub(conn, hubs.settings(), dry_run=True).statements)
    for at in range(1, undone + 1, 1 if NIGHTLY else 4):
        with monkeypatch.context() as patch, open_hub(hubs.hub.url) as conn:
            killed_at(patch, hubs, at)
            with pytest.raises(psycopg.OperationalError):
                drop_hub(conn, hubs.settings())
        assert made == hubs.hub.sql(EVERYTHING)
    assert () == drop(hubs)
    assert untouched == hubs.hub.sql(EVERYTHING)


@pytest.mark.profiles("pg18")
def test_a_server_without_postgres_fdw_is_told_what_to_install(hubs: Hubs) -> None:
    hubs.run(f"ALTER DATABASE {ident(hubs.hub.name)} SET extension_control_path = '/nowhere'")
    before = hubs.hub.sql(EVERYTHING)
    with pytest.raises(PreflightError, match=r"has no postgres_fdw: install .* \(postgresql-contrib\)"):
        hubs.create()
    assert before == hubs.hub.sql(EVERYTHING)
    hubs.run(f"ALTER DATABASE {ident(hubs.hub.name)} RESET extension_control_path")
    assert hubs.create().changed


@pytest.mark.profiles("pg18")
def test_an_extension_that_somebody_else_uses_stays(made: Hubs) -> None:
    made.run("CREATE SERVER elsewhere FOREIGN DATA WRAPPER postgres_fdw")
    (kept,) = drop(made)
    assert "elsewhere" in kept
    assert ["public"] == made.hub.sql(
        "SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'postgres_fdw'"
    )


@pytest.mark.profiles("pg18")
def test_an_extension_that_was_there_stays_where_it_was(hubs: Hubs) -> None:
    hubs.run("CREATE EXTENSION postgres_fdw SCHEMA public")
    hubs.create()
    assert () == drop(hubs)
    assert ["public"] == hubs.hub.sql(
        "SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'postgres_fdw'"
    )


@pytest.mark.parametrize(
    "theirs",
    [
        "CREATE SCHEMA {hub}",
        "CREATE EXTENSION postgres_fdw; CREATE SERVER {server} FOREIGN DATA WRAPPER postgres_fdw",
    ],
    ids=["schema", "server"],
)
@pytest.mark.profiles("pg18")
def test_a_stranger_s_object_of_the_same_name_is_refused_and_left_alone(hubs: Hubs, theirs: str) -> None:
    hubs.run(theirs.replace("{server}", hubs.server("DE")))
    before = hubs.hub.sql(EVERYTHING)
    with pytest.raises(PreflightError, match="is not of this hub"):
        hubs.create()
    assert before == hubs.hub.sql(EVERYTHING)


@pytest.mark.profiles("pg18")
def test_what_somebody_put_into_the_hub_or_built_on_it_is_not_taken_with_it(made: Hubs) -> None:
    made.run("CREATE SCHEMA reports; CREATE VIEW reports.mine AS SELECT lead_id FROM {hub}.user_lead_assignments")
    with pytest.raises(PreflightError, match=r"reports\.mine"):
        drop(made)
    made.run("DROP SCHEMA reports CASCADE; CREATE TABLE {hub}.mine (id bigint)")
    with pytest.raises(PreflightError, match="mine"):
        drop(made)
    assert [("CH", 2), ("DE", 3)] == made.ask("auditor_both", AUDIT)


@pytest.mark.profiles("pg18")
def test_a_login_that_may_not_make_it_is_told_what_a_dba_runs(hubs: Hubs) -> None:
    hubs.run(f"GRANT CREATE ON DATABASE {ident(hubs.hub.name)} TO {ident(hubs.login('operator'))}")
    with open_hub(hubs.hub.login_url("operator")) as conn:
        with pytest.raises(PreflightError) as refused:
            create_hub(conn, hubs.settings())
        assert (
            [] == conn.execute("SELECT FROM pg_namespace WHERE nspname = %s", (hub_schema(hubs.settings()),)).fetchall()
        )
        for statement in refused.value.statements:
            hubs.run(statement)
        assert create_hub(conn, hubs.settings(), auditors={hubs.login("auditor_both"): []}).changed
        assert drop_hub(conn, hubs.settings()).statements


@pytest.mark.profiles("pg18")
def test_what_can_t_be_right_is_one_finished_answer(hubs: Hubs) -> None:
    s = hubs.settings()
    with open_hub(hubs.hub.url) as conn:
        with pytest.raises(InvalidRequest, match="there is no login 'nobody'"):
            create_hub(conn, s, auditors={"nobody": []})
        with pytest.raises(InvalidRequest, match="'AT' is none of the territories: DE, CH"):
            create_hub(conn, s, auditors={hubs.login("auditor"): ["AT"]})
        with pytest.raises(SettingsError, match="there is no section"):
            create_hub(conn, replace(s, databases=()))
        with pytest.raises(PreflightError, match="there is no hub"):
            hubs.verify()
    with pytest.raises(ConnectionUnusable, match="no connection to the hub"):
        open_hub("postgresql://postgres@/crm?host=/nowhere")


@pytest.mark.profiles("pg18")
def test_two_tables_never_get_one_name(hubs: Hubs) -> None:
    s = hubs.settings()
    two = tuple(TerritoryDatabase(s.databases[0].url, (code,)) for code in ("DE", "X"))
    with pytest.raises(SettingsError, match="seals_de"):
        spokes(replace(s, databases=two, territory_suffixes=(("X", "seals_de"),)))


@pytest.mark.profiles("pg18")
def test_no_password_of_a_url_comes_into_the_hub(hubs: Hubs) -> None:
    s = hubs.settings()
    url = "postgresql://release:s3cret@127.0.0.1:5999/crm?sslmode=require&passfile=/tmp/pgpass"
    (one,) = spokes(replace(s, databases=(TerritoryDatabase(url, ("DE",)),)))
    assert "s3cret" not in repr(one)
    assert {"host": "127.0.0.1", "port": "5999", "dbname": "crm", "sslmode": "require"} == {
        name: value for name, value in one.options if name in {"host", "port", "dbname", "sslmode", "user", "passfile"}
    }


@pytest.mark.parametrize(
    ("guc", "code", "said"),
    [
        ("app.territory", "DE", "-c app.territory=DE "),
        ("app.territory", "North America", "-c app.territory=North\\ America "),
        ("request.jwt.claims ->> territory", "DE", '-c request.jwt.claims={"territory":\\ "DE"} '),
    ],
)
@pytest.mark.profiles("pg18")
def test_the_context_of_the_far_side_is_the_territory_s(hubs: Hubs, guc: str, code: str, said: str) -> None:
    s = hubs.settings()
    named = (TerritoryDatabase(s.databases[0].url, (code,)),)
    suffixes = () if code == "DE" else ((code, "na"),)
    (one,) = spokes(replace(s, territory_guc=guc, databases=named, territory_suffixes=suffixes))
    options = dict(one.options)["options"]
    assert options.startswith(said)
    with psycopg.connect(hubs.de.url, options=options) as conn:
        wanted = code if "->>" not in guc else json.dumps({"territory": code})
        assert conn.execute("SELECT current_setting(%s)", (guc.partition(" ")[0],)).fetchone() == (wanted,)
        assert conn.execute("SHOW transaction_read_only").fetchone() == ("on",)


@pytest.mark.profiles("pg18", "pg15")
def test_an_auditor_s_own_mapping_and_what_of_his_password_the_hub_keeps(made: Hubs) -> None:
    """With a server from 18 on nothing: what proved him here proves him there, too."""
    with passwords.login(made.de, name="carla", like="auditor_both") as carla:
        try:
            with open_hub(made.hub.url) as conn:
                mappings = create_hub(conn, made.settings(), auditors={carla.name: []}).mappings
            mine = [statement for statement in mappings if ident(carla.name) in statement]
            assert 2 == len(mine)
            with carla.connect(dbname=made.hub.name, autocommit=True) as conn:
                for statement in mine:
                    conn.execute(statement.replace(":'password'", literal(carla.password)).encode())
                assert [("CH", 2), ("DE", 3)] == conn.execute(AUDIT.replace("{hub}", made.schema).encode()).fetchall()
                query = "SELECT umoptions::text FROM pg_user_mappings WHERE usename = %s"
                kept = [text for (text,) in conn.execute(query, (carla.name,)).fetchall()]
            assert [made.hub.profile.major < 18] * 2 == [carla.password in text for text in kept]
        finally:
            made.run(f"DROP OWNED BY {ident(carla.name)}")
            drop(made)


@pytest.mark.profiles("pg18")
def test_behind_a_pooler_that_drops_the_context_the_far_side_shows_nothing_and_verify_says_so(made: Hubs) -> None:
    """It refuses what it doesn't know, if it wasn't told to drop it; there is no third."""
    s, login = made.settings(), made.login("auditor_both")
    for ignored in ("", "options"):
        with pooler(made.ch.server, "session", logins=(login,), ignored=ignored) as front:
            behind = TerritoryDatabase(front.url(made.ch.name, login), ("CH",))
            with open_hub(made.hub.url) as conn:
                create_hub(conn, replace(s, databases=(s.databases[0], behind)))
            if not ignored:
                with pytest.raises(psycopg.OperationalError, match="unsupported startup parameter: options"):
                    made.ask("auditor_both", AUDIT)
                continue
            assert [("DE", 3)] == made.ask("auditor_both", AUDIT)
            with open_hub(made.hub.login_url("auditor_both")) as conn:
                found = verify_hub(conn, replace(s, databases=(s.databases[0], behind)))
            assert {("CH", "attempts", "0", "2")} <= {
                (one.territory, one.what, one.hub, one.server) for one in found.numbers if one.verdict == "differs"
            }


@pytest.mark.profiles("pg18")
def test_two_servers_each_with_logins_of_its_own(hubs: Hubs, profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is an auditor of DE is nobody on the server of CH."""
    with servers.embedded() as elsewhere:
        hubs.ch = Database(elsewhere, profile, make_template(elsewhere, profile, "head", monkeypatch))
        use(hubs.de, monkeypatch)
        hubs.fill()
        assert [("CH", 2), ("DE", 3)] == hubs.ask("auditor_both", AUDIT)
        assert "same" == hubs.verify().verdict
        hubs.ch.sql(f"DROP OWNED BY {ident(hubs.login('auditor_de'))}")
        hubs.ch.sql(f"DROP ROLE {ident(hubs.login('auditor_de'))}")
        hubs.map("auditor_de", "CH")
        with pytest.raises(psycopg.OperationalError, match="does not exist"):
            hubs.ask("auditor_de", AUDIT)
    found = hubs.verify()  # whose server is down now
    assert [("CH", "server", "not judged")] == [
        (one.database, one.what, one.verdict) for one in found.numbers if one.database == "CH"
    ]


def ini(made: Hubs, folder: Path) -> Path:
    urls = {one.name: one.url for one in made.settings().databases}
    return write_ini(folder, {"leadprotect.databases": urls})


MAKES_A_POLICY = (
    "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'leadprotect%' "
    "AND query LIKE 'CREATE POLICY%'"
)


@pytest.mark.profiles("pg18")
def test_the_command_line_makes_shows_verifies_and_drops_it(
    hubs: Hubs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATABASE_URL")
    monkeypatch.setenv(CONFIG, str(ini(hubs, tmp_path)))
    settings.current.cache_clear()
    before = hubs.hub.sql(EVERYTHING)

    def said(*words: str, code: int = 0, url: str = hubs.hub.url) -> str:
        ran = CliRunner().invoke(main, ["hub", *words, "--in", url])
        assert code == ran.exit_code, ran.output
        return ran.stdout

    # the process itself is killed, long after its first statement
    with hubs.hub.connect() as lock:
        lock.execute("LOCK TABLE pg_catalog.pg_policy IN SHARE MODE")
        words = [sys.executable, "-m", "leadprotect", "hub", "create", "--in", hubs.hub.url]
        with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
            while not hubs.hub.sql(MAKES_A_POLICY):
                assert process.poll() is None
                time.sleep(0.01)
            process.kill()
        assert process.returncode == -signal.SIGKILL
    while hubs.hub.sql(MAKES_A_POLICY):
        time.sleep(0.01)
    assert before == hubs.hub.sql(EVERYTHING)

    auditor = ("--auditor", f"{hubs.login('auditor_both')}=DE,CH")
    script = said("create", *auditor, "--sql")
    assert before == hubs.hub.sql(EVERYTHING)
    hubs.run(script)
    assert "leadprotect_hub is as it must be" in said("create", *auditor)
    assert ["CREATE USER MAPPING FOR"] * 2 == [line[:23] for line in said("create").splitlines()[-2:]]
    for code in ("DE", "CH"):
        hubs.map("auditor_both", code)
    table = said("verify", url=hubs.hub.login_url("auditor_both"))
    assert "newest seal" in table
    verified: dict[str, Any] = json.loads(said("verify", "--json", url=hubs.hub.login_url("auditor_both")))
    assert "same" == verified["verdict"]
    assert said("drop", "--sql").startswith("BEGIN;")
    assert "leadprotect_hub is gone" in said("drop")
    assert before == hubs.hub.sql(EVERYTHING)
    assert "there is no leadprotect_hub" in said("drop")
    assert "there is no hub" in CliRunner().invoke(main, ["hub", "verify", "--in", hubs.hub.url]).output


@pytest.mark.profiles("pg18")
def test_the_types_of_the_hub_are_those_of_the_servers(made: Hubs) -> None:
    query = """
        SELECT e.enumlabel::text FROM pg_enum AS e JOIN pg_type AS t ON t.oid = e.enumtypid
        WHERE t.typname = %s ORDER BY e.enumsortorder
        """
    for name in ("lead_action", "lead_access_outcome"):
        assert made.de.sql(query, name) == made.hub.sql(query, name) != []
