"""What a backfill found, did and would do: the answers of `leadprotect.backfill` and of the commands about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True)
class Locked:
    """A lead that somebody else held until the end, and the sessions that did, in one line."""

    territory: str
    lead_id: Any
    blockers: str


@dataclass(frozen=True)
class Verified:
    """What the data says about a territory.

    `ownerless` leads have no qualifying activity, `released` ones were released by hand; `missing`
    ones should have an owner, `stale` ones should have another, `differing` ones name somebody else than their owner
    in the host's own column, where the two are one: after contract. Of those the first are named.
    """

    territory: str
    ownerless: int
    released: int
    missing: int
    stale: int
    missing_leads: tuple[Any, ...]
    stale_leads: tuple[Any, ...]
    differing: int = 0
    differing_leads: tuple[Any, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every lead with a qualifying activity has the owner that the newest one, and its column, names."""
        return not (self.missing or self.stale or self.differing)


@dataclass(frozen=True)
class Estimate:
    """What a backfill of a territory would do, from a sample of `sampled` leads; seconds and bytes."""

    territory: str
    leads: int
    sampled: int
    assignable: int
    ownerless: int
    seconds: float
    wal_bytes: int


@dataclass(frozen=True)
class Backfilled:
    """What a backfill did in one territory; all counts are leads.

    `scanned` and `assigned` count the whole walk, with interrupted runs and other machines;
    `locked` names those that somebody held until the end, `verified` is asked of the data.
    """

    territory: str
    scanned: int
    assigned: int
    locked: tuple[Locked, ...]
    verified: Verified
    without_territory: int


@dataclass(frozen=True)
class Job:
    """The backfill of one territory; leads, and times with time zone.

    `state` is new, running (or interrupted: nobody holds a lease), paused, stopped or done.
    `workers` counts leases that are not over.
    """

    territory: str
    state: str
    started_at: datetime | None
    ended_at: datetime | None
    scanned: int
    assigned: int
    deferred: int
    total: int
    workers: int
    request_reason: str | None
