"""Backups in every phase, and what a restore makes of them: with our roles, and without."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from leadprotect.cli import main
from leadprotect.doctor.examine import examine
from leadprotect.settings import current
from tests.conftest import use
from tests.support import servers
from tests.support.auditing import record
from tests.support.database import Database
from tests.support.fingerprint import contents, difference
from tests.support.programs import lacking
from tests.support.revisions import HEAD, MIGRATE_HEAD, NAMED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.profiles import Profile

pytestmark = pytest.mark.profiles("pg18")


@pytest.fixture
def bare() -> Iterator[servers.Server]:
    """A cluster that never saw us."""
    with servers.embedded() as server:
        yield server


def login(database: Database, grants: str) -> str:
    """A login that backs up, as the how-to has a DBA make it."""
    name = f"backup_{database.name}"
    database.sql_script(f'CREATE ROLE "{name}" LOGIN; ' + grants.replace("backup", f'"{name}"'))
    return name


def dump(database: Database, user: str, file: Path) -> subprocess.CompletedProcess[str]:
    words = [
        str(database.server.programs / "pg_dump"),
        "-Fc",
        "-f",
        str(file),
        database.server.url(database.name, user),
    ]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def run_psql(server: servers.Server, url: str, script: str) -> None:
    words = [str(server.programs / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", url]
    done = subprocess.run(words, input=script, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr


def restore(database: Database, server: servers.Server, file: Path) -> tuple[Database, str]:
    """pg_restore as a superuser into a new database of `server`; what it complains about comes with it."""
    copy = Database(server, database.profile, database.name, database.overrides)
    server.create_database(copy.name)
    words = [str(server.programs / "pg_restore"), "-d", copy.url, str(file)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return copy, done.stderr


def rows(database: Database) -> dict[str, list[str]]:
    with database.connect(autocommit=True) as conn:
        return contents(conn, database.settings)


def dangers(database: Database) -> list[str]:
    with database.connect(autocommit=True) as conn:
        found = examine(conn, settings=database.settings)
    assert () == found.not_judged
    return [f"{one.check} {one.where}: {one.what}" for one in found.findings if one.level == "danger"]


def run(database: Database, monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    monkeypatch.setenv("DATABASE_URL", database.url)
    current.cache_clear()
    done = CliRunner().invoke(main, [*words], catch_exceptions=False)
    assert 0 == done.exit_code, done.output
    return done.stdout


GRANTED = "ALTER ROLE backup BYPASSRLS; GRANT pg_read_all_data TO backup"


def test_a_login_that_passes_row_security_dumps_everything_in_each_phase(host: Database, tmp_path: Path) -> None:
    backup = login(host, GRANTED)
    host.lead("DE")
    try:
        for direction, revision in (
            ("upgrade", NAMED["expand_rules"]),
            ("upgrade", MIGRATE_HEAD),
            ("upgrade", HEAD),
            ("downgrade", NAMED["expand_audit"]),
            ("downgrade", "base"),
        ):
            getattr(host, direction)(revision)
            done = dump(host, backup, tmp_path / "dump")
            assert (0, "") == (done.returncode, done.stderr)
        host.sql(f'ALTER ROLE "{backup}" NOBYPASSRLS')  # control: what a DBA would grant first
        done = dump(host, backup, tmp_path / "dump")
        assert 1 == done.returncode
        assert "row-level security" in done.stderr
    finally:
        host.sql(f'DROP ROLE "{backup}"')


@pytest.fixture
def backup(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The login for backups, made by the script for roles, which is printed before there is one."""
    name = database.settings.role("backup")
    assert [] == database.sql("SELECT FROM pg_roles WHERE rolname = %s", name)
    run_psql(database.server, database.server.url(), run(database, monkeypatch, "roles", "--sql"))
    yield name
    database.sql_script(f'DROP OWNED BY "{name}"; DROP ROLE "{name}"')


def test_a_restore_after_our_roles_is_whole_and_sound(
    database: Database, backup: str, bare: servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(database)
    done = dump(database, backup, tmp_path / "dump")
    assert (0, "") == (done.returncode, done.stderr)
    assert [] == dangers(database)
    script = run(database, monkeypatch, "roles", "--sql")
    assert "PASSWORD" not in script
    logins = database.sql("SELECT rolname FROM pg_roles WHERE rolcanlogin AND starts_with(rolname, 'pg18_')")
    run_psql(bare, bare.url(), "".join(f'CREATE ROLE "{name}" LOGIN;' for name in logins))
    for _ in range(2):
        run_psql(bare, bare.url(), script)
    copy, complaints = restore(database, bare, tmp_path / "dump")
    assert "" == complaints
    assert {} == difference(rows(database), rows(copy))
    assert [] == dangers(copy)
    again = dump(copy, backup, tmp_path / "again")
    assert (0, "") == (again.returncode, again.stderr)
    assert script == run(copy, monkeypatch, "roles", "--sql")
    with copy.connect("seller_de") as conn:
        copy.context(conn, copy.user(1), "DE")
        assert copy.query(conn, "SELECT count(*) FROM {leads}") == database.sql(
            "SELECT count(*) FROM {leads} WHERE {territory} IS NULL OR {territory} = 'DE'"
        )


def test_whoever_can_become_the_login_for_backups_is_named(database: Database, backup: str) -> None:
    service = database.profile.login("seller_de")
    assert [] == dangers(database)
    database.sql_script(f'GRANT "{backup}" TO "{service}"')
    assert [one for one in dangers(database) if service in one and backup in one]
    database.sql_script(f'REVOKE "{backup}" FROM "{service}"')


def test_a_restore_without_our_roles_is_said_to_be_open_and_repair_closes_the_border(
    database: Database, bare: servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(database)
    database.lead("CH")
    assert 0 == dump(database, "postgres", tmp_path / "dump").returncode
    copy, complaints = restore(database, bare, tmp_path / "dump")
    assert 'role "leadprotect_owner" does not exist' in complaints
    monkeypatch.setenv("DATABASE_URL", copy.url)
    current.cache_clear()
    doctor = CliRunner().invoke(main, ["doctor"])
    assert 1 == doctor.exit_code
    assert "contract-not-standing" in doctor.output

    script = run(copy, monkeypatch, "roles", "--sql")  # what the database knows of them itself
    run_psql(bare, copy.url, script)
    run(copy, monkeypatch, "repair", "--yes")
    copy.sql_script("CREATE ROLE svc LOGIN; GRANT {app}, leadprotect_de TO svc; GRANT SELECT ON {leads} TO svc")
    with copy.connect() as conn:
        conn.execute("SET SESSION AUTHORIZATION svc")
        conn.execute("SELECT set_config(%s, 'DE', false)", (copy.settings.territory_guc,))
        assert [] == copy.query(conn, "SELECT {lead_id} FROM {leads} WHERE {territory} = 'CH'")

    copy, complaints = restore(database, bare, tmp_path / "dump")  # with the roles it is whole
    assert [] == [line for line in complaints.splitlines() if "error:" in line and "pg18_" not in line]
    assert [] == dangers(copy)


OLD, NEW = 15, 18


def test_pg_upgrade_takes_everything_along(
    bare: servers.Server, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the oldest server to the newest, as a DBA does it: nothing of ours needs a hand."""
    if OLD not in servers.installed():
        lacking(f"PostgreSQL {OLD}", f"postgresql-{OLD}")
    with servers.system(OLD) as old:
        old.create_database("host")
        database = Database(old, profile, "host")
        use(database, monkeypatch)
        database.create_host_tables()
        database.upgrade("head")
        database.create_logins()
        record(database)
        before = rows(database)
        upgraded = pg_upgrade(old, bare)
        with started(bare.programs, upgraded, old.folder) as host:
            copy = Database(replace(old, host=host, programs=bare.programs, major=NEW), profile, "host")
            assert NEW == copy.sql("SELECT current_setting('server_version_num')::int / 10000")[0]
            assert {} == difference(before, rows(copy))
            assert [] == dangers(copy)


def as_postgres(folder: Path, *words: str | Path) -> None:
    """Programs of PostgreSQL refuse to run as root."""
    who: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": ()} if os.geteuid() == 0 else {}
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, **who)
    assert 0 == done.returncode, done.stdout + done.stderr


def pg_upgrade(old: servers.Server, new: servers.Server) -> Path:
    """Stops the old server; returns the data of the new one, which is not started."""
    folder, data = old.folder, old.folder / "upgraded"
    as_postgres(folder, old.programs / "pg_ctl", "-D", folder / "data", "-m", "fast", "stop")
    as_postgres(
        folder,
        *(new.programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8"),
        *("--locale=C.UTF-8", "--no-data-checksums"),
    )
    as_postgres(
        folder,
        *(new.programs / "pg_upgrade", "-b", old.programs, "-B", new.programs, "-d", folder / "data", "-D", data),
        *("-U", "postgres", "-s", folder),
    )
    return data


@contextmanager
def started(programs: Path, data: Path, folder: Path) -> Iterator[str]:
    options = f"-c listen_addresses='' -c unix_socket_directories='{folder}'"
    as_postgres(folder, programs / "pg_ctl", "-D", data, "-w", "-l", folder / "upgraded.log", "-o", options, "start")
    try:
        yield str(folder)
    finally:
        as_postgres(folder, programs / "pg_ctl", "-D", data, "-m", "immediate", "stop")
