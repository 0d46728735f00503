"""How many rows the next slice takes, so that one lasts 50 ms whatever the database does."""

from __future__ import annotations

TARGET_S = 0.050
"""How long a slice should last: a live write to a lead of the slice waits at most that long."""

CEILING_S = 0.125
"""A slice that lasts longer shrinks the next one at once."""

GROWTH = 1.2
SMALLEST = 100
LARGEST = 20_000
FIRST = 1_000

# weight of the newest slice in the average of the rate; higher follows faster, lower forgives more
_WEIGHT = 0.4


class Controller:
    """Keeps slices at `TARGET_S` seconds from the exponential average of their rate (rows per second).

    Growth is limited to a factor of 1.2 a slice, shrinking is not limited; never below `SMALLEST`
    nor above `LARGEST` rows. From `FIRST` rows it is there within ten slices where 50 ms are at most
    6,000 rows (120,000 rows per second); from `SMALLEST`, after a stall, within 23. A database that
    stalls more often than that is given smaller slices for good: each stall is felt by live writes.
    """

    def __init__(self, rows: int = FIRST) -> None:
        self.rows = min(max(rows, SMALLEST), LARGEST)
        self.rate: float | None = None

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from a slice of `rows` rows that lasted `seconds`, its commit included."""
        if rows <= 0:
            return
        latest = rows / max(seconds, 1e-6)
        if self.rate is None or seconds > CEILING_S:
            self.rate = latest  # what was before a stall tells nothing about now
        else:
            # the short slice at the end of a chunk is mostly fixed cost, and says little about the rate
            self.rate += _WEIGHT * min(rows / self.rows, 1.0) * (latest - self.rate)
        wanted = min(self.rate * TARGET_S, self.rows * GROWTH)
        self.rows = round(min(max(wanted, SMALLEST), LARGEST))


DIVISOR = 8
"""A slice that fell victim is cut into so many parts, down to one row."""


class Bisection:
    """How many rows to take while one of the next rows is locked: an eighth, down to one.

    The part that fails is cut again; once it is passed, or its one row put aside, all is as before.
    """

    def __init__(self) -> None:
        self.rows: int | None = None
        self.locked = 0  # rows in a row that fell victim
        self._rest = 0
        self._slow = False

    def failed(self, rows: int, *, slow: bool) -> None:
        """The slice of `rows` rows fell victim; `slow` if not to a lock but to its own timeout."""
        self.rows, self._rest, self._slow = max(rows // DIVISOR, 1), rows, slow

    def passed(self, rows: int, usual: int) -> None:
        """A slice of `rows` rows was committed; `usual` is what the controller would take."""
        self.locked = 0
        self._rest -= rows
        if self.rows is None or self._rest > 0:
            return
        # after a timeout the next rows are as slow: feel the way back instead of falling again
        self.rows = self.rows * 2 if self._slow and self.rows * 2 < usual else None
        self._rest = self.rows or 0

    def put_aside(self) -> None:
        """The one locked row is out of the way."""
        self.rows = None
