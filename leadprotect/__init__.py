"""Row-level protection of leads: who may edit what, recorded, on a live PostgreSQL."""

from leadprotect.access.attempts import assert_edit
from leadprotect.access.checks import Page, can_edit, can_edit_many, editable_leads, explain
from leadprotect.access.context import acting_as
from leadprotect.access.ownership import assign, claim, release, share, transfer, unshare
from leadprotect.access.startup import check_startup
from leadprotect.access.territories import Territory, territory
from leadprotect.backfilled import Backfilled, Estimate, Locked, Verified
from leadprotect.backfilling.progress import Progress
from leadprotect.backfilling.run import backfill
from leadprotect.backfilling.signals import Limits
from leadprotect.decision import Decision
from leadprotect.errors import (
    AuditUnavailable,
    BackfillError,
    BackfillIncomplete,
    BackfillStopped,
    ConnectionUnusable,
    ContextMissing,
    ContextOutOfOrder,
    GateClosed,
    InvalidRequest,
    LeadAccessDenied,
    LeadProtectError,
    LockUnavailable,
    NotProtected,
    PreflightError,
    ProtectionUnavailable,
    RollbackError,
    SettingsError,
)
from leadprotect.settings.files import version_path

__all__ = [
    "AuditUnavailable",
    "BackfillError",
    "BackfillIncomplete",
    "BackfillStopped",
    "Backfilled",
    "ConnectionUnusable",
    "ContextMissing",
    "ContextOutOfOrder",
    "Decision",
    "Estimate",
    "GateClosed",
    "InvalidRequest",
    "LeadAccessDenied",
    "LeadProtectError",
    "Limits",
    "LockUnavailable",
    "Locked",
    "NotProtected",
    "Page",
    "PreflightError",
    "Progress",
    "ProtectionUnavailable",
    "RollbackError",
    "SettingsError",
    "Territory",
    "Verified",
    "acting_as",
    "assert_edit",
    "assign",
    "backfill",
    "can_edit",
    "can_edit_many",
    "check_startup",
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
