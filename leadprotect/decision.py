"""The vocabulary of decisions: one code for each reason, the same in SQL, Python, audit and metric label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

Denial = Literal["no_context", "not_found", "suspended", "unassigned", "not_owner", "not_manager"]
Reason = Literal[Denial, "unprotected", "owner", "collaborator", "manager"]
"""The code of a decision."""

Action = Literal["VIEW", "EDIT", "ASSIGN", "UNASSIGN"]
"""What is attempted."""

Protection = Literal["SOLE_OWNER", "COLLABORATOR", "VIEW_ONLY"]
"""What a rule says: nobody but the owner, this user too, or this user nothing but looking."""

PROTECTIONS: tuple[Protection, ...] = get_args(Protection)

DENIALS: tuple[Denial, ...] = get_args(Denial)
"""Reasons that deny what was asserted."""


ALLOWED: tuple[Reason, ...] = ("unprotected", "owner", "collaborator", "manager")
"""Reasons that allow; every other reason denies."""


@dataclass(frozen=True)
class Decision:
    """What was decided about a lead, and why; true when allowed.

    `reason` is a code: unprotected (the lead has no territory), no_context, not_found, suspended, owner,
    collaborator, unassigned, not_owner, not_manager, and manager for a change of ownership.
    `on_standby`: a read replica answered, so it is advice; what it has not replayed yet may say otherwise.
    """

    lead_id: Any
    reason: Reason
    on_standby: bool = False

    @property
    def allowed(self) -> bool:
        """Whether the reason allows."""
        return self.reason in ALLOWED

    def __bool__(self) -> bool:
        """The same: ``if decision`` must never let a denial through."""
        return self.allowed
