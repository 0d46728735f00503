"""Row-level protection of leads: who may edit what, recorded, on a live PostgreSQL."""

from leadprotect.access import Decision, Page, assert_edit, can_edit, can_edit_many, editable_leads, explain
from leadprotect.backfill import backfill
from leadprotect.context import acting_as
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
from leadprotect.ownership import assign, claim, release, share, transfer, unshare
from leadprotect.paths import version_path
from leadprotect.territory import Territory, territory

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
