"""A rehearsal: the whole migration under live traffic, with every stall measured and shown."""

from leadprotect.lab.rehearsal.result import Figures, Rehearsal
from leadprotect.lab.rehearsal.run import Plan, rehearse

__all__ = ["Figures", "Plan", "Rehearsal", "rehearse"]
