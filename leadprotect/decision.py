"""The vocabulary of decisions: one code for each reason, the same in SQL, Python, audit and metric label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

DENIALS = ("no_context", "not_found", "suspended", "unassigned", "not_owner", "not_manager")
"""Reasons that deny what was asserted."""


ALLOWED = ("owner", "collaborator", "manager")
"""Reasons that allow; every other reason denies."""


@dataclass(frozen=True)
class Decision:
    """What was decided about a lead, and why; true when allowed.

    `reason` is a code: no_context, not_found, suspended, owner, collaborator, unassigned, not_owner, not_manager,
    and manager for a change of ownership.
    """

    lead_id: Any
    reason: str

    @property
    def allowed(self) -> bool:
        """Whether the reason allows."""
        return self.reason in ALLOWED

    def __bool__(self) -> bool:
        """The same: ``if decision`` must never let a denial through."""
        return self.allowed
