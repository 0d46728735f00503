"""Two databases, one for DE and one for CH, between which leads move with their contacts, notes and activities."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from leadprotect.fleet import manifest as manifests
from leadprotect.fleet.move import MoveRun, move
from leadprotect.settings import parse
from tests.support.children import CONTACTS, LEAD_TABLES, NOTES, TABLES, contact, grant, note
from tests.support.database import Database

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from leadprotect.settings import Settings
    from tests.support.profiles import Profile

MANAGER = 90
"""The user who moves leads."""

LOGINS = {"manager_ch": ("app", "manager", "ch")}
EVERYTHING = f"""
    SELECT json_build_array(l,
      (SELECT json_agg(c ORDER BY c.id) FROM {CONTACTS} AS c WHERE c."of lead" = l.{{lead_id}}),
      (SELECT json_agg(n ORDER BY n.id) FROM {NOTES} AS n WHERE n.lead_id = l.{{lead_id}}),
      (SELECT json_agg(a ORDER BY a.{{activity_id}}) FROM {{activities}} AS a
       WHERE a.{{activity_lead_id}} = l.{{lead_id}}))
    FROM {{leads}} AS l WHERE l.{{lead_id}} = %s
    """


def tables(profile: Profile) -> str:
    s = parse(profile.settings)
    return f"{LEAD_TABLES}, {s.activities_table} ({s.activity_lead_id_column}) append"


def prepare(database: Database) -> None:
    """Bring a database at the migrate step to contract, with tables of leads."""
    database.sql_script(TABLES)
    for login, offices in LOGINS.items():
        name = database.profile.login(login)
        database.sql_script(
            f'DO $do$ BEGIN CREATE ROLE "{name}" LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $do$; '
            f'GRANT USAGE ON SCHEMA crm TO "{name}"; '
            f'GRANT SELECT, INSERT, UPDATE, DELETE ON {{leads}}, {{activities}} TO "{name}"; '
            f'GRANT USAGE ON ALL SEQUENCES IN SCHEMA public, crm TO "{name}"'
        )
        for office in offices:
            database.sql_script(f'GRANT "{database.settings.role(office)}" TO "{name}"')
    grant(database, "seller_de", "seller_ch", "seller_both", "manager_de", "manager_ch")
    database.upgrade("head", contract="require")


@dataclass
class Pair:
    """The database of DE and that of CH."""

    de: Database
    ch: Database

    @property
    def settings(self) -> Settings:
        given = {"observation_window": "0"} | self.de.profile.settings | self.de.overrides
        return parse(given, {}, {"DE": self.de.login_url("manager_de"), "CH": self.ch.login_url("manager_ch")})

    def move(self, *leads: Any, **how: Any) -> MoveRun:
        return move(self.settings, leads, **{"to": "CH", "origin": "DE", "actor": self.de.user(MANAGER)} | how)

    def furnished(self, **more: Any) -> Any:
        """A lead of DE with an owner and a row in each table."""
        lead = self.de.lead("DE", **{"owner": self.de.user(1)} | more)
        contact(self.de, lead, "ü@example.ch")
        contact(self.de, lead, "{}")
        note(self.de, lead, "a \\ note's\n100 %")
        self.de.activity(lead, self.de.user(1))
        return lead

    def homes(self, lead: Any) -> list[str]:
        """Where its row is."""
        count = "SELECT count(*)::int FROM {leads} WHERE {lead_id} = %s"
        return [name for name, one in (("DE", self.de), ("CH", self.ch)) if one.sql(count, lead) == [1]]

    def states(self, lead: Any) -> list[list[Any]]:
        """The states of its hand-overs, in DE and in CH."""
        query = "SELECT state FROM {schema}.lead_handovers WHERE lead_id = %s ORDER BY began_at"
        return [one.sql(query, lead) for one in (self.de, self.ch)]

    def audits(self, lead: Any) -> list[list[Any]]:
        """What both audits say of its move, with the correlation id."""
        query = (
            "SELECT action::text, outcome::text, reason, correlation_id FROM {schema}.lead_access_audit "
            "WHERE lead_id = %s AND correlation_id IS NOT NULL ORDER BY id"
        )
        return [one.sql(query, lead) for one in (self.de, self.ch)]

    def editable(self, lead: Any) -> list[str]:
        """In which of the databases anybody may edit it: an owner, a collaborator of the territory, or maintenance."""
        return [code for code, one in (("DE", self.de), ("CH", self.ch)) if can_be_edited(one, lead, code)]


class Killed(BaseException):
    """The process ends here, as far as it can tell."""


@dataclass
class Killer:
    """Ends a move at the `at`-th message to a server, a statement or the end of some: before it went, or after.

    Before: the server's session is ended, as a crash or a broken network would. After: the process ends, and hears
    nothing of what the server did.
    """

    pair: Pair
    monkeypatch: Any
    at: int
    after: bool
    seen: int = 0
    begun: bool = False

    def __enter__(self) -> Self:
        self._wait, self._manifest = psycopg.Connection.wait, manifests.manifest
        self._ours: dict[int, psycopg.Connection[Any]] = {}
        killer = self

        def wait(conn: Any, *given: Any, **more: Any) -> Any:
            return killer.waited(conn, *given, **more)

        def manifest(*given: Any, **more: Any) -> Any:
            made = killer._manifest(*given, **more)
            killer.begun = True  # what only looks at the catalogs changes nothing
            return made

        self.monkeypatch.setattr(psycopg.Connection, "wait", wait)
        self.monkeypatch.setattr(manifests, "manifest", manifest)
        return self

    def waited(self, conn: Any, *given: Any, **more: Any) -> Any:
        if conn.info.get_parameters().get("application_name") != "leadprotect":
            return self._wait(conn, *given, **more)
        self._ours[conn.info.backend_pid] = conn
        self.seen += self.begun
        if not self.begun or self.seen != self.at:
            return self._wait(conn, *given, **more)
        if not self.after:
            self.end([conn.info.backend_pid])
            return self._wait(conn, *given, **more)
        self._wait(conn, *given, **more)
        for one in self._ours.values():
            one.close()
        raise Killed

    def __exit__(self, *_: object) -> None:
        self.monkeypatch.setattr(psycopg.Connection, "wait", self._wait)
        self.monkeypatch.setattr(manifests, "manifest", self._manifest)
        for one in self._ours.values():
            one.close()
        # a server still does what it had received
        pids = [*self._ours]
        while self.pair.de.sql("SELECT 1 FROM pg_stat_activity WHERE pid = ANY (%s) AND datname IS NOT NULL", pids):
            time.sleep(0.002)

    def end(self, pids: list[int]) -> None:
        """Let these sessions be gone before they are asked anything more."""
        for pid in pids:
            self.pair.de.sql("SELECT pg_terminate_backend(%s, 5000)", pid)


def can_be_edited(database: Database, lead: Any, territory: str) -> bool:
    """Whether the owner's or a collaborator's UPDATE, or one past row security, would change the row; none stays."""
    users = [database.user(number) for number in (1, 2, MANAGER)]
    update = database.text("UPDATE {leads} SET city = 'edited' WHERE {lead_id} = %s")
    for login, user in [(f"seller_{territory.lower()}", user) for user in users] + [(None, users[0])]:
        with database.connect(login) as conn:
            database.context(conn, user, territory)
            try:
                changed = conn.execute(update, (lead,)).rowcount
            except psycopg.Error:
                changed = 0
            conn.rollback()
        if changed:
            return True
    return False


def pair(
    make_database: Callable[..., Database], templates: dict[tuple[str, str], str], profile: Profile,
    janitor_of: Callable[..., Any], use: Callable[[Database], None],
) -> Pair:  # fmt: skip
    overrides = {"lead_tables": tables(profile)}
    if (profile.name, "moving") not in templates:
        made = make_database("expanded", **overrides)
        name = f"template_{profile.name}_moving"
        janitor_of(made.server, name, templates[profile.name, "expanded"]).init()
        prepared = Database(made.server, profile, name, overrides)
        use(prepared)
        prepare(prepared)
        templates[profile.name, "moving"] = name
    de, ch = make_database("moving", **overrides), make_database("moving", **overrides)
    sequences = "FROM pg_sequences WHERE schemaname IN ('public', 'crm')"
    for sequence in ch.sql(f"SELECT format('%I.%I', schemaname, sequencename) {sequences}"):
        ch.sql("SELECT setval(%s::regclass, 1000000)", sequence)
    return Pair(de, ch)
