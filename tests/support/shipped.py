"""Writes leadprotect/doctor/shipped.json: what a server shows of a database at head (`make shipped`)."""

from __future__ import annotations

import json
import os
from typing import Any

from leadprotect.database.statements import own_names
from leadprotect.doctor.shipped import FILE, taken
from tests.support.database import Database
from tests.support.profiles import Profile
from tests.support.revisions import MIGRATE_HEAD
from tests.support.servers import embedded

MORE: dict[str, dict[str, str]] = {
    "a": {"lead_tables": "public.lead_contacts (lead_id)"},
    "b": {"owner_on_insert": "creator"},
    "c": {"owners_from": "activities, column", "owner_column": "seller"},
    "d": {"owners_from": "column, activities", "owner_column": "seller"},
}
"""Settings with which something is made that the defaults leave out."""

STANDS = {"a": ("head", False), "b": ("head", True), "c": (MIGRATE_HEAD, False), "d": ("head", False)}
"""How far each of them goes, and whether its territory is NOT NULL."""


def written(*databases: Database) -> str:
    """The file: of databases at head that differ in what a host may have, such as a territory that is NOT NULL."""
    found: dict[str, Any] = {}
    for database in databases:
        with database.connect() as conn, own_names(conn):
            now = taken(conn, database.settings)
        if found:
            for name, policies in now["host_policies"].items():
                known = found["host_policies"].setdefault(name, [])
                known += [policy for policy in policies if policy not in known]
            for key in ("host_triggers", "child_triggers", "child_policies"):
                found[key] |= now[key]
        else:
            found = now
    return json.dumps(found, indent=1, sort_keys=True) + "\n"


def prepared(database: Database, revision: str, *, required: bool) -> Database:
    """With the host's tables, their territory NOT NULL or not, at a revision."""
    database.create_host_tables()
    if "owner_column" in database.overrides:
        database.sql("ALTER TABLE {leads} ADD seller uuid")
    if required:
        database.sql("ALTER TABLE {leads} ALTER {territory} SET NOT NULL")
    for name in [name for name in os.environ if name.startswith("LEADPROTECT_")]:
        del os.environ[name]
    if database.settings.lead_tables:
        database.sql_script(
            "CREATE TABLE public.lead_contacts (lead_id {lead_id_type}); CREATE INDEX ON public.lead_contacts (lead_id)"
        )
    os.environ.update(database.environment)
    database.upgrade(revision)
    return database


def main() -> None:
    with embedded() as server:
        defaults = Profile("shipped", server.major)
        databases = []
        for name, (revision, required) in STANDS.items():
            Database(server, defaults, "postgres").sql(f"CREATE DATABASE shipped_{name}")
            # a trigger that the defaults leave out is made with the others
            database = Database(server, defaults, f"shipped_{name}", MORE[name])
            databases.append(prepared(database, revision, required=required))
        FILE.write_text(written(*databases), encoding="utf-8")


if __name__ == "__main__":
    main()
