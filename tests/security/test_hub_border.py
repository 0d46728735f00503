"""A login of DE has no way to the server of CH through the hub, and nobody writes through it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import errors

from leadprotect.errors import PreflightError
from leadprotect.fleet.hub import open_hub
from leadprotect.settings import ident, literal
from tests.support.hub import AUDIT, Hubs

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.database import Database

pytestmark = pytest.mark.profiles("pg18", "other_names")
OF_CH = "SELECT count(*) FROM {hub}.lead_access_audit WHERE territory = 'CH'"
PARTITION = "SELECT count(*) FROM {hub}.lead_access_audit_ch"
WITHOUT = "SELECT count(*) FROM {hub}.lead_access_audit_without_territory"


@pytest.fixture
def hubs(make_database: Callable[..., Database]) -> Hubs:
    """Five attempts in two databases; auditor_both has a way to each, auditor_de to DE alone."""
    made = Hubs(make_database("head"), make_database("head"), make_database("empty"))
    made.fill()
    return made


def refused(hubs: Hubs, name: str | None, query: str, *, role: str | None = None) -> str:
    """What the server says to this; it must say no."""
    with pytest.raises(psycopg.Error) as said:
        hubs.ask(name, query, role=role)
    return said.value.sqlstate or ""


NO_MAPPING, DENIED = errors.UndefinedObject.sqlstate, errors.InsufficientPrivilege.sqlstate


def test_a_login_of_one_territory_has_no_way_to_the_server_of_another(hubs: Hubs) -> None:
    assert [(3,)] == hubs.ask("auditor_de", OF_CH.replace("CH", "DE"))
    assert {NO_MAPPING} == {refused(hubs, "auditor_de", query) for query in (AUDIT, OF_CH)}
    assert {DENIED} == {refused(hubs, "auditor_de", query) for query in (PARTITION, WITHOUT)}
    # controls: with a way of his own the border of that server decides by who he is there
    hubs.map("auditor_de", "CH")
    assert [(0,)] == hubs.ask("auditor_de", OF_CH)
    hubs.map("auditor_de", "CH", there=hubs.login("auditor_both"))
    assert [(2,)] == hubs.ask("auditor_de", OF_CH)


def test_nobody_makes_himself_a_way(hubs: Hubs) -> None:
    me, server = ident(hubs.login("auditor_de")), hubs.server("CH")
    mine = f"CREATE USER MAPPING FOR CURRENT_USER SERVER {server} OPTIONS (user 'postgres', password 'x')"
    public = f"CREATE USER MAPPING FOR PUBLIC SERVER {server} OPTIONS (user 'postgres', password 'x')"
    another = "CREATE SERVER way FOREIGN DATA WRAPPER postgres_fdw OPTIONS (dbname 'postgres')"
    moved = f"ALTER SERVER {hubs.server('DE')} OPTIONS (SET dbname {literal(hubs.ch.name)})"
    theirs = f"ALTER USER MAPPING FOR {ident(hubs.login('auditor_both'))} SERVER {server} OPTIONS (SET user 'postgres')"
    attacks = (mine, public, another, moved, theirs)
    assert {DENIED} == {refused(hubs, "auditor_de", attack) for attack in attacks}
    # controls: what each of them lacks
    hubs.run(
        f"GRANT USAGE ON FOREIGN SERVER {server} TO {me}; GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO {me}"
    )
    for attack in (mine, another):
        hubs.ask("auditor_de", attack)


def test_another_one_s_mapping_is_neither_read_nor_taken(hubs: Hubs) -> None:
    other = hubs.login("auditor_both")
    options = f"SELECT umoptions::text FROM pg_user_mappings WHERE usename = {literal(other)}"
    assert {(None,)} == {*hubs.ask("auditor_de", options)}
    assert DENIED == refused(hubs, "auditor_de", "SELECT * FROM pg_catalog.pg_user_mapping")
    assert DENIED == refused(hubs, "auditor_de", OF_CH, role="auditor_both")
    # controls: a superuser reads it, and who is a member takes it
    assert all("password_required" in text for (text,) in hubs.ask(None, options))
    hubs.run(f"GRANT {ident(other)} TO {ident(hubs.login('auditor_de'))}")
    try:
        assert [(2,)] == hubs.ask("auditor_de", OF_CH, role="auditor_both")
    finally:
        hubs.run(f"REVOKE {ident(other)} FROM {ident(hubs.login('auditor_de'))}")


def test_a_view_of_the_hub_lends_nobody_s_way(hubs: Hubs) -> None:
    hubs.run(
        f"CREATE USER MAPPING FOR CURRENT_USER SERVER {hubs.server('CH')} OPTIONS (user 'postgres');"
        f"CREATE USER MAPPING FOR CURRENT_USER SERVER {hubs.server('DE')} OPTIONS (user 'postgres')"
    )
    assert DENIED == refused(hubs, "auditor_de", WITHOUT)
    hubs.run("ALTER VIEW {hub}.lead_access_audit_without_territory SET (security_invoker = false)")
    assert [(0,)] == hubs.ask("auditor_de", WITHOUT)  # the control: its owner's way


def test_dblink_goes_where_the_login_may_go(hubs: Hubs) -> None:
    hubs.run("CREATE EXTENSION dblink SCHEMA public; GRANT USAGE ON SCHEMA public TO PUBLIC")
    server = literal(hubs.server("CH").strip('"'))
    query = f"SELECT * FROM public.dblink({server}, 'SELECT session_user::text') AS found (name text)"
    assert NO_MAPPING == refused(hubs, "auditor_de", query)
    hubs.map("auditor_de", "CH")
    assert DENIED == refused(hubs, "auditor_de", query)
    hubs.run(f"CREATE USER MAPPING FOR CURRENT_USER SERVER {hubs.server('CH')} OPTIONS (user 'postgres')")
    assert [("postgres",)] == hubs.ask(None, query)  # the control: whose server it is


def test_a_mapping_for_everybody_is_refused_and_said(hubs: Hubs) -> None:
    server = hubs.server("CH")
    assert () == hubs.verify().open
    hubs.run(f"CREATE USER MAPPING FOR PUBLIC SERVER {server} OPTIONS (user {literal(hubs.login('auditor_both'))})")
    with pytest.raises(PreflightError, match="DROP USER MAPPING FOR PUBLIC SERVER"):
        hubs.create()
    found = hubs.verify()
    assert ("differs", 1) == (found.verdict, len(found.open))
    hubs.run(found.open[0].rpartition(": ")[2])
    assert () == hubs.verify().open


def test_a_mapping_to_somebody_whom_nothing_binds_is_said(hubs: Hubs) -> None:
    """A DBA made it: the numbers are the same, and the auditor of one territory would read every one behind it."""
    assert ("same", ()) == (hubs.verify().verdict, hubs.verify().open)
    hubs.map("auditor_both", "CH", there="postgres")
    everything = "SELECT usename FROM {hub}.everybody"
    hubs.run(
        f"CREATE FOREIGN TABLE {{hub}}.everybody (usename name) SERVER {hubs.server('CH')} "
        f"OPTIONS (schema_name 'pg_catalog', table_name 'pg_shadow'); "
        f"GRANT SELECT ON {{hub}}.everybody TO {ident(hubs.login('auditor_both'))}"
    )
    assert ("postgres",) in hubs.ask("auditor_both", everything)  # what it would mean
    hubs.run("DROP FOREIGN TABLE {hub}.everybody")
    found = hubs.verify()
    assert ("differs", 1) == (found.verdict, len(found.open))
    hubs.run(found.open[0].rpartition(": ")[2])
    assert ("same", ()) == (hubs.verify().verdict, hubs.verify().open)


def test_who_needs_no_password_can_t_choose_whom_he_is_there(hubs: Hubs) -> None:
    """He may use the hub's servers for mappings of his own, but this one is a superuser's to change."""
    change = f"ALTER USER MAPPING FOR CURRENT_USER SERVER {hubs.server('CH')} OPTIONS (SET user 'postgres')"
    assert DENIED == refused(hubs, "auditor_both", change)
    hubs.run(change.replace("CURRENT_USER", ident(hubs.login("auditor_both"))))  # the control
    assert [(2,)] == hubs.ask("auditor_both", OF_CH)


def test_nobody_writes_through_it(hubs: Hubs) -> None:
    insert = (
        "INSERT INTO {hub}.user_lead_assignments_de (lead_id, territory, user_id, assigned_at, source) "
        "SELECT lead_id, 'CH', user_id, assigned_at, 'assign' FROM {hub}.user_lead_assignments_ch"
    )
    writes = (
        insert,
        "UPDATE {hub}.user_lead_assignments SET source = 'x' WHERE territory = 'DE'",
        "DELETE FROM {hub}.user_lead_assignments WHERE territory = 'DE'",
        "TRUNCATE {hub}.user_lead_assignments_de",
    )
    assert {DENIED} == {refused(hubs, "auditor_both", write) for write in writes}
    # whoever owns the hub, with a login there that may do anything: the servers of the hub say no
    for code in ("DE", "CH"):
        hubs.run(f"CREATE USER MAPPING FOR CURRENT_USER SERVER {hubs.server(code)} OPTIONS (user 'postgres')")
    assert 4 == len([refused(hubs, None, write) for write in writes])
    # he changes that, and the far side's session says no
    hubs.run(f"ALTER SERVER {hubs.server('DE')} OPTIONS (SET updatable 'true', SET truncatable 'true')")
    assert {"25006"} == {refused(hubs, None, write) for write in writes}
    # the control: he changes that, too, and it is his login there that decides
    hubs.run(f"ALTER SERVER {hubs.server('DE')} OPTIONS (DROP options)")
    hubs.run(insert)
    assert 2 == len(hubs.de.sql("SELECT FROM {schema}.user_lead_assignments"))
    with pytest.raises(PreflightError, match="not as leadprotect made it"):
        hubs.verify()


def test_verify_is_not_deceived_by_names_of_somebody_else(hubs: Hubs) -> None:
    """A schema before ours in the path, with tables and functions of the names that are asked for."""
    hubs.run(
        "CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC;"
        "CREATE FUNCTION evil.encode(bytea, text) RETURNS text LANGUAGE sql RETURN 'forged';"
        "CREATE TABLE evil.pg_foreign_server (srvname text, srvoptions text[]);"
        "GRANT SELECT ON evil.pg_foreign_server TO PUBLIC;"
        f"ALTER DATABASE {ident(hubs.hub.name)} SET search_path = evil, pg_catalog"
    )
    assert "same" == hubs.verify().verdict
    forged = "SELECT encode(hash, 'hex') FROM {hub}.lead_access_audit_seals_de LIMIT 1"
    assert [("forged",)] == hubs.ask("auditor_both", forged)  # the control: a session that pins nothing


def test_without_its_context_the_far_side_shows_nothing(hubs: Hubs) -> None:
    for code in ("DE", "CH"):
        hubs.run(f"ALTER SERVER {hubs.server(code)} OPTIONS (DROP options)")
    assert [] == hubs.ask("auditor_both", AUDIT)
    with open_hub(hubs.hub.url) as conn:
        conn.execute("SELECT 1")
    assert hubs.create().changed
    assert [("CH", 2), ("DE", 3)] == hubs.ask("auditor_both", AUDIT)
