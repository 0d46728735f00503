"""What is known so far of a database that somebody else made: what is proposed, and what is open."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from leadprotect.adoption.called import rank
from leadprotect.errors import SettingsError
from leadprotect.settings import KEYS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import psycopg

    from leadprotect.adoption.survey import HostColumn, HostTable


@dataclass(frozen=True)
class Proposed:
    """A setting with its reason."""

    key: str
    value: str
    reason: str


@dataclass(frozen=True)
class Open:
    """What only a person can tell; `candidates` are what he may mean, the likeliest first."""

    key: str
    question: str
    candidates: tuple[str, ...]


@dataclass
class Proposal:
    """Settings for a database, what is open, and what to know before the first upgrade.

    `hidden` says that rows were, from the login that looked; then what is told by rows is not all.
    """

    proposed: list[Proposed] = field(default_factory=list)
    open: list[Open] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    hidden: str = ""

    @property
    def settings(self) -> dict[str, str]:
        """Key -> value, as section ``[leadprotect]`` has them."""
        return {one.key: one.value for one in self.proposed}


@dataclass
class Look:
    """One look at a database: what is known so far."""

    conn: psycopg.Connection[Any]
    given: dict[str, str]
    guess: bool
    proposal: Proposal = field(default_factory=Proposal)
    tables: dict[str, HostTable] = field(default_factory=dict)
    views: dict[str, HostTable] = field(default_factory=dict)

    def say(self, key: str, value: str | None, reason: str) -> None:
        """Propose a value with its reason, or what was given in its place; None is no proposal."""
        if key in self.given:
            value, reason = self.given[key], "as you said"
        if value is not None and key in KEYS:
            self.proposal.proposed.append(Proposed(key, value, reason))

    def ask(self, key: str, question: str, candidates: Iterable[str], *, plausible: bool = True) -> str | None:
        """The likeliest one where guessing is allowed and the candidates are more than a list; else it stays open."""
        those = tuple(candidates)
        if self.guess and those and plausible:
            return those[0]
        self.proposal.open.append(Open(key, question, those))
        return None

    def column(
        self, key: str, of: HostTable, patterns: tuple[str, ...], fits: Callable[[HostColumn], bool]
    ) -> str | None:
        """The column that a setting names: as given, or the best by its name among those whose type fits."""
        if key in self.given:
            return self.given[key]
        named = ((rank(one.name, patterns), one.name) for one in of.columns.values() if fits(one))
        return next((name for place, name in sorted(named) if place < len(patterns)), None)

    def known(self, key: str, name: str) -> HostTable:
        """A table by its name; raises `SettingsError`, naming `key`, where there is none."""
        if name not in self.tables:
            raise SettingsError(
                f"{key}: there is no table {name}; there are {', '.join(sorted(self.tables)) or 'none'}"
            )
        return self.tables[name]

    def referring(self, one: HostTable) -> list[HostTable]:
        """The other tables with a foreign key to this one."""
        return [other for other in self.tables.values() if one.name in other.refers.values() and other is not one]
