"""Row-level protection of leads: who may edit what, recorded, on a live PostgreSQL."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leadprotect.access.attempts import assert_edit
    from leadprotect.access.binding import Context, bind
    from leadprotect.access.bulk import assert_edit_many, assign_many, transfer_all
    from leadprotect.access.checks import Page, can_edit, can_edit_many, editable_leads, explain
    from leadprotect.access.context import acting_as
    from leadprotect.access.ownership import assign, claim, release, share, transfer, unshare
    from leadprotect.access.pipelines import editing
    from leadprotect.access.protections import LeadRule, grant, revoke, rules, suspend
    from leadprotect.access.routing import dispose_routes, route
    from leadprotect.access.startup import check_startup
    from leadprotect.access.territories import Territory, territory
    from leadprotect.backfilled import Backfilled, Estimate, Locked, Verified
    from leadprotect.backfilling.progress import Progress
    from leadprotect.backfilling.run import backfill
    from leadprotect.backfilling.signals import Limits
    from leadprotect.database.bound import configure
    from leadprotect.decision import Action, Decision, Protection, Reason
    from leadprotect.errors import (
        AuditUnavailable,
        BackfillError,
        BackfillIncomplete,
        BackfillStopped,
        ChainError,
        ConnectionUnusable,
        ContextMissing,
        ContextOutOfOrder,
        DatabasesUnavailable,
        GateClosed,
        InvalidRequest,
        LeadAccessDenied,
        LeadProtectError,
        LeadsAccessDenied,
        LockUnavailable,
        NotHere,
        NotProtected,
        PreflightError,
        ProtectionUnavailable,
        RollbackError,
        SettingsError,
    )
    from leadprotect.migration.autogenerate import include_name, include_object
    from leadprotect.settings.files import version_path

__all__ = [
    "Action",
    "AuditUnavailable",
    "BackfillError",
    "BackfillIncomplete",
    "BackfillStopped",
    "Backfilled",
    "ChainError",
    "ConnectionUnusable",
    "Context",
    "ContextMissing",
    "ContextOutOfOrder",
    "DatabasesUnavailable",
    "Decision",
    "Estimate",
    "GateClosed",
    "InvalidRequest",
    "LeadAccessDenied",
    "LeadProtectError",
    "LeadRule",
    "LeadsAccessDenied",
    "Limits",
    "LockUnavailable",
    "Locked",
    "NotHere",
    "NotProtected",
    "Page",
    "PreflightError",
    "Progress",
    "Protection",
    "ProtectionUnavailable",
    "Reason",
    "RollbackError",
    "SettingsError",
    "Territory",
    "Verified",
    "acting_as",
    "assert_edit",
    "assert_edit_many",
    "assign",
    "assign_many",
    "backfill",
    "bind",
    "can_edit",
    "can_edit_many",
    "check_startup",
    "claim",
    "configure",
    "dispose_routes",
    "editable_leads",
    "editing",
    "explain",
    "grant",
    "include_name",
    "include_object",
    "release",
    "revoke",
    "route",
    "rules",
    "share",
    "suspend",
    "territory",
    "transfer",
    "transfer_all",
    "unshare",
    "version_path",
]

# Each is loaded when it is asked for: `leadprotect --help` would spend a second on drivers that it does not need.
# The imports above say the same to a checker of types; tests/unit/test_rooms.py compares them.
_HOMES = {
    "assert_edit": "access.attempts",
    "Context": "access.binding",
    "bind": "access.binding",
    "assert_edit_many": "access.bulk",
    "assign_many": "access.bulk",
    "transfer_all": "access.bulk",
    "Page": "access.checks",
    "can_edit": "access.checks",
    "can_edit_many": "access.checks",
    "editable_leads": "access.checks",
    "explain": "access.checks",
    "acting_as": "access.context",
    "editing": "access.pipelines",
    "assign": "access.ownership",
    "claim": "access.ownership",
    "release": "access.ownership",
    "share": "access.ownership",
    "transfer": "access.ownership",
    "unshare": "access.ownership",
    "LeadRule": "access.protections",
    "grant": "access.protections",
    "revoke": "access.protections",
    "rules": "access.protections",
    "suspend": "access.protections",
    "dispose_routes": "access.routing",
    "route": "access.routing",
    "check_startup": "access.startup",
    "Territory": "access.territories",
    "territory": "access.territories",
    "Backfilled": "backfilled",
    "Estimate": "backfilled",
    "Locked": "backfilled",
    "Verified": "backfilled",
    "Progress": "backfilling.progress",
    "backfill": "backfilling.run",
    "Limits": "backfilling.signals",
    "configure": "database.bound",
    "Action": "decision",
    "Protection": "decision",
    "Decision": "decision",
    "Reason": "decision",
    "AuditUnavailable": "errors",
    "BackfillError": "errors",
    "BackfillIncomplete": "errors",
    "BackfillStopped": "errors",
    "ChainError": "errors",
    "ConnectionUnusable": "errors",
    "ContextMissing": "errors",
    "ContextOutOfOrder": "errors",
    "DatabasesUnavailable": "errors",
    "GateClosed": "errors",
    "InvalidRequest": "errors",
    "LeadAccessDenied": "errors",
    "LeadProtectError": "errors",
    "LeadsAccessDenied": "errors",
    "LockUnavailable": "errors",
    "NotHere": "errors",
    "NotProtected": "errors",
    "PreflightError": "errors",
    "ProtectionUnavailable": "errors",
    "RollbackError": "errors",
    "SettingsError": "errors",
    "include_name": "migration.autogenerate",
    "include_object": "migration.autogenerate",
    "version_path": "settings.files",
}
_FACES = ("access", "aio", "audit", "backfilling", "database", "decision", "errors", "metrics", "preflight", "settings")


def __getattr__(name: str) -> object:
    """A public name, from the module that defines it; or a room, as an attribute of the package."""
    if name in _FACES:
        return import_module(f"leadprotect.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"leadprotect.{_HOMES[name]}"), name)
    return found


def __dir__() -> list[str]:
    """Every public name, loaded or not."""
    return sorted({*globals(), *__all__})
