"""What is wrong in a revision: where it stands, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Problem:
    """One finding of a rule: `line` counts from 1."""

    rule: str
    file: Path
    line: int
    problem: str
    solution: str

    def __str__(self) -> str:
        """One line, as a compiler says it."""
        return f"{self.file}:{self.line}: {self.rule}: {self.problem}; {self.solution}"
