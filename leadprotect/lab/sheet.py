"""A table as it is meant; how wide a terminal is, and what folds there, is known where it is printed."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Sheet:
    """Columns by their names: those of `numbers` stand right, those of `folds` may be folded at words."""

    header: tuple[str, ...]
    title: str = ""
    numbers: tuple[str, ...] = ()
    folds: tuple[str, ...] = ()
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        """One row more."""
        self.rows.append(cells)
