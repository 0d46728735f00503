"""A database of one of the hosts in tests/hosts: who works in it, and what a DBA does with it until contract."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
from alembic.util import CommandError

from leadprotect import backfill
from leadprotect.migration.leaving import left_by_hand
from leadprotect.migration.purge import purge
from leadprotect.settings import ident
from leadprotect.settings.names import territory_columns
from leadprotect.settings.values import of_setting
from tests.hosts import ANNA, BERT, PEOPLE, PLAIN, ZOE, Person, Shape
from tests.support.database import Database
from tests.support.profiles import NIGHTLY
from tests.support.revisions import MIGRATE_HEAD

if TYPE_CHECKING:
    from collections.abc import Iterator


LONG_AGO = datetime(2026, 1, 1, 9, tzinfo=UTC)
_ATTEMPTS = 5  # a script for the DBA may uncover the next thing that is missing


@dataclass(frozen=True)
class Actor:
    """A login, the role that it sets, and what its session says about who asks and where."""

    login: str
    role: str | None
    person: Person | None
    territory: str | None

    @property
    def acts_as(self) -> str:
        """The role that SET ROLE chose, or the login: named without the host's prefix."""
        return self.role or self.login

    def __str__(self) -> str:
        chosen = f" as {self.role}" if self.role else ""
        asks = f"{self.person.name} in {self.territory}" if self.person else "nobody"
        return f"{self.login}{chosen} for {asks}"


@dataclass(frozen=True)
class Lead:
    """One lead of the host, as a superuser reads it."""

    lead: Any
    territory: str | None
    org: int


@dataclass
class Host(Database):
    """A database of a shape; what `Database` offers, and the host's own roles and people."""

    shape: Shape = PLAIN
    prefix: str = ""
    asked: list[str] = field(default_factory=list, repr=False)  # what preflight gave the DBA to run
    _texts: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """Migrations run as the host's migrating login, which is no superuser."""
        return super().environment | {"DATABASE_URL": self.url_of(self.shape.migrator)}

    def role(self, name: str) -> str:
        return self.prefix + name

    def url_of(self, login: str) -> str:
        return self.server.url(self.name, self.role(login))

    def text(self, statement: str) -> str:
        """Fill in {h}, {database} and people's ids, and what `Database.text` fills in."""
        if statement not in self._texts:
            people = {person.name: self.user(person.number) for person in PEOPLE}
            known = {"h": self.prefix, "database": self.name, "territory": "{territory_of_here}"} | people
            filled = re.sub(r"\{([a-z]+)\}", lambda found: known.get(found[1], found[0]), statement)
            self._texts[statement] = super().text(filled)
        return self._texts[statement]

    def copy(self, name: str) -> Host:
        """The same host in another database, whose roles are the same as well."""
        return replace(self, name=name, overrides={**self.overrides}, asked=[*self.asked], _texts={})

    # --- the host and its data

    def create(self) -> None:
        """Tables, roles, two tenants, and leads with and without territory and activities."""
        self.sql_script(self.shape.script)
        self.sql_script(self.shape.fill)
        for org, people in ((1, (ANNA, BERT)), (2, (ZOE, None))):
            for territory in ("DE", "CH", None):
                for number, person in enumerate(people):
                    self.host_lead(org, territory, person, hours=number)

    def host_lead(self, org: int, territory: str | None, owner: Person | None, *, hours: int = 0) -> Any:
        """A lead with a contact and a note; `owner` called last, somebody else before, and somebody wrote a note since.

        Without an owner there is a note only.
        """
        columns = f"({self.shape.org}, {self.shape.account}, {self.input_of(territory)})"
        insert = f"INSERT INTO {{leads}} {columns} VALUES (%s, %s, %s) RETURNING {{lead_id}}"
        lead = self.sql(insert, org, org, territory)[0]
        for child in self.shape.children:
            self.sql(f"INSERT INTO {child} ({self.shape.org}, {self.shape.child_lead}) VALUES (%s, %s)", org, lead)
        at = LONG_AGO + timedelta(hours=hours)
        if owner:
            self.call(lead, org, self.user(9), "call", at)
            self.call(lead, org, self.user(owner.number), "visit", at + timedelta(days=1))
            self.call(lead, org, None, "visit", at + timedelta(days=2))
        self.call(lead, org, self.user(9), "memo", at + timedelta(days=3))
        return lead

    def input_of(self, territory: str | None) -> str:
        """The column that says this territory, quoted."""
        return ident(dict(self.shape.inputs).get(territory or "", territory_columns(self.settings)[0]))

    def call(self, lead: Any, org: int, user: str | None, kind: str, at: datetime) -> None:
        """An activity of the lead."""
        columns = f"{self.shape.org}, {{activity_lead_id}}, {{activity_user_id}}, {{activity_kind}}, {{activity_at}}"
        self.sql(f"INSERT INTO {{activities}} ({columns}) VALUES (%s, %s, %s, %s, %s)", org, lead, user, kind, at)

    def leads(self) -> dict[Any, Lead]:
        """Every lead, as a superuser reads it."""
        found = self.sql(f"SELECT {{lead_id}}, {{territory}}, {self.shape.org} FROM {{leads}} ORDER BY 1")
        return {row[0]: Lead(*row) for row in found}

    def owned_by(self, person: Person, territory: str) -> Any:
        """A lead of the person's in the territory, as the assignments have it."""
        query = "SELECT lead_id FROM {schema}.user_lead_assignments WHERE territory = %s AND user_id::text = %s"
        return self.sql(query + " ORDER BY 1", territory, self.user(person.number))[0]

    # --- who works in it

    def actors(self, *, whole: bool = NIGHTLY) -> list[Actor]:
        """Every acting role of the host, without and with each person and territory; by day Anna alone with each."""
        asking: list[tuple[Person | None, str | None]] = [(None, None)]
        asking += [(ANNA, territory) for territory in (None, "DE", "CH")] + [(BERT, "DE"), (ZOE, "DE"), (ZOE, "CH")]
        asking += [(BERT, None), (BERT, "CH"), (ZOE, None)] if whole else []
        return [Actor(login, role, *who) for login, role in self.shape.acting for who in asking]

    @contextmanager
    def acting_for(self, actor: Actor) -> Iterator[psycopg.Connection[Any]]:
        """A session of the actor, as its pool hands it out; `InsufficientPrivilege` where it can't set that role."""
        with psycopg.connect(self.url_of(actor.login), autocommit=True, prepare_threshold=None) as conn:
            self.hand_out(conn, actor)
            yield conn

    def hand_out(self, conn: psycopg.Connection[Any], actor: Actor) -> None:
        """Make a session of the login the actor's, whoever had it before."""
        conn.execute(
            "RESET ALL; RESET ROLE"
        )  # not DISCARD ALL: plans that were made for others stay, as with PgBouncer
        if actor.role:
            conn.execute(f'SET ROLE "{self.role(actor.role)}"')
        for name, value in self.context_of(actor).items():
            conn.execute("SELECT pg_catalog.set_config(%s, %s, false)", (name, value))

    def context_of(self, actor: Actor) -> dict[str, str]:
        """The settings of its session: the host's own, and ours."""
        if actor.person is None:
            return {}
        user = self.user(actor.person.number)
        context = self.shape.tenant(self.settings, actor.person, user)
        for declared, value in ((self.settings.user_guc, user), (self.settings.territory_guc, actor.territory)):
            name, field = of_setting(declared)
            if field is not None:
                claims = json.loads(context.get(name, "{}"))
                context[name] = json.dumps(claims | ({field: value} if value else {}))
            elif value:
                context[name] = value
        return context

    def held(self) -> set[tuple[str, str]]:
        """Pairs of an acting role and a territory whose role's rights it has, as a superuser reads the catalog."""
        acting = {role or login for login, role in self.shape.acting}
        query = """
            SELECT r.name, t.code FROM unnest(%s::text[]) AS r(name), {schema}.territories AS t
            WHERE pg_has_role(%s || r.name, %s || lower(t.code), 'USAGE')
            """
        return set(self.sql(query, sorted(acting), self.prefix, self.settings.role("")))

    def editors(self) -> set[tuple[Any, str, str]]:
        """Who may edit which lead where: its owner, and whom it is shared with, as the rows say."""
        query = """
            SELECT lead_id, territory, user_id::text FROM {schema}.user_lead_assignments
            UNION SELECT lead_id, territory, user_id::text FROM {schema}.lead_protection_rules
            WHERE active AND protection = 'COLLABORATOR'
            """
        return set(self.sql(query))

    # --- from the first revision to contract and back

    def deploy(self, revision: str = "head", **x: str) -> None:
        """`alembic upgrade` as the migrating login; what preflight prints for a DBA, a DBA runs."""
        for _ in range(_ATTEMPTS):
            try:
                self.upgrade(revision, **x)
            except CommandError as refused:
                lines = str(refused).partition("\nA DBA can run:\n")[2].splitlines()
                if not lines:
                    raise
                self.run_as_dba([line.strip() for line in lines])
            else:
                return
        self.upgrade(revision, **x)

    def run_as_dba(self, statements: list[str]) -> None:
        self.asked += statements
        with self.connect(autocommit=True) as conn:
            for statement in statements:
                conn.execute(statement)

    def expand(self) -> None:
        self.deploy(MIGRATE_HEAD)

    def remedy(self) -> None:
        """What a DBA changes about the host itself before contract."""
        if self.shape.remedies:
            self.sql_script(self.shape.remedies)

    def grant(self) -> None:
        """What a DBA grants: to each service our app role and its territories, to somebody the backfill."""
        for role, offices in self.shape.grants.items():
            for office in offices:
                self.sql(f'GRANT "{self.settings.role(office)}" TO "{self.role(role)}"')
        if not self.sql("SELECT FROM pg_roles WHERE rolname = %s", self.role("operator")):
            self.sql(f'CREATE ROLE "{self.role("operator")}" LOGIN')
        self.sql(f'GRANT "{self.settings.role("operator")}" TO "{self.role("operator")}"')

    def backfill(self) -> None:
        backfill(self.url_of("operator"), self.settings.territories, settings=self.settings)

    def contract(self) -> None:
        self.deploy("head", contract="require")

    def leave(self) -> None:
        """Down to the base, and the quarantine deleted; a DBA takes back what is listed and is of this database."""
        if self.revision():
            self.downgrade("base")
        with self.connect() as conn:
            purge(conn, settings=self.settings)
            left = left_by_hand(conn, settings=self.settings)
        for one in left:
            if not re.match("GRANT|REVOKE (?!ALL)|--|DROP ROLE", one.statement):  # the cluster is everybody's
                self.sql(one.statement)

    def dump(self) -> list[str]:
        """What pg_dump of this server says the schema is, without the random key of its restricted mode."""
        command = [str(self.server.programs / "pg_dump"), "--schema-only", "--dbname", self.url]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return [line for line in done.stdout.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]


def settings_of(shape: Shape, prefix: str) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """The keys of the shape's ini file, and those of its further activities by name; roles carry the host's prefix."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(shape.ini.read_text().replace("{h}", prefix))
    further = {name.rpartition(".")[2]: dict(parser[name]) for name in parser.sections() if ".activities." in name}
    return dict(parser["leadprotect"]), further
