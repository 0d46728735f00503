"""The -x arguments of an Alembic command that are ours."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from alembic import context

from leadprotect.errors import SettingsError
from leadprotect.migration import gate, locks
from leadprotect.settings import duration


@dataclass(frozen=True)
class Options:
    """The -x arguments; `budget` and `wait` in seconds, `accept` conditions of the gate with a share of the leads."""

    contract: str
    accept: tuple[tuple[str, Decimal], ...]
    budget: float
    wait: float


def read_options() -> Options:
    """From contract=auto|require|hold, accept=unowned:0.32, lock_budget=60s and lock_wait=10min.

    Raises `SettingsError`, which names the argument.
    """
    given, accepted = _given()
    unknown = sorted(set(given) - {"contract", "lock_budget", "lock_wait"})
    if unknown:
        raise SettingsError(f"-x {unknown[0]}: unknown; known are contract, accept, lock_budget and lock_wait")
    contract = given.get("contract", "auto")
    if contract not in ("auto", "require", "hold"):
        raise SettingsError(f"-x contract={contract}: only waiting or data opens the gate; use auto, require or hold")
    return Options(
        contract,
        tuple(_accepted(part) for text in accepted for part in text.split(",")),
        duration("-x lock_budget", given["lock_budget"]) if "lock_budget" in given else locks.DEFAULT_BUDGET_S,
        duration("-x lock_wait", given["lock_wait"]) if "lock_wait" in given else locks.DEFAULT_WAIT_S,
    )


def _given() -> tuple[dict[str, str], list[str]]:
    """The arguments by name, and each accept=: the remedies of two conditions stand in one command as they are."""
    given: dict[str, str] = {}
    accepted: list[str] = []
    for name, _, value in (text.partition("=") for text in context.get_x_argument()):
        if name == "accept":
            accepted.append(value)
        elif given.setdefault(name, value) != value:
            raise SettingsError(f"-x {name}={value}: {given[name]} is said before; say {name} once")
    return given, accepted


def _accepted(text: str) -> tuple[str, Decimal]:
    """One of -x accept=unowned:0.32,unprotected:0.6."""
    name, _, share = (part.strip() for part in text.partition(":"))
    if name not in gate.ACCEPTABLE:
        known = f"{', '.join(gate.ACCEPTABLE[:-1])} and {gate.ACCEPTABLE[-1]}"
        raise SettingsError(f"-x accept={text}: {known} can be accepted; write unowned:0.32")
    if not re.fullmatch(r"0(\.\d{1,4})?|1(\.0{1,4})?", share):
        raise SettingsError(
            f"-x accept={text}: {share!r} is no share of the leads; write one between 0 and 1: {name}:0.32"
        )
    return name, Decimal(share)
