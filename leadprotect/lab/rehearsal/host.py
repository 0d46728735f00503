"""What the traffic of a rehearsal needs of the host: logins, leads to work on, and statements that fit."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from leadprotect.errors import SettingsError
from leadprotect.lab.traffic import Statements
from leadprotect.settings import Settings, ident, literal, parse, render, table
from leadprotect.settings.activities import ACTIVITY_KEYS
from leadprotect.settings.codes import as_setting
from leadprotect.settings.files import CONFIG, write_ini
from leadprotect.settings.load import KEYS
from leadprotect.settings.names import territory_columns

if TYPE_CHECKING:
    from pathlib import Path

    import psycopg

OLD, NEW = "leadprotect_rehearsal_old", "leadprotect_rehearsal_new"
LOGINS = {"old": OLD, "new": NEW}
"""Version -> its login; the old one is a service that is named in exempt_roles."""

SAMPLED = 2000
"""Leads that the traffic works on."""

_FEWEST = 20


@dataclass(frozen=True)
class Work:
    """Leads with their territory, and activities, by id."""

    leads: list[tuple[str, str]]
    activities: list[str]


def make_logins(conn: psycopg.Connection[Any], s: Settings) -> dict[str, str]:
    """Create both logins with the host's privileges and a password for this run; login -> conninfo."""
    found = {}
    drop_logins(conn)
    schemas = ", ".join(ident(name) for name in {t.split(".", 1)[0] for t in s.host_tables})
    tables = ", ".join(map(table, s.host_tables))
    for login in (OLD, NEW):
        password = secrets.token_hex(16)
        conn.execute(f"CREATE ROLE {ident(login)} LOGIN PASSWORD {literal(password)}")
        conn.execute(f"GRANT USAGE ON SCHEMA {schemas} TO {ident(login)}")
        conn.execute(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schemas} TO {ident(login)}")
        conn.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {tables} TO {ident(login)}")
        parameters: dict[str, Any] = {**conninfo_to_dict(conn.info.dsn), "user": login, "password": password}
        found[login] = make_conninfo(**parameters)
    return found


def drop_logins(conn: psycopg.Connection[Any]) -> None:
    """End both logins and what they hold in this database."""
    for login in (OLD, NEW):
        if conn.execute("SELECT FROM pg_roles WHERE rolname = %s", (login,)).rowcount:
            conn.execute(f"DROP OWNED BY {ident(login)}")
            conn.execute(f"DROP ROLE {ident(login)}")


def join(conn: psycopg.Connection[Any], s: Settings) -> None:
    """Give the new version its roles: what a DBA does when the gate asks for it."""
    found = conn.execute(render("SELECT {schema}.territory_role(code) FROM {schema}.territories", s)).fetchall()
    for role in (s.role("app"), *(role for (role,) in found)):
        conn.execute(f"GRANT {ident(role)} TO {ident(NEW)}")


def exempted(conn: psycopg.Connection[Any], s: Settings) -> Settings:
    """The settings of the rehearsal: no waiting, and no login of the copy in the gate's way but the new version."""
    logins = conn.execute(
        """
        SELECT r.rolname FROM pg_roles AS r
        WHERE r.rolcanlogin AND NOT r.rolsuper AND r.rolname <> %s
          AND has_any_column_privilege(r.oid, %s::regclass, 'SELECT, INSERT, UPDATE')
        """,
        (NEW, table(s.leads_table)),
    ).fetchall()
    names = dict.fromkeys((*s.exempt_roles, OLD, *(name for (name,) in logins)))
    return replace(s, observation_window=0, exempt_roles=tuple(name for name in names if _can_be_named(name)))


def environment(s: Settings, folder: Path) -> dict[str, str]:
    """The settings for a command of ours: in an ini file in `folder`, but the address, which may hold a password."""
    usual = Settings()
    given = {key: getattr(s, key) for key in KEYS if getattr(s, key) != getattr(usual, key)}
    if s.territory_expression:
        del given["territory_column"]
    if s.territory_suffixes:
        given["territories"] = tuple(as_setting(*one) for one in s.territory_suffixes)
    address = given.pop("database_url", "")
    sections = {
        f"leadprotect.activities.{one.name}": {key: _text(getattr(one, key)) for key in ACTIVITY_KEYS}
        for one in s.further_activities
    }
    ini = write_ini(folder, sections, **{key: _text(value) for key, value in given.items()})
    return {CONFIG: str(ini)} | ({"LEADPROTECT_DATABASE_URL": address} if address else {})


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def statements(conn: psycopg.Connection[Any], s: Settings) -> Statements:
    """Statements for the host's tables as they are: a column that may be written, an activity that may be repeated."""
    leads, lead = table(s.leads_table), ident(s.lead_id_column)
    column = ident(_column(conn, s))
    return Statements(
        read=f"SELECT {column} FROM {leads} WHERE {lead} = %s::{s.lead_id_type}",
        page=f"SELECT {lead}, {column} FROM {leads} WHERE {lead} > %s::{s.lead_id_type} ORDER BY {lead} LIMIT 20",
        edit=f"UPDATE {leads} SET {column} = {column} WHERE {lead} = %s::{s.lead_id_type}",
        act=_repeated(conn, s) if s.activities else "",
    )


def _repeated(conn: psycopg.Connection[Any], s: Settings) -> str:
    """An activity like an earlier one, of this moment."""
    values = {name: ident(name) for name in _columns(conn, s)}
    values[s.activity_at_column] = "clock_timestamp()"
    activities, activity = table(s.activities_table), ident(s.activity_id_column)
    return (
        f"INSERT INTO {activities} ({', '.join(map(ident, values))}) "
        f"SELECT {', '.join(values.values())} FROM {activities} WHERE {activity} = %s::{_type(conn, s)}"
    )


def sample(conn: psycopg.Connection[Any], s: Settings) -> Work:
    """Some leads of known territories and some activities of theirs, from all over the tables."""
    territory = render("{territory_of_here}::text", s)
    leads = conn.execute(
        f"SELECT {ident(s.lead_id_column)}::text, {territory} FROM {table(s.leads_table)} "
        f"{_tablesample(conn, s.leads_table)} WHERE {territory} = ANY (%s) LIMIT {SAMPLED}",
        (list(s.territories),),
    ).fetchall()
    # none where owners come from a column alone
    activities = [
        activity
        for source in s.activities[:1]
        for (activity,) in conn.execute(
            f"SELECT {ident(source.id_column)}::text FROM {table(source.table)} "
            f"{_tablesample(conn, source.table)} LIMIT {SAMPLED}"
        ).fetchall()
    ]
    if len(leads) < _FEWEST:
        raise SettingsError(
            f"{s.leads_table} has {len(leads)} leads of {', '.join(s.territories)}: too few to rehearse with; "
            "generate some with --leads"
        )
    return Work([(lead, territory) for lead, territory in leads], activities)


def _tablesample(conn: psycopg.Connection[Any], name: str) -> str:
    rows = conn.execute("SELECT reltuples FROM pg_class WHERE oid = %s::regclass", (table(name),)).fetchall()[0][0]
    return f"TABLESAMPLE SYSTEM ({min(100.0, 100.0 * 20 * SAMPLED / rows):.6f})" if rows > 100 * SAMPLED else ""


def _column(conn: psycopg.Connection[Any], s: Settings) -> str:
    """A column without index, so that an edit is as cheap as an application's; the territory where there is none."""
    found = conn.execute(
        """
        SELECT a.attname FROM pg_attribute AS a
        WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
          AND a.attname <> ALL (%s)
          AND NOT EXISTS (SELECT FROM pg_index AS i WHERE i.indrelid = a.attrelid AND a.attnum = ANY (i.indkey))
        ORDER BY a.attnum LIMIT 1
        """,
        (table(s.leads_table), [s.lead_id_column, s.owner_column, *territory_columns(s)]),
    ).fetchone()
    return str(found[0]) if found else territory_columns(s)[0]


def _type(conn: psycopg.Connection[Any], s: Settings) -> str:
    """The type of an activity's id, so that a repeated one is found by its index."""
    query = "SELECT format_type(atttypid, NULL) FROM pg_attribute WHERE attrelid = %s::regclass AND attname = %s"
    return str(conn.execute(query, (table(s.activities_table), s.activity_id_column)).fetchall()[0][0])


def _columns(conn: psycopg.Connection[Any], s: Settings) -> list[str]:
    """Columns of an activity that a repeated one copies: all but a generated one and an id that makes itself."""
    found = conn.execute(
        """
        SELECT a.attname, a.atthasdef OR a.attidentity <> '' FROM pg_attribute AS a
        WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
        """,
        (table(s.activities_table),),
    ).fetchall()
    made = {name for name, makes_itself in found if makes_itself}
    if s.activity_id_column not in made:
        raise SettingsError(
            f"activity_id_column: {s.activities_table}.{s.activity_id_column} has no default, "
            "so a rehearsal can't add an activity; give the copy one"
        )
    return [name for name, _ in found if name != s.activity_id_column]


def _can_be_named(name: str) -> bool:
    try:
        return parse({"exempt_roles": name}).exempt_roles == (name,)
    except SettingsError:
        return False
