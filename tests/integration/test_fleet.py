"""One command on every database of the settings: each in a process of its own, and again what is left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psutil
import psycopg
import pytest
from click.testing import CliRunner

from leadprotect.cli import main
from leadprotect.cli.fleet import _in_short
from leadprotect.errors import InvalidRequest, SettingsError
from leadprotect.fleet.run import DatabaseRun, run_on_all, worst
from leadprotect.settings import load, parse
from leadprotect.settings.databases import ON
from leadprotect.settings.files import CONFIG, write_ini
from leadprotect.settings.load import narrowed
from tests.conftest import make_template
from tests.support import servers
from tests.support.database import Database
from tests.support.fingerprint import fingerprint
from tests.support.forked import Forked, run
from tests.support.profiles import NIGHTLY
from tests.support.topology import come_back, crash

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.profiles import Profile

DEAD = "postgresql://postgres@/crm?host=/nowhere"


def ini(folder: Path, **urls: str) -> Path:
    file = write_ini(folder, territories="DE, CH, AT", observation_window="0")
    section = "\n".join(f"{code} = {url.replace('%', '%%')}" for code, url in urls.items())
    file.write_text(f"{file.read_text(encoding='utf-8')}\n[leadprotect.databases]\n{section}\n", encoding="utf-8")
    return file


def command(file: Path, *words: str) -> tuple[list[str], dict[str, str]]:
    """The words of a command, and its environment."""
    clean = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    return ["leadprotect", "-c", str(file), *words], clean


def fleet(file: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run(*command(file, "--fleet", *words))


def rows(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert done.returncode == found["exit_code"]
    return {" ".join(one["territories"]): one for one in found["databases"]}


@pytest.fixture
def two(make_database: Callable[..., Database], monkeypatch: pytest.MonkeyPatch) -> tuple[Database, Database]:
    """Two hosts that nothing protects yet."""
    made = make_database("host"), make_database("host")
    monkeypatch.delenv("DATABASE_URL")
    return made


@pytest.mark.profiles("pg18")
def test_the_whole_life_on_two_databases_one_of_which_is_dead_at_first(
    two: tuple[Database, Database], tmp_path: Path
) -> None:
    here, there = two
    for database, code in ((here, "DE"), (here, "AT"), (there, "CH")):
        for number in range(3):
            database.activity(database.lead(code), database.user(number))
    broken = ini(tmp_path, DE=here.url, AT=here.url, CH=DEAD)

    done = fleet(broken, "upgrade", "head")
    assert done.returncode == 1
    assert re.search(r"^CH +1 +[0-9.]+ +no connection to the database", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^DE AT +0 +[0-9.]+ +stopped before lp_0016_contract_indexes", done.stdout, re.MULTILINE), (
        done.stdout
    )
    assert "CH    | ERROR" in done.stdout.replace("FAILED", "ERROR"), done.stdout
    assert "no connection to the database" in done.stdout
    assert here.sql("SELECT array_agg(code ORDER BY code) FROM {schema}.territories") == [["AT", "DE"]]

    file = ini(tmp_path, DE=here.url, AT=here.url, CH=there.url)
    assert fleet(file, "upgrade", "head").returncode == 0
    assert there.sql("SELECT code FROM {schema}.territories") == ["CH"]
    waits = rows(fleet(file, "plan", "--json"))
    assert {3} == {one["exit_code"] for one in waits.values()}
    required = fleet(file, "upgrade", "head", "-x", "contract=require")
    assert 1 == required.returncode
    assert 2 == len(re.findall(r"^(?:DE AT|CH) +1 .*gate is closed", required.stdout, re.MULTILINE)), required.stdout

    assert fleet(file, "backfill", "DE", "CH").returncode == 0
    assert {("DE", 3), ("AT", 0)} == {*here.sql(OWNED)}
    assert [("CH", 3)] == there.sql(OWNED)
    assert fleet(file, "backfill", "--all").returncode == 0
    assert {("DE", 3), ("AT", 3)} == {*here.sql(OWNED)}

    last = rows(fleet(file, "upgrade", "head", "--json"))
    assert {"DE AT": 0, "CH": 0} == {name: one["exit_code"] for name, one in last.items()}
    assert all(isinstance(one["output"], list) for one in last.values())
    states = rows(fleet(file, "status", "--json"))
    assert {"DE AT", "CH"} == {*states}
    assert {"contract"} == {one["output"]["phase"] for one in states.values()}
    assert fleet(file, "doctor").returncode == 0

    there.sql("ALTER TABLE {leads} DISABLE ROW LEVEL SECURITY")
    judged = rows(fleet(file, "doctor", "--json"))
    assert {"DE AT": 0, "CH": 1} == {name: one["exit_code"] for name, one in judged.items()}
    there.sql("ALTER TABLE {leads} ENABLE ROW LEVEL SECURITY")

    assert fleet(file, "downgrade", "base").returncode == 0
    assert [None, None] == [one.sql("SELECT to_regclass('leadprotect.territories')::text")[0] for one in two]


OWNED = (
    "SELECT t.code, (SELECT count(*)::int FROM {schema}.user_lead_assignments AS a WHERE a.territory = t.code) "
    "FROM {schema}.territories AS t"
)


STEPS = [("upgrade", "head"), ("backfill", "--all"), ("upgrade", "head"), ("downgrade", "base"), ("upgrade", "head")]
STEPS = STEPS if NIGHTLY else STEPS[:3]
CODES = ("DE", "CH", "AT") if NIGHTLY else ("DE", "CH")


def at_work(database: Database) -> bool:
    """Whether a session of the fleet is there, and has met a lock that is held."""
    query = """
        SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'leadprotect%%' AND datname = %s
        AND (wait_event_type = 'Lock' OR state <> 'idle')
        """
    with suppress(psycopg.OperationalError):
        return bool(database.sql(query, database.name))
    return False


def schema_of(database: Database, code: str) -> dict[str, str]:
    """Its schema, with one name for whatever territory it is of."""
    with database.connect() as conn:
        found = fingerprint(conn, database.settings)
    names = re.compile(rf"\bleadprotect_{code.lower()}\b|(?<=['\"{{]){code}(?=['\"}}])")
    return {names.sub("territory", name): names.sub("territory", text) for name, text in found.items()}


@pytest.mark.profiles("pg18")
def test_a_server_that_dies_in_each_step_ends_like_the_others_when_it_is_back(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with ExitStack() as stack:
        started = [stack.enter_context(servers.embedded()) for _ in CODES]
        found = [Database(one, profile, make_template(one, profile, "host", monkeypatch)) for one in started]
        for database, code in zip(found, CODES, strict=True):
            for number in range(3):
                database.activity(database.lead(code), database.user(number))
        given = {code: one.url for code, one in zip(CODES, found, strict=True)}
        file = write_ini(
            tmp_path, {"leadprotect.databases": given}, territories=", ".join(CODES), observation_window="0"
        )
        dies, server = found[-1], started[-1]
        for step in STEPS:
            holder = dies.connect()
            dies.query(holder, "LOCK TABLE {leads} IN ACCESS EXCLUSIVE MODE")
            with Forked(*command(file, "--fleet", *step), stdout=True) as process:
                while not at_work(dies):
                    assert process.poll() is None
                    time.sleep(0.005)
                crash(server)
                said = "".join(process.communicate(timeout=600))
            holder.close()
            assert 1 == process.returncode, said
            assert CODES[-1] in said
            come_back(server)
            again = fleet(file, *step)
            assert 0 == again.returncode, again.stdout + again.stderr
            # the same end: what a server that never died has
            revisions = [one.revision() for one in found]
            assert 1 == len({*revisions}), (step, revisions)
            assert schema_of(found[0], CODES[0]) == schema_of(dies, CODES[-1]), step
        owned = "SELECT count(*)::int FROM {schema}.user_lead_assignments WHERE territory = %s AND user_id IS NOT NULL"
        assert [[3]] * len(CODES) == [one.sql(owned, code) for one, code in zip(found, CODES, strict=True)]


@pytest.mark.profiles("pg18")
def test_a_plain_kill_ends_what_runs_on_every_database(two: tuple[Database, Database], tmp_path: Path) -> None:
    here, there = two
    file = ini(tmp_path, DE=here.url, AT=here.url, CH=there.url)
    with here.connect() as first, there.connect() as second:
        for database, conn in ((here, first), (there, second)):
            database.query(conn, "LOCK TABLE {leads} IN ACCESS EXCLUSIVE MODE")
        waiting = (
            "SELECT FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database WHERE NOT granted AND datname = %s"
        )
        with Forked(*command(file, "--fleet", "upgrade", "head"), stdout=True) as process:
            for database in two:
                while not here.sql(waiting.replace("SELECT FROM", "SELECT 1 FROM"), database.name):
                    assert process.poll() is None
                    time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            said = "".join(process.communicate(timeout=60))
        assert process.returncode == 143, said
    gone = (
        "SELECT count(*)::int FROM pg_stat_activity WHERE application_name LIKE 'leadprotect%%' AND datname = ANY (%s)"
    )
    while here.sql(gone, [one.name for one in two]) != [0]:
        time.sleep(0.02)


@pytest.mark.profiles("pg18")
def test_one_database_is_named_by_a_territory(
    two: tuple[Database, Database], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = two
    file = ini(tmp_path, DE=here.url, AT=here.url, CH=there.url)
    done = run(*command(file, "--on", "CH", "status", "--json"))
    assert json.loads(done.stdout)["phase"] == "none"
    words = ("--on", "CH", "upgrade", "lp_0001_expand_territories")
    assert 0 == run(*command(file, *words)).returncode
    assert (None, "lp_0001_expand_territories") == (here.revision(), there.revision())
    none = run(*command(file, "status"))
    assert none.returncode == 1
    assert "which database is not said: --on or LEADPROTECT_ON with one of DE, CH, or --fleet for all" in none.stderr
    monkeypatch.setenv(ON, "AT")
    monkeypatch.setenv(CONFIG, str(file))
    found = load()
    assert (("DE", "AT"), here.url) == (found.territories, found.database_url)
    with psycopg.connect(found.database_url) as conn:
        assert conn.info.dbname == here.name


# --- what needs no database

FORKED = """
import os, sys, time
from leadprotect.fleet.forks import Forked
from leadprotect.settings.databases import ON, TerritoryDatabase

def work(words):
    print(os.environ[ON], *words)
    print("bad", file=sys.stderr)
    sys.exit(3)

waiting, done = (Forked(TerritoryDatabase("", (code,)), ["status"], work) for code in ("CH", "DE"))
done.go()
with done:
    print(done.stdout.read().strip(), done.stderr.read().strip(), done.wait(), waiting.poll(), flush=True)
print(waiting._process.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("killed", [True, False])
def test_a_forked_process_tells_its_end_and_one_that_never_began_ends_with_its_parent(*, killed: bool) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FORKED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        assert parent.stdin
        assert "DE status bad 3 None" == parent.stdout.readline().strip()
        waiting = psutil.Process(int(parent.stdout.readline()))
        if killed:
            parent.kill()
        else:  # it doesn't wait for what it never let begin
            parent.stdin.close()
        parent.wait(60)
        with suppress(psutil.NoSuchProcess):
            while waiting.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.02)


GIVEN = {"territories": 'DE, CH, "North America, all": na'}
URLS = {"de": "postgresql://a/x", "CH": "postgresql://b/x", "na": "postgresql://a/x"}


def test_territories_with_one_url_share_a_database() -> None:
    found = parse(GIVEN, {}, URLS).databases
    assert [("DE", "North America, all"), ("CH",)] == [one.territories for one in found]
    assert narrowed(parse(GIVEN, {}, URLS), {ON: "CH"}).database_url == "postgresql://b/x"
    assert "postgresql" not in repr(parse(GIVEN, {}, URLS))


@pytest.mark.parametrize(
    ("urls", "said"),
    [
        ({"DE": "postgresql://a/x"}, r"names no database of CH, North America, all: CH = postgresql://"),
        (
            URLS | {"FR": "postgresql://c/x"},
            r"'FR' is none of territories: DE, CH, North America, all; correct it, or add",
        ),
        (
            URLS | {"North America, all": "postgresql://c/x"},
            r"North America, all twice, as na and as North America, all; le",
        ),
        (URLS | {"CH": "mysql://geheim@c/x"}, r"\[leadprotect.databases\] CH: database_url"),
    ],
)
def test_a_section_that_can_t_be_meant_is_refused_by_name(urls: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said) as refused:
        parse(GIVEN, {}, urls)
    assert "geheim" not in str(refused.value)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("[leadprotect.database]\nDE = x", r"unknown section \[leadprotect.database\]; known are \[leadprotect\], "),
        (
            "[leadprotect.databases]\nDE = x\nde = geheim",
            r"line \d+: 'de' in \[leadprotect.databases\] stands there twice",
        ),
        (
            "[leadprotect.databases]\nDE = x\n[leadprotect.databases]",
            r"line \d+: \[leadprotect.databases\] stands there",
        ),
    ],
)
def test_a_file_that_can_t_be_meant_is_refused_by_line_or_section(tmp_path: Path, section: str, said: str) -> None:
    file = write_ini(tmp_path, territories="DE")
    file.write_text(file.read_text(encoding="utf-8") + section, encoding="utf-8")
    with pytest.raises(SettingsError, match=said) as refused:
        load(environ={CONFIG: str(file)})
    assert "geheim" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["status", "--fleet"], "--fleet comes before the command: leadprotect --fleet status"),
        (["audit", "list", "--on", "DE"], "--on comes before the command: leadprotect --on audit list"),
        (["--fleet", "audit", "who", "7"], "Error: Missing option '--at'."),
        (["--fleet", "shadow", "nope"], "Error: No such command 'nope'."),
        (["--fleet", "upgrade"], "alembic upgrade: error: the following arguments are required: revision"),
        (["--fleet", "upgrade", "head", "-x"], "alembic: error: unrecognized arguments: -x"),
        (["--workers", "2", "upgrade", "head"], "--workers is how many databases of --fleet"),
        (["current"], "which database is not said: --on or LEADPROTECT_ON with one of DE, CH, or --fleet for all"),
    ],
)
def test_wrong_words_are_told_once_with_what_was_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    file = write_ini(tmp_path, {"leadprotect.databases": {"DE": DEAD, "CH": f"{DEAD}/ch"}})
    done = CliRunner().invoke(main, ["-c", str(file), *words], prog_name="leadprotect")
    assert (2 if words != ["current"] else 1) == done.exit_code
    assert 1 == done.output.count(said), done.output


def test_without_a_place_of_the_revisions_it_is_told_what_to_write(tmp_path: Path) -> None:
    file = tmp_path / "alembic.ini"
    file.write_text(f"[leadprotect.databases]\nDE = {DEAD}\nCH = {DEAD}\n", encoding="utf-8")
    for words in (["--fleet"], ["--on", "DE"]):
        done = CliRunner().invoke(main, ["-c", str(file), *words, "upgrade", "head"])
        assert 1 == done.exit_code
        assert "write into [alembic]: script_location = " in done.output
    for place in (tmp_path, tmp_path / "nowhere"):
        named = f"[alembic]\nscript_location = {place}\n[leadprotect.databases]\nDE = {DEAD}\nCH = {DEAD}\n"
        file.write_text(named, encoding="utf-8")
        for words in (["--fleet"], ["--on", "DE"]):
            done = CliRunner().invoke(main, ["-c", str(file), *words, "upgrade", "head"])
            assert (1, 1) == (done.exit_code, done.output.count("where there is no env.py; correct it in [alembic]"))


def test_what_the_gates_say_of_a_database_is_their_verdict_and_why() -> None:
    said = ("UNKNOWN", "  prometheus: it is down", "", "PROCEED   database lock waits: 0", "          SELECT 1")
    one = DatabaseRun(("DE",), 30, 0.1, said, ())
    assert "UNKNOWN; prometheus: it is down" == _in_short(["gate"], one)
    assert "PROCEED" == _in_short(["gate", "check"], replace(one, output=("PROCEED", "", *said[3:])))


def test_a_territory_that_no_database_holds_is_refused() -> None:
    with pytest.raises(SettingsError, match="'FR' is in no database"):
        narrowed(parse(GIVEN, {}, URLS), {ON: "FR"})


def test_a_command_about_one_database_is_refused_for_all() -> None:
    with pytest.raises(InvalidRequest, match=r"--fleet runs upgrade, .* not 'demo'"):
        run_on_all(parse(GIVEN, {}, URLS), ["demo"])
    with pytest.raises(SettingsError, match="there is no section"):
        run_on_all(parse(GIVEN), ["status"])


@pytest.mark.parametrize(
    ("command", "codes", "expected"),
    [("status", [0, 1, 0], 1), ("gate", [0, 30, 20, 10], 20), ("plan", [3, 1, 0], 1), ("plan", [0, 3], 3),
     ("doctor", [0, 2, 1], 2), ("gate", [0, 143, 20], 143)],
)  # fmt: skip
def test_the_worst_exit_code_is_that_of_all(command: str, codes: list[int], expected: int) -> None:
    assert expected == worst(command, codes)
