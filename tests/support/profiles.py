"""Profiles: which server, which settings, and the host tables that go with them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from tests.support import servers

LOGINS = {
    "seller_de": ("app", "de"),
    "seller_ch": ("app", "ch"),
    "seller_both": ("app", "de", "ch"),
    "manager_de": ("app", "manager", "de"),
    "auditor": ("auditor",),
    "auditor_de": ("auditor", "de"),
    "auditor_both": ("auditor", "de", "ch"),
    "operator": ("operator",),
    "outsider": (),
}
"""Login of the tests -> the offices and territories whose roles it holds."""

HOST_USERS = ("seller_de", "seller_ch", "seller_both", "manager_de")
"""Logins that may read and write the host's tables."""


@dataclass(frozen=True)
class Profile:
    """`major` names the server, `settings` what differs from the defaults."""

    name: str
    major: int
    settings: dict[str, str] = field(default_factory=dict)

    def login(self, name: str) -> str:
        return f"{self.name}_{name}"


OTHER_NAMES = {
    "schema": "Lead Guard",
    "leads_table": "crm.Leads",
    "lead_id_column": "lead no",
    "lead_id_type": "bigint",
    "territory_column": "market",
    "user_id_type": "text",
    "activities_table": "crm.touches",
    "activity_id_column": "touch",
    "activity_lead_id_column": "lead no",
    "activity_user_id_column": "seller",
    "activity_kind_column": "what",
    "activity_at_column": "happened",
    "user_guc": "crm.seller",
    "territory_guc": "crm.market",
    "correlation_guc": "crm.request",
    "version_table": "guard versions",
    "version_table_schema": "crm",
}
TEXT_IDS = {"lead_id_type": "text"}

NIGHTLY = bool(os.environ.get("NIGHTLY"))
"""Whether there is time for everything: the oldest server with the usual names too, and ten times the random worlds."""

# By day the oldest server and the other names are tried together: whatever fails there fails for one of them.
MAJORS = sorted({*servers.installed(), 18})
OLDEST = [Profile(f"pg{major}", major) for major in MAJORS[:-1]][:1]
PROFILES = [
    Profile("pg18", 18),
    *(Profile(f"pg{major}", major) for major in MAJORS[1:-1]),
    *(OLDEST if NIGHTLY else []),
    Profile("other_names", MAJORS[0], OTHER_NAMES),
]
# roles are the whole server's: what a screen shows of them must be nobody else's
SCREENS = {"schema": "lead_screens"}
EXTRA = [Profile("text_ids", 18, TEXT_IDS), Profile("screens", 18, SCREENS), *OLDEST]
"""Only where a test names them."""

# {lead_id_type} and its kin are filled in by leadprotect.settings.render
HOST_TABLES = """
CREATE SCHEMA IF NOT EXISTS crm;
CREATE TABLE {leads} (
  {lead_id} {lead_id_type} PRIMARY KEY,
  {territory} varchar(20),
  company text NOT NULL DEFAULT 'Muster GmbH',
  city text
);
CREATE TABLE {activities} (
  {activity_id} bigserial PRIMARY KEY,
  {activity_lead_id} {lead_id_type} NOT NULL REFERENCES {leads} ON DELETE CASCADE,
  {activity_user_id} {user_id_type},
  {activity_kind} text NOT NULL,
  {activity_at} timestamptz
);
CREATE INDEX ON {activities} ({activity_lead_id});
-- a host that has a table of this name already
CREATE TABLE public.user_lead_assignments (id bigint PRIMARY KEY, note text);
"""
