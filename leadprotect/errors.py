"""Every error that leadprotect raises, in one tree.

::

    LeadProtectError
    ├── SettingsError            a key of [leadprotect] is unknown, missing or bad
    ├── PreflightError           refused before anything was touched, with the statements that help
    ├── ContextMissing           the caller set no user or no territory (or could not: autocommit)
    ├── NotHere                  the territory is in another database: names it, and how to get there
    ├── ContextOutOfOrder        blocks of acting_as ended out of order, or on another thread: no context is left
    ├── InvalidRequest           an argument can't be right (also a ValueError)
    ├── LeadAccessDenied         the decision was DENY; carries the Decision
    │   └── LeadsAccessDenied    of many leads some were denied; carries each of those Decisions
    ├── ProtectionUnavailable    no answer could be had: treat it as a denial
    │   ├── AuditUnavailable     the answer could not be recorded: a denial
    │   ├── ConnectionUnusable   the transaction had failed already, or the connection is gone
    │   └── DatabasesUnavailable of several databases some gave no answer; carries the answers of the others
    ├── NotProtected             what contract promises does not hold for this session; names the dangers
    ├── GateClosed               contract is required, and a condition is false
    ├── RollbackError            a rollback or a purge was refused, or stopped on the way; says where it stands
    ├── ChainError               a chain of revisions that nothing can be added to; names the file and the remedy
    ├── LockUnavailable          no lock in time, or another transaction was faster: roll back and try again
    └── BackfillError            a backfill can't start or can't go on
        ├── BackfillStopped      somebody asked it to stop; a new run goes on where it ended
        └── BackfillIncomplete   leads that need an owner have none; carries what was done

The class follows from the SQLSTATE alone; the text of a server's message is never parsed.
An error is never a pass: whoever catches `LeadProtectError` must deny.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from leadprotect.backfilled import Backfilled
    from leadprotect.decision import Decision


_NAMED = 5
"""So many leads stand in a message; the error carries all."""


class LeadProtectError(Exception):
    """Base of every error of this package."""


class SettingsError(LeadProtectError):
    """A setting is unknown, missing or has a bad value; the message names the key."""


class PreflightError(LeadProtectError):
    """The database is not fit for the migration; nothing was touched.

    `problems` holds one finished sentence per finding, `statements` the SQL that a DBA can run.
    """

    def __init__(self, problems: list[str], statements: list[str] | None = None) -> None:
        self.problems = problems
        self.statements = statements or []
        text = "refused before anything was touched:\n" + "\n".join(f"  - {line}" for line in problems)
        if self.statements:
            text += "\nA DBA can run:\n" + "\n".join(f"    {line}" for line in self.statements)
        super().__init__(text)

    def __reduce__(self) -> tuple[type[PreflightError], tuple[list[str], list[str]]]:
        """As for `LeadAccessDenied`."""
        return type(self), (self.problems, self.statements)


class ChainError(LeadProtectError):
    """Revisions that nothing can be added to: two heads, a gap, a number taken twice; names the file and the remedy."""


class ContextMissing(LeadProtectError):
    """No user or no territory is set: a mistake of the caller (SQL answers false)."""


class NotHere(LeadProtectError):
    """The territory is not in the database of this connection, so nothing was asked there: `reason` is ``not_here``.

    `territory` was meant; `database` names the one that has it by its territories, as the settings do (None: none has).
    """

    reason: Literal["not_here"] = "not_here"

    def __init__(self, territory: str, why: str, database: str | None = None) -> None:
        self.territory, self.why, self.database = territory, why, database
        super().__init__(f"not_here: territory {territory!r} is not in this database; {why}")

    def __reduce__(self) -> tuple[type[NotHere], tuple[str, str, str | None]]:
        """As for `LeadAccessDenied`."""
        return type(self), (self.territory, self.why, self.database)


class ContextOutOfOrder(LeadProtectError):
    """Blocks of `acting_as` on one connection ended out of order, or on another thread: its context is empty. Deny."""


class InvalidRequest(LeadProtectError, ValueError):
    """An argument can't be right: wrong id type, unknown territory, dates in the wrong order."""


class LeadAccessDenied(LeadProtectError):
    """The attempt was denied and recorded; `decision` says why."""

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        what = "access" if decision.lead_id is None else f"access to lead {decision.lead_id}"
        super().__init__(f"{what} denied: {decision.reason}")

    def __reduce__(self) -> tuple[type[LeadAccessDenied], tuple[Any, ...]]:
        """What to make it from again: Exception would pass its text on, where a decision is expected."""
        return type(self), (self.decision,)


class LeadsAccessDenied(LeadAccessDenied):
    """Some of many were denied, and each of those recorded; `decisions` are theirs, `decision` is the first. Roll back.

    What was allowed is done and recorded in the caller's transaction, which he ends with a rollback.
    """

    def __init__(self, decisions: Sequence[Decision], asked: int) -> None:
        super().__init__(decisions[0])
        self.decisions = tuple(decisions)
        self.asked = asked
        named = ", ".join(f"{one.lead_id} ({one.reason})" for one in self.decisions[:_NAMED])
        more = len(self.decisions) - _NAMED
        self.args = (
            f"access to {len(self.decisions)} of {asked} leads denied: {named}" + (f" and {more} more" * (more > 0)),
        )

    def __reduce__(self) -> tuple[type[LeadAccessDenied], tuple[Any, ...]]:
        """As for `LeadAccessDenied`."""
        return type(self), (self.decisions, self.asked)


class ProtectionUnavailable(LeadProtectError):
    """leadprotect's objects can't be reached: not installed, rolled back, or no privilege. Deny."""


class AuditUnavailable(ProtectionUnavailable):
    """The attempt could not be recorded, allowed or not, so no answer is given. Deny."""


class ConnectionUnusable(ProtectionUnavailable):
    """The caller's transaction has failed already, or its connection is closed. Deny."""


class DatabasesUnavailable(ProtectionUnavailable):
    """Of several databases some gave no answer: deny what they hold.

    `failed` is the error of each territory that got none, `answers` what the other databases answered, in the order
    asked; `asked` is how many answers were wanted.
    """

    def __init__(self, failed: Mapping[str, ProtectionUnavailable], answers: Mapping[Any, bool], asked: int) -> None:
        self.failed, self.answers, self.asked = dict(failed), dict(answers), asked
        by_error: dict[str, list[str]] = {}
        for territory, error in self.failed.items():
            by_error.setdefault(str(error), []).append(territory)
        named = "; ".join(f"{', '.join(territories)}: {what}" for what, territories in by_error.items())
        super().__init__(f"{len(self.answers)} of {asked} answers were had (in .answers), and none of {named}")

    def __reduce__(self) -> tuple[type[DatabasesUnavailable], tuple[Any, ...]]:
        """As for `LeadAccessDenied`."""
        return type(self), (self.failed, self.answers, self.asked)


class NotProtected(LeadProtectError):
    """What contract promises does not hold for the session that asked: don't serve. `dangers` names what was found."""

    def __init__(self, dangers: list[tuple[str, str]]) -> None:
        self.dangers = dangers
        super().__init__("; ".join(f"{name}: {what}" for name, what in dangers))

    def __reduce__(self) -> tuple[type[NotProtected], tuple[list[tuple[str, str]]]]:
        """As for `LeadAccessDenied`."""
        return type(self), (self.dangers,)


class GateClosed(LeadProtectError):
    """A contract revision was required while a condition of its gate is false."""


class RollbackError(LeadProtectError):
    """A rollback or a purge was refused, or stopped on the way; the message says where it stands."""


class LockUnavailable(LeadProtectError):
    """A lock could not be had inside the lock budget, or another transaction was faster; try again.

    Of a migration it names the blocking sessions.
    """


class BackfillError(LeadProtectError):
    """The backfill can't start or can't go on; nothing is half done."""


class BackfillStopped(BackfillError):
    """A backfill was stopped from another shell; all its slices are committed."""


class BackfillIncomplete(BackfillError):
    """Leads with a qualifying activity have no owner; `results` tells which, by territory."""

    def __init__(self, message: str, results: tuple[Backfilled, ...] = ()) -> None:
        self.results = results
        super().__init__(message)
