"""Row-level protection of leads: who may edit what, recorded, on a live PostgreSQL."""

from leadprotect.access.attempts import assert_edit
from leadprotect.access.checks import Page, can_edit, can_edit_many, editable_leads, explain
from leadprotect.access.context import acting_as
from leadprotect.access.ownership import assign, claim, release, share, transfer, unshare
from leadprotect.access.territories import Territory, territory
from leadprotect.backfilling.run import backfill
from leadprotect.decision import Decision
from leadprotect.errors import (
    AuditUnavailable,
    ContextMissing,
    GateClosed,
    InvalidRequest,
    LeadAccessDenied,
    LeadProtectError,
    ProtectionUnavailable,
    SettingsError,
)
from leadprotect.settings.files import version_path

__all__ = [
    "AuditUnavailable",
    "ContextMissing",
    "Decision",
    "GateClosed",
    "InvalidRequest",
    "LeadAccessDenied",
    "LeadProtectError",
    "Page",
    "ProtectionUnavailable",
    "SettingsError",
    "Territory",
    "acting_as",
    "assert_edit",
    "assign",
    "backfill",
    "can_edit",
    "can_edit_many",
    "claim",
    "editable_leads",
    "explain",
    "release",
    "share",
    "territory",
    "transfer",
    "unshare",
    "version_path",
]
