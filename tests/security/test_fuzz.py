"""Whatever somebody sends: never an internal error, never another territory's secret, never a password in a message."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import psycopg
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leadprotect.cli import main
from leadprotect.settings import current
from tests.support.commands import members
from tests.support.profiles import NIGHTLY

if TYPE_CHECKING:
    from tests.support.database import Database

EXAMPLES = 2_000 if NIGHTLY else 100
WEIRD = [
    "",
    " ",
    "'",
    '"; DROP SCHEMA leadprotect --',
    "[/b]",
    "\x1b[2J",
    "ß" * 500,
    "\u202eDE",
    "DE\n",
    "NULL",
    "-1",
    "%s",
]
# what a wrong argument may be answered with: ours, bad values, broken rules, missing rights, locks
ANSWERS = ("LP", "22", "23", "42501", "42704", "55", "40", "0A000", "428C9", "25")
OFFICES = {"seller_de": "app", "manager_de": "manager", "auditor_de": "auditor", "operator": "operator"}


@dataclass(frozen=True)
class Function:
    """A function of ours that a login may call, with the types of its arguments."""

    name: str
    arguments: tuple[str, ...]


def callable_by(database: Database, login: str) -> list[Function]:
    query = """
        SELECT p.proname::text, ARRAY(SELECT format_type(t, NULL) FROM unnest(p.proargtypes) WITH ORDINALITY AS a (t, n)
                                      ORDER BY n)
        FROM pg_proc AS p WHERE p.pronamespace = {schema_name}::regnamespace AND p.prokind = 'f'
          AND p.prorettype <> 'trigger'::regtype AND has_function_privilege(%s, p.oid, 'EXECUTE') ORDER BY 1, 2
        """
    found = database.sql(query, database.profile.login(login))
    return [Function(name, tuple(arguments)) for name, arguments in found]


def value_of(kind: str, leads: list[Any]) -> st.SearchStrategy[Any]:
    """A value of the type, as a text: sensible, malformed or none."""
    text = st.one_of(st.sampled_from(WEIRD), st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
    sensible: dict[str, st.SearchStrategy[Any]] = {
        "boolean": st.sampled_from(["true", "false"]),
        "integer": st.sampled_from(["0", "-1", "7", "2147483647"]),
        "bigint": st.sampled_from(["0", "-1", "7", "9223372036854775807"]),
        "numeric": st.sampled_from(["0", "0.5", "NaN", "1e300"]),
        "interval": st.sampled_from(["0", "-1 day", "1 year", "infinity"]),
        "date": st.sampled_from(["2026-01-01", "-infinity", "5874897-12-31"]),
        "timestamp with time zone": st.sampled_from(["2026-01-01", "infinity", "-infinity"]),
        "text": st.one_of(st.sampled_from(["DE", "CH", "claim", "share", "release", "not_owner"]), text),
    }
    base = kind.removesuffix("[]")
    one = sensible.get(base, st.sampled_from([*map(str, leads), "EDIT", "COLLABORATOR", "VIEW_ONLY", "DE"]))
    if kind.endswith("[]"):
        return st.lists(one, max_size=3).map(
            lambda found: "{" + ",".join(json.dumps(str(each)) for each in found) + "}"
        )
    return st.one_of(one, one, text, st.none())


@pytest.mark.parametrize("login", OFFICES)
def test_whatever_a_function_is_given_it_answers_or_refuses(database: Database, login: str) -> None:
    mine, foreign, secret = database.lead("DE", owner=database.user(1)), database.lead("CH"), database.user(0xC0FFEE)
    database.sql(
        "INSERT INTO {schema}.user_lead_assignments (lead_id, territory, user_id) VALUES (%s, 'CH', %s)",
        foreign,
        secret,
    )
    functions = callable_by(database, login)
    assert len(functions) > 5

    with database.connect(login) as conn:

        @given(st.data())
        @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def call(data: st.DataObject) -> None:
            function = data.draw(st.sampled_from(functions))
            values = [data.draw(value_of(kind, [mine, foreign])) for kind in function.arguments]
            context = data.draw(st.sampled_from([*WEIRD, "DE", "DE", "CH"]))
            said = answer(database, conn, function, values, context)
            if secret not in values:
                assert secret not in said, (function, values, context)

        call()


def answer(
    database: Database, conn: psycopg.Connection[Any], function: Function, values: list[Any], territory: str
) -> str:
    """What the call returns or how it is refused, as a text; nothing of it stays."""
    marks = ", ".join(f"%s::{kind}" for kind in function.arguments)
    try:
        with conn.transaction(force_rollback=True):
            database.context(conn, database.user(1), territory)
            found = database.query(conn, f'SELECT * FROM {{schema}}."{function.name}"({marks})', *values)
    except psycopg.Error as error:
        refused = error
    else:
        return repr(found)
    state = refused.sqlstate or ""
    assert state.startswith(ANSWERS), (function, values, territory, state, str(refused))
    return str(refused)


def test_control_across_the_border_a_superuser_is_told(database: Database) -> None:
    """The secret that nobody must see is one that the same calls would show."""
    lead = database.lead("CH", owner=database.user(0xC0FFEE))
    with database.connect() as conn:
        asked = Function("user_lead_assignments", ())
        found = database.query(conn, f"SELECT user_id::text FROM {{schema}}.{asked.name} WHERE lead_id = %s", lead)
    assert found == [database.user(0xC0FFEE)]


# --- the command line


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    found = []
    for name, command in members(group).items():
        if isinstance(command, click.Group):
            found += commands(command, (*path, name))
        found.append(((*path, name), command))
    return found


# they start servers of their own, whatever the database is
LAB = {"demo", "bench", "rehearse", "validate"}
# their verdicts have exit codes of their own
GATED = {"gate": {10, 20, 30}, "guard": {10, 11, 20, 21, 30}}
COMMANDS = [(path, command) for path, command in commands(main) if path[0] not in LAB]


@pytest.mark.parametrize(
    ("path", "command"), COMMANDS, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_whatever_a_command_is_given_it_says_one_thing_and_no_password(
    path: tuple[str, ...], command: click.Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ini = Path("alembic.ini").absolute()
    monkeypatch.chdir(tmp_path)  # some values are good names of files
    monkeypatch.setenv("LEADPROTECT_CONFIG", str(ini))
    monkeypatch.setenv("DATABASE_URL", "postgresql://somebody:sekret@127.0.0.1:1/nothing")
    current.cache_clear()
    values = [*WEIRD, "DE", "2020-01", "0", "1e9", "2026-02-30", "/dev/null/file", "9" * 400]
    arguments = [parameter for parameter in command.params if isinstance(parameter, click.Argument)]
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    for number, value in enumerate(values):
        given_arguments = [value] * len(arguments)
        for place, option in enumerate([None, *options]):
            if not NIGHTLY and option and (number + place) % 3:  # by day each option gets each third value
                continue
            flag = [option.opts[0], *([] if option.is_flag else [value])] if option else []
            done = CliRunner().invoke(main, [*path, *flag, *given_arguments])
            where = f"{' '.join(path)} {flag} {given_arguments}"
            assert done.exception is None or isinstance(done.exception, SystemExit), (where, done.exception)
            assert done.exit_code in ({0, 1, 2} | GATED.get(path[0], set())), where
            assert "sekret" not in done.output, where
            assert "Traceback" not in done.output, where
            assert "\x1b" not in done.output, where
