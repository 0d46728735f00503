"""A service that asks before it serves is told when its session is not the one that is protected."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import leadprotect
from leadprotect import InvalidRequest, NotProtected

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.database import Database


def dangers(database: Database, login: str | None = "seller_de", *session: str) -> list[str]:
    with database.connect(login, autocommit=True) as conn:
        for statement in session:
            database.query(conn, statement)
        try:
            leadprotect.check_startup(conn)
        except NotProtected as error:
            return [name for name, _ in error.dangers]
    return []


def test_a_service_with_its_roles_on_a_protected_database_may_serve(database: Database) -> None:
    assert dangers(database) == []
    assert dangers(database, "seller_both") == []


def test_before_contract_and_before_the_first_revision_it_may_not(
    make_database: Callable[..., Database],
) -> None:
    assert dangers(make_database("expanded")) == ["row_security_off", "no_border", "triggers"]
    host = make_database("host")
    assert dangers(host, None)[:3] == ["not_migrated", "row_security_off", "no_border"]


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("ALTER TABLE {leads} DISABLE ROW LEVEL SECURITY", ["row_security_off"]),
        ('DROP POLICY "{border}" ON {leads}', ["no_border"]),
        ('ALTER POLICY "{border}" ON {leads} TO CURRENT_USER', ["no_border"]),
        ('ALTER TABLE {leads} DISABLE TRIGGER "{audit_edit}"', ["triggers"]),
        ('ALTER TABLE {leads} ENABLE TRIGGER "{refuse_move}"', ["triggers"]),
        ('DROP TRIGGER "{audit_truncate}" ON {leads}', ["triggers"]),
    ],
)
def test_what_is_gone_from_the_leads_is_named(database: Database, damage: str, found: list[str]) -> None:
    names = {
        name: database.settings.role(name)
        for name in ("border", "audit_edit", "audit_edits", "refuse_move", "audit_truncate")
    }
    for name, value in names.items():
        damage = damage.replace(f"{{{name}}}", value)
    database.sql(damage)
    assert dangers(database) == found


def test_a_session_that_row_security_does_not_bind_is_named(database: Database) -> None:
    assert dangers(database, None) == ["superuser"]
    assert dangers(database, None, "SET session_replication_role = replica") == ["superuser", "session"]
    assert dangers(database, "seller_de", "SET row_security = off") == ["session"]
    assert dangers(database, "outsider") == ["no_member"]
    assert dangers(database, "operator") == ["no_member"]
    login = database.profile.login("seller_de")
    database.sql(f'ALTER TABLE {{leads}} OWNER TO "{login}"')
    assert dangers(database) == ["owner"]
    database.sql("ALTER TABLE {leads} FORCE ROW LEVEL SECURITY")
    assert dangers(database) == []
    database.sql("ALTER TABLE {leads} OWNER TO postgres")


def test_the_role_that_a_pool_sets_is_the_one_that_is_asked(database: Database) -> None:
    login = database.profile.login("seller_de")
    assert dangers(database, None, f'SET ROLE "{login}"') == []


def test_what_is_forced_is_accepted_and_nothing_else(database: Database) -> None:
    with database.connect("outsider") as conn:
        leadprotect.check_startup(conn, force=["no_member"])
        with pytest.raises(NotProtected, match=r"^no_member: the role that acts holds no app role"):
            leadprotect.check_startup(conn, force=["owner"])
        with pytest.raises(InvalidRequest, match="force: 'nomember' is none of not_migrated, "):
            leadprotect.check_startup(conn, force=["nomember"])


def test_without_row_security_on_the_host_its_table_is_not_asked(make_database: Callable[..., Database]) -> None:
    assert dangers(make_database("expanded", host_rls="off")) == []


def test_operators_that_somebody_planted_are_not_asked(database: Database) -> None:
    """Whoever may create in a schema of the path could answer for the catalog."""
    database.sql_script("""
        GRANT USAGE ON SCHEMA crm TO PUBLIC;
        CREATE FUNCTION crm.yes(name, name) RETURNS boolean LANGUAGE sql AS 'SELECT true';
        CREATE OPERATOR crm.= (LEFTARG = name, RIGHTARG = name, FUNCTION = crm.yes);
        """)
    database.sql("ALTER TABLE {leads} DISABLE ROW LEVEL SECURITY")
    path = "SET search_path = crm, pg_catalog"
    assert dangers(database, "outsider", path) == ["row_security_off", "no_member"]
    with database.connect("outsider") as conn:  # the control
        conn.execute(path)
        assert conn.execute("SELECT 'a'::name = 'b'::name").fetchone() == (True,)
