"""The verdict over a rollout: good, bad, or not known. No input, no output: the same answers, the same verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime


class Verdict(StrEnum):
    """What may be done next; what is not known is never a reason to go on, nor one to go back."""

    PROCEED = "PROCEED"
    PAUSE = "PAUSE"
    ROLLBACK = "ROLLBACK"
    UNKNOWN = "UNKNOWN"


EXIT = {Verdict.PROCEED: 0, Verdict.PAUSE: 10, Verdict.ROLLBACK: 20, Verdict.UNKNOWN: 30}
"""Verdict -> exit code of a command that ends with it; 21 is a rollback that was refused."""

_WORST_FIRST = (Verdict.ROLLBACK, Verdict.UNKNOWN, Verdict.PAUSE, Verdict.PROCEED)


@dataclass(frozen=True)
class Answer:
    """What one question came to: its text, the value and the threshold in the question's own unit, and why.

    `value` is None where there is none: no series, no server, no right to look. `threshold` is None
    where nothing is compared.
    """

    name: str
    query: str
    value: float | None
    threshold: float | None
    verdict: Verdict
    why: str


@dataclass(frozen=True)
class Evaluation:
    """All answers of one moment (UTC).

    `deadlocks` is what the server had counted at that moment, for the next evaluation to compare with;
    None where it was not asked or could not be.
    """

    at: datetime
    answers: tuple[Answer, ...]
    deadlocks: int | None = None

    @property
    def verdict(self) -> Verdict:
        """A firing rollback wins over data that is missing elsewhere; else the worst; without answers, not known."""
        return worst_verdict({answer.verdict for answer in self.answers})

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is not PROCEED: the answers that say so, those of the verdict first."""
        bad = [answer for answer in self.answers if answer.verdict is not Verdict.PROCEED]
        bad.sort(key=lambda answer: _WORST_FIRST.index(answer.verdict))
        return tuple(f"{answer.name}: {answer.why}" for answer in bad)


def worst_verdict(found: Collection[Verdict]) -> Verdict:
    """The worst of them; of none, not known."""
    return next((verdict for verdict in _WORST_FIRST if verdict in found), Verdict.UNKNOWN)


def finite(value: float | None) -> bool:
    """Whether it can be compared: NaN, which every comparison takes for good, and infinity can't."""
    return value is not None and math.isfinite(value)
