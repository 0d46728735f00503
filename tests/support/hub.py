"""A hub over two databases, and the logins that ask it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from leadprotect import assert_edit
from leadprotect.fleet.hub import Hub, create_hub, hub_schema, open_hub, spokes
from leadprotect.fleet.hub_check import HubVerified, verify_hub
from leadprotect.settings import Settings, ident, literal
from leadprotect.settings.databases import TerritoryDatabase
from tests.support.auditing import seal

if TYPE_CHECKING:
    from tests.support.database import Database

AUDIT = "SELECT territory, count(*) FROM {hub}.lead_access_audit GROUP BY 1 ORDER BY 1"


@dataclass
class Hubs:
    """A database of DE, one of CH, and the one in which the hub is; each login is there on all of them."""

    de: Database
    ch: Database
    hub: Database

    def settings(self, login: str = "auditor_both") -> Settings:
        """Both territories, each in its database, as this login."""
        pairs = (("DE", self.de), ("CH", self.ch))
        databases = tuple(TerritoryDatabase(one.login_url(login), (code,)) for code, one in pairs)
        return replace(self.de.settings, database_url="", databases=databases)

    @property
    def schema(self) -> str:
        return ident(hub_schema(self.settings()))

    def server(self, code: str) -> str:
        """The foreign server of a territory, quoted."""
        return next(ident(one.server) for one in spokes(self.settings()) if one.territory == code)

    def login(self, name: str) -> str:
        return self.hub.profile.login(name)

    def create(self, **auditors: list[str]) -> Hub:
        given = {self.login(name): codes for name, codes in auditors.items()}
        with open_hub(self.hub.url) as conn:
            return create_hub(conn, self.settings(), auditors=given)

    def map(self, name: str, code: str, there: str | None = None) -> None:
        """What a DBA does for an auditor who has no password: the servers of the tests trust who comes."""
        self.run(
            f"DROP USER MAPPING IF EXISTS FOR {ident(self.login(name))} SERVER {self.server(code)};"
            f"CREATE USER MAPPING FOR {ident(self.login(name))} SERVER {self.server(code)} "
            f"OPTIONS (user {literal(there or self.login(name))}, password_required 'false')"
        )

    def run(self, statement: str) -> None:
        """As the superuser, in the hub's database."""
        with self.hub.connect(autocommit=True) as conn:
            conn.execute(statement.replace("{hub}", self.schema).encode())

    def ask(self, name: str | None, query: str, *, role: str | None = None) -> list[Any]:
        """As one of LOGINS, in the hub's database; rows as tuples."""
        with self.hub.connect(name, autocommit=True) as conn:
            if role:
                conn.execute(f"SET ROLE {ident(self.login(role))}".encode())
            found = conn.execute(query.replace("{hub}", self.schema).encode())
            return found.fetchall() if found.description else []

    def verify(self, name: str = "auditor_both", login: str = "auditor_both") -> HubVerified:
        with open_hub(self.hub.login_url(name)) as conn:
            return verify_hub(conn, self.settings(login))

    def fill(self) -> None:
        """Three attempts in DE and two in CH, sealed; a hub for an auditor of both and for one of DE."""
        for database, code, attempts in ((self.de, "DE", 3), (self.ch, "CH", 2)):
            lead = database.lead(code, owner=database.user(1))
            for _ in range(attempts):
                with database.acting(f"seller_{code.lower()}", 1, code) as conn:
                    assert_edit(conn, lead)
            seal(database)
        self.create(auditor_both=[], auditor_de=["DE"])
        self.map("auditor_both", "DE")
        self.map("auditor_both", "CH")
        self.map("auditor_de", "DE")
