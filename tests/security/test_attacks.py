"""Every attack of the table fails, and succeeds once its defence is gone: on two versions and on hosts of any shape."""

from __future__ import annotations

import itertools
import json
import os
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from leadprotect.audit import seals
from leadprotect.settings import ident, literal
from leadprotect.settings.names import territory_columns
from leadprotect.settings.values import of_setting
from tests.conftest import janitor_of
from tests.hosts import ANNA, BERT, PEOPLE, SHAPES, Shape
from tests.security.attacks import ATTACKS, Attack, Scene
from tests.support.database import Database
from tests.support.hosts import Actor, Host
from tests.support.profiles import NIGHTLY, Profile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.servers import Server

pytestmark = [
    pytest.mark.profiles("pg18", "pg15"),
    pytest.mark.everywhere("a defence that one version lacks is an open door there"),
]
NUMBERS = itertools.count(1)
HIDDEN = "Secret AG"
ALL_DATA = {"reads_all": "pg_read_all_data", "writes_all": "pg_write_all_data"}
"""Logins that a DBA gave a role of PostgreSQL besides ours."""


@contextmanager
def clone(server: Server, template: str) -> Iterator[str]:
    """A database like the template, as long as an attack lasts; its name."""
    janitor = janitor_of(server, f"a{next(NUMBERS)}_{os.getpid()}", template)
    janitor.init()
    try:
        yield janitor.dbname
    finally:
        janitor.drop()


# --- the table on a database of ours


@pytest.fixture
def stage(
    profile: Profile,
    stages: dict[str, tuple[Database, dict[str, str]]],
    templates: dict[tuple[str, str], str],
    request: pytest.FixtureRequest,
) -> tuple[Database, dict[str, str]]:
    """A database that is cloned for each attack, and the words of its scene."""
    if profile.name not in stages:
        database: Database = request.getfixturevalue("database")
        template = replace(database, name=f"template_{profile.name}_attacked")
        janitor_of(database.server, template.name, templates[profile.name, "head"]).init()
        stages[profile.name] = template, furnish(template)
    return stages[profile.name]


@pytest.fixture(scope="session")
def stages() -> dict[str, tuple[Database, dict[str, str]]]:
    """Those made so far, by profile."""
    return {}


def furnish(database: Database) -> dict[str, str]:
    """Leads, owners, rules, an attempt in CH, and seals."""
    user = database.user
    owned = {"own": 1, "also_own": 1, "colleague": 2, "shared": 2, "free": None, "suspended_lead": 6, "sole": 5}
    leads = {name: database.lead("DE", owner=user(owner) if owner else None) for name, owner in owned.items()}
    leads |= {"swiss": database.lead("CH", owner=user(1)), "unowned_swiss": database.lead("CH")}
    leads |= {"outside": database.lead(None), "unknown": database.new_id()}
    database.sql("UPDATE {leads} SET company = %s WHERE {territory} = 'CH'", HIDDEN)
    database.rule(user(3), "COLLABORATOR", leads["shared"])
    database.rule(user(4), "COLLABORATOR", leads["shared"], effective_from="2999-01-01")
    database.rule(user(4), "COLLABORATOR", leads["colleague"], effective_from="2026-01-01", effective_to="2026-02-01")
    database.rule(user(6), "VIEW_ONLY")
    database.rule(user(5), "SOLE_OWNER")
    database.rule(user(7), "COLLABORATOR")
    database.rule(user(11), "COLLABORATOR", leads["swiss"], "CH")
    database.sql(
        "UPDATE {schema}.user_lead_assignments SET assigned_by = user_id, assigned_at = assigned_at "
        "WHERE territory = 'CH'"
    )
    for login, name, where in (("seller_ch", "swiss", "CH"), ("seller_de", "own", "DE")):
        with database.connect(login) as conn:
            database.query(conn, "SELECT {schema}.set_context(%s::text, %s, %s)", user(1), where, f"{name} request")
            database.query(conn, "SELECT {schema}.record_edit_attempt(%s, 'EDIT', %s)", leads[name], f"{name} note")
    with database.connect("operator", autocommit=True) as conn:
        seals.seal(conn)
    people = {"me": 1, "mate": 2, "sharer": 3, "suspended": 6, "suspect": 11}
    words = {name: f"'{lead}'" for name, lead in leads.items()}
    words |= {name: f"'{user(number)}'" for name, number in people.items()}
    return words | common(database, "company") | {"unknown_bare": str(leads["unknown"])}


def declaring(database: Database, territory: str, user: int | None = None) -> tuple[str, str]:
    """The setting that declares a territory, and its value; in JSON it holds the user, too."""
    s = database.settings
    name, field = of_setting(s.territory_guc)
    if field is None:
        return name, territory
    claims = {field: territory} | ({str(of_setting(s.user_guc)[1]): database.user(user)} if user else {})
    return name, json.dumps(claims)


def common(database: Database, text: str) -> dict[str, str]:
    """Words that any shape has; `text` is the column of a lead that is edited."""
    s = database.settings
    (month,) = database.sql("SELECT DISTINCT tableoid::regclass::text FROM {schema}.lead_access_audit")
    bare = s.leads_table.partition(".")[2]
    name, value = declaring(database, "CH", 1)
    return {
        "text": text,
        "audit_month": month,
        "leads_bare": f"'{bare}'",
        "leads_row": f'"{bare}"',
        "declared_ch": f"{name} = {literal(value)}",
        "declared_name": literal(name),
        "declared_value": literal(value),
        "place": ident(territory_columns(s)[0]),  # what says a lead's territory, and can be set
    }


@contextmanager
def logins(database: Database, attack: Attack) -> Iterator[None]:
    """Roles are the cluster's: what only one attack needs goes with it."""
    if attack.by not in ALL_DATA:
        yield
        return
    name = database.profile.login(attack.by)
    database.sql(f'CREATE ROLE "{name}" LOGIN IN ROLE {{app}}, {ALL_DATA[attack.by]}')
    database.sql(f'GRANT "{database.settings.role("de")}" TO "{name}"')
    try:
        yield
    finally:
        database.sql(f'DROP ROLE "{name}"')


@contextmanager
def as_login(database: Database, login: str, user: int, where: str | None) -> Iterator[psycopg.Connection[Any]]:
    """A session of one of LOGINS, or of the superuser, with a user and a territory as its pool leaves them."""
    s = database.settings
    with database.connect(login or None, autocommit=True) as conn:
        for name, value in ((s.user_guc, database.user(user) if user else None), (s.territory_guc, where)):
            if value is not None:
                conn.execute("SELECT set_config(%s, %s, false)", (name, value))
        yield conn


def outcome(stage: tuple[Database, dict[str, str]], attack: Attack, without: str = "") -> tuple[bool, list[str]]:
    """Whether it succeeds on a database like that of the stage, and what the attackers heard."""
    template, words = stage
    with ExitStack() as stack:
        database = template
        if without or not attack.reads:
            database = replace(template, name=stack.enter_context(clone(template.server, template.name)))
        stack.enter_context(logins(database, attack))
        scene = Scene(database, words, partial(as_login, database))
        for script in filter(None, (attack.given, without)):
            database.sql_script(scene.text(script))
        return attack.attempt(scene), scene.heard


def is_controlled(profile: Profile) -> bool:
    """Whether an attack is tried without its defence, too: by day that it can succeed is shown on the newest server."""
    return NIGHTLY or profile.name == "pg18"


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_the_attack_fails_and_succeeds_only_without_its_defence(
    stage: tuple[Database, dict[str, str]], attack: Attack
) -> None:
    if stage[0].profile.major < attack.since:
        return
    succeeded, heard = outcome(stage, attack)
    assert not succeeded, heard
    if is_controlled(stage[0].profile):
        succeeded, heard = outcome(stage, attack, attack.without)
        assert succeeded, f"this attack can't succeed at all, so it proves nothing: {heard}"


def test_there_are_as_many_attacks_as_were_promised_and_none_twice() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) >= 120


# --- the same on hosts that somebody else made

WHO: dict[str, dict[str, tuple[str, str | None]]] = {
    "django_force": {"seller_de": ("support", None)},
    "flyway": {"seller_de": ("portal_de", None), "seller_ch": ("portal_ch", None)},
    "plain": {"seller_de": ("svc_de", None), "seller_ch": ("svc_ch", None)},
    "supabase": {
        "seller_de": ("authenticator", "authenticated_de"),
        "seller_ch": ("authenticator", "authenticated_ch"),
    },
}
"""Shape -> who plays a login of the table there, and the role that it sets."""


@pytest.mark.parametrize(
    "shape", [pytest.param(shape, marks=pytest.mark.xdist_group(f"host {shape}")) for shape in SHAPES], ids=str
)
def test_attacks_on_a_host_fail_and_succeed_only_without_their_defence(
    make_host: Callable[..., Host], shape: Shape, subtests: pytest.Subtests
) -> None:
    host = make_host(shape, phase="contracted")
    stage = host, furnish_host(host)
    with ExitStack() as stack:
        readable: dict[str, Host] = {"": host}
        for attack in attacks_on(shape):
            with subtests.test(attack.name):
                succeeded, heard = outcome_on_host(stage, attack, "", readable, stack)
                assert not succeeded, heard
                if is_controlled(host.profile):
                    succeeded, heard = outcome_on_host(stage, attack, attack.without, readable, stack)
                    assert succeeded, f"this attack can't succeed at all, so it proves nothing: {heard}"


def attacks_on(shape: Shape) -> Iterator[Attack]:
    """All that can be tried there; by day each attack meets one of the shapes, and the table all of them twice."""
    for number, attack in enumerate(attack for attack in ATTACKS if attack.hosts):
        # where there is support alone, it changes nothing, whatever row security says
        fit = [one for one in SHAPES if "seller_ch" in WHO[one.name] or not attack.truth]
        if shape in fit and (NIGHTLY or shape is fit[number % len(fit)]):
            yield attack


def furnish_host(host: Host) -> dict[str, str]:
    """Rules and an attempt in CH beside the owners that the backfill found."""
    host.sql("UPDATE {leads} SET remark = %s WHERE {territory} = 'CH'", HIDDEN)
    unowned = (
        "SELECT {lead_id} FROM {leads} WHERE {territory} = %s EXCEPT SELECT lead_id FROM {schema}.user_lead_assignments"
    )
    leads = {"own": host.owned_by(ANNA, "DE"), "swiss": host.owned_by(ANNA, "CH")}
    leads |= {"also_own": leads["own"], "colleague": host.owned_by(BERT, "DE")}
    leads |= {"free": host.sql(unowned, "DE")[0], "unowned_swiss": host.sql(unowned, "CH")[0]}
    leads |= {"unknown": 4711 if host.settings.lead_id_type == "bigint" else "00000000-0000-4000-8000-000000000000"}
    host.rule(host.user(11), "COLLABORATOR", leads["swiss"], "CH")
    swiss = WHO[host.shape.name].get("seller_ch", ("django", None))
    with host.acting_for(Actor(*swiss, ANNA, "CH")) as conn:
        conn.execute("SELECT set_config(%s, 'swiss request', false)", (host.settings.correlation_guc,))
        host.query(conn, "SELECT {schema}.record_edit_attempt(%s, 'EDIT', 'swiss note')", leads["swiss"])
    words = {name: f"'{lead}'" for name, lead in leads.items()}
    words |= {name: f"'{host.user(number)}'" for name, number in (("me", 1), ("mate", 2), ("suspect", 11))}
    return words | common(host, "remark")


@contextmanager
def as_actor(host: Host, login: str, user: int, where: str | None) -> Iterator[psycopg.Connection[Any]]:
    """A session of who plays the login on a host of this shape."""
    if not login:
        with host.connect(autocommit=True) as conn:
            yield conn
        return
    person = next((person for person in PEOPLE if person.number == user), None)
    with host.acting_for(Actor(*WHO[host.shape.name][login], person, where)) as conn:
        if person is None and where is not None:
            conn.execute("SELECT set_config(%s, %s, false)", declaring(host, where))
        yield conn


def outcome_on_host(
    stage: tuple[Host, dict[str, str]], attack: Attack, without: str, readable: dict[str, Host], stack: ExitStack
) -> tuple[bool, list[str]]:
    """As `outcome`; attacks that only read, and lack the same defence, follow each other on one clone."""
    template, words = stage
    if attack.reads and without in readable:
        host = readable[without]
        scene = Scene(host, words, partial(as_actor, host))
        return attack.attempt(scene), scene.heard
    with ExitStack() as own:
        name = (stack if attack.reads else own).enter_context(clone(template.server, template.name))
        host = template.copy(name)
        scene = Scene(host, words, partial(as_actor, host))
        for script in filter(None, (attack.given, without)):
            host.sql_script(scene.text(script))
        if attack.reads:
            readable[without] = host
        return attack.attempt(scene), scene.heard
