"""Tables of a host that hold data of leads: contacts that the owner of a lead changes, notes that everybody adds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadprotect.settings import ident

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.database import Database

CONTACTS = 'crm."lead contacts"'
NOTES = "crm.notes"
LEAD_TABLES = "crm.lead contacts (of lead), crm.notes (lead_id) append"

TABLES = f"""
CREATE TABLE {CONTACTS} (
  id bigserial PRIMARY KEY,
  "of lead" {{lead_id_type}} REFERENCES {{leads}} ON DELETE CASCADE,
  email text NOT NULL DEFAULT ''
);
CREATE INDEX ON {CONTACTS} ("of lead");
CREATE TABLE {NOTES} (
  id bigserial PRIMARY KEY,
  lead_id {{lead_id_type}} REFERENCES {{leads}} ON DELETE CASCADE,
  body text NOT NULL DEFAULT ''
);
CREATE INDEX ON {NOTES} (lead_id);
"""


def add(database: Database) -> None:
    """Make both tables, and let sellers read and write them."""
    database.sql_script(TABLES)
    grant(database, "seller_de", "seller_ch", "seller_both", "manager_de")


def with_children(make_database: Callable[..., Database], **overrides: str) -> Database:
    """A database at the migrate step whose settings name both tables, and whose sellers may read and write them."""
    return make_database("children", **overrides)


def grant(database: Database, *logins: str) -> None:
    whom = ", ".join(ident(database.profile.login(login)) for login in logins)
    database.sql_script(f"GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON {CONTACTS}, {NOTES} TO {whom}")
    database.sql_script(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA crm TO {whom}")


def contracted(make_database: Callable[..., Database], **overrides: str) -> Database:
    """The same at head; with other settings, contract is carried out for this one."""
    if not overrides:
        return make_database("protected")
    database = with_children(make_database, **overrides)
    database.upgrade("head", contract="require")
    return database


def contact(database: Database, lead: Any, email: str = "") -> Any:
    return database.sql(f'INSERT INTO {CONTACTS} ("of lead", email) VALUES (%s, %s) RETURNING id', lead, email)[0]


def note(database: Database, lead: Any, body: str = "") -> Any:
    return database.sql(f"INSERT INTO {NOTES} (lead_id, body) VALUES (%s, %s) RETURNING id", lead, body)[0]
