"""What is printed for a login that lacks a membership: once a DBA has run it, the login does what it could not."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import psycopg
import pytest
from click.testing import CliRunner

from leadprotect.cli import main
from leadprotect.database.memberships import grants
from leadprotect.settings.roles import making_roles
from tests.hosts import PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.database import Database
    from tests.support.hosts import Host

pytestmark = pytest.mark.profiles("pg18", "pg15")

PRINTED = re.compile(r"GRANT \".+?;(?: ALTER ROLE .+?;)?")


def said(arguments: list[str]) -> str:
    return " ".join(CliRunner().invoke(main, arguments, env={"COLUMNS": "4000"}).output.split())


def test_the_login_that_made_our_roles_walks_once_a_dba_has_run_what_is_printed(make_host: Callable[..., Host]) -> None:
    """It may grant them, and inherits nothing by that: a plain GRANT leaves it so since PostgreSQL 16, the control."""
    host = make_host(PLAIN, phase="expanded")
    (printed,) = PRINTED.findall(said(["backfill", "--all"]))
    host.sql(printed.replace(" WITH INHERIT TRUE", ""))
    assert ("sees no territory" in said(["backfill", "--all"])) is (host.profile.major >= 16)
    host.sql(printed)
    walked = said(["backfill", "--all"])
    assert "owners assigned" in walked, walked


@pytest.mark.parametrize("options", ["LOGIN", "LOGIN NOINHERIT"])
@pytest.mark.parametrize("held", ["", "a", "a, b"])
def test_a_grant_is_one_that_counts(host: Database, options: str, held: str) -> None:
    """The plain statement is the control: it leaves who inherits nothing as he is."""
    a, b, name = (f"{letter} {host.name}" for letter in ("a", "b", "member"))
    host.sql_script(f'CREATE ROLE "{a}"; CREATE ROLE "{b}"; CREATE ROLE "{name}" {options}')
    try:
        for role in (a, b)[: len(held.split(","))] if held else ():
            host.sql(f'GRANT "{role}" TO "{name}"')
        with psycopg.connect(host.url, autocommit=True) as conn:
            statement = grants(conn, [a, b], name)
            plain = f'GRANT "{a}", "{b}" TO "{name}";'
            host.sql(plain)
            uses = "SELECT bool_and(pg_has_role(%s::name, role::name, 'USAGE')) FROM unnest(%s::text[]) AS role"
            assert [(options == "LOGIN",)] == conn.execute(uses, (name, [a, b])).fetchall()
            assert (statement == plain) is (options == "LOGIN")
            host.sql_script(statement)
            assert [(True,)] == conn.execute(uses, (name, [a, b])).fetchall()
    finally:
        host.sql_script(f'DROP ROLE "{name}"; DROP ROLE "{a}"; DROP ROLE "{b}"')


@pytest.mark.profiles("pg18")
def test_who_makes_our_roles_is_no_service_by_that(make_host: Callable[..., Host]) -> None:
    """A preset of the server would make him a member of each; he is, of a role of his own: the control."""
    host = make_host(PLAIN)
    host.sql(f"ALTER DATABASE \"{host.name}\" SET createrole_self_grant = 'set, inherit'")
    host.expand()
    migrator, own, made = host.role(host.shape.migrator), f"own {host.name}", f"made {host.name}"
    holds = "SELECT pg_has_role(%s::name, %s::name, 'USAGE')"
    assert [False] == host.sql(holds, migrator, host.settings.role("app"))
    with psycopg.connect(host.url_of(host.shape.migrator), autocommit=True) as conn:  # as psql runs a script
        conn.execute(f'CREATE ROLE "{own}"'.encode())
        conn.execute(host.text(making_roles(f"SELECT '{made}'", "{owner_name}")).encode())
    assert [True] == host.sql(holds, migrator, own)
    assert [False] == host.sql(holds, migrator, made)
    host.sql_script(f'DROP ROLE "{own}"; DROP ROLE "{made}"')


def test_who_may_not_connect_here_is_nothing_to_doctor(database: Database) -> None:
    """Our roles are the cluster's: who migrates or serves another database made this one NOT PROTECTED."""
    login = f"elsewhere {database.name}"
    found = {"owner-reachable", "service-unbound", "definer-view", "definer-function"}
    database.sql_script(
        f'CREATE ROLE "{login}" LOGIN BYPASSRLS; GRANT {{owner}}, {{app}} TO "{login}";'
        "CREATE VIEW crm.everything AS SELECT * FROM {leads};"
        "CREATE FUNCTION crm.everything() RETURNS bigint LANGUAGE sql SECURITY DEFINER "
        "RETURN (SELECT count(*) FROM {leads});"
        "REVOKE ALL ON FUNCTION crm.everything() FROM PUBLIC;"
    )
    reader = f"{login} reads"
    database.sql_script(
        f'CREATE ROLE "{reader}" LOGIN; GRANT SELECT ON crm.everything TO "{reader}";'
        f'GRANT EXECUTE ON FUNCTION crm.everything() TO "{reader}"'
    )
    try:
        assert found <= checks_found()
        database.sql_script(f'REVOKE CONNECT ON DATABASE "{database.name}" FROM PUBLIC')
        assert not found & checks_found()
    finally:
        database.sql_script(f'DROP OWNED BY "{login}", "{reader}"; DROP ROLE "{login}"; DROP ROLE "{reader}"')


def checks_found() -> set[str]:
    """The checks of doctor that found a danger or something to warn of."""
    said = json.loads(CliRunner().invoke(main, ["doctor", "--json"]).stdout)
    return {one["check"] for one in said["findings"] if one["level"] != "note"}
