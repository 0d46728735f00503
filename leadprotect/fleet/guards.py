"""A rollout over all databases: a guard of its own for each, one of them first, and what one means for the others.

Each guard is a process that decides about its own database. It says where it stands, and hears what the others make of
it as the answer of one more gate. So nothing is decided twice, and a guard that loses sight of the others pauses.
"""

from __future__ import annotations

import json
import os
import queue
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from leadprotect.errors import InvalidRequest, SettingsError
from leadprotect.fleet.parts import part_of, require_held
from leadprotect.fleet.run import WORKERS, run_on, worst
from leadprotect.gates.heeding import LEAVE
from leadprotect.gates.machine import DONE, ENDS, REFUSED, ROLLED_BACK, Phase
from leadprotect.gates.rollout import Child
from leadprotect.gates.verdict import Verdict
from leadprotect.settings.databases import ON, SECTION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from leadprotect.settings import Settings
    from leadprotect.settings.databases import TerritoryDatabase

PLACE = "{territories}"
"""In a word of the command: takes the name of each database."""

EVENT = "stands"
"""What a guard says for its fleet alone: where it stands, and what its own gates say."""


@dataclass(frozen=True)
class GuardedDatabase:
    """Where the guard of one database stands; `exit_code` is None while it runs, and where it never began.

    `verdict` is that of its own gates, `began` the revision that it would go back to, `following` what to run next.
    """

    territories: tuple[str, ...]
    began_at_all: bool = False
    state: str = ""
    verdict: str = ""
    why: str = ""
    began: str | None = None
    revision: str | None = None
    exit_code: int | None = None
    following: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """By its territories."""
        return "+".join(self.territories)

    @property
    def running(self) -> bool:
        """Whether it was begun and has not ended."""
        return self.began_at_all and self.exit_code is None

    @property
    def ended(self) -> str:
        """How it ended, or that it has not begun, in a word or two."""
        if not self.began_at_all:
            return "not begun"
        if self.exit_code is None:
            return self.state.replace("_", " ")
        return ENDS.get(self.exit_code, f"ended {self.exit_code}").replace("_", " ")


@dataclass(frozen=True)
class FleetOutcome:
    """How a rollout over all databases ended; `exit_code` is the worst of theirs."""

    databases: tuple[GuardedDatabase, ...]
    exit_code: int


# --- what is decided: no clock, no process, no connection


def may_begin(
    all_of_them: Mapping[str, GuardedDatabase], canary: str | None, *, workers: int, together: bool
) -> list[str]:
    """Whose guards begin now: the canary alone, then the others where it is done; of `together` none after trouble."""
    first = all_of_them.get(canary or "")
    if first is not None and not first.began_at_all:
        return [first.name]
    if first is not None and first.exit_code != DONE:
        return []
    if together and any(one.exit_code not in (None, DONE) for one in all_of_them.values()):
        return []
    free = workers - sum(one.running for one in all_of_them.values())
    return [one.name for one in all_of_them.values() if not one.began_at_all][: max(free, 0)]


def heard_from_others(all_of_them: Mapping[str, GuardedDatabase], name: str) -> tuple[str, str]:
    """What the others mean for the database of this name, where all go together: a verdict or `LEAVE`, and why.

    One that goes back takes it along. Of each other only its own gates count: two that wait for each other would
    never go on.
    """
    others = [one for one in all_of_them.values() if one.name != name and one.began_at_all]
    if back := next(filter(_goes_back, others), None):
        return Verdict.ROLLBACK, f"{back.name} goes back: {back.why}"
    if left := next((one for one in others if one.exit_code not in (None, DONE)), None):
        return LEAVE, f"{left.name} {left.ended}: {left.why}"
    if held := next((one for one in others if one.verdict in (Verdict.PAUSE, Verdict.UNKNOWN) and one.running), None):
        return Verdict.PAUSE, f"{held.name} says {held.verdict}: {held.why}"
    return Verdict.PROCEED, ""


def to_go_back(all_of_them: Mapping[str, GuardedDatabase]) -> list[GuardedDatabase]:
    """Those that had ended well before another one went back, and now go back, too."""
    if not any(one.exit_code in (ROLLED_BACK, REFUSED) for one in all_of_them.values()):
        return []
    return [one for one in all_of_them.values() if one.exit_code == DONE and one.revision != one.began]


def had_it_before(all_of_them: Mapping[str, GuardedDatabase]) -> list[tuple[GuardedDatabase, str]]:
    """Those that had everything before this run began, while another one went back, and to which revision that did.

    Where they were before that no run of ours knows, so they are left alone and told.
    """
    back = next((one for one in all_of_them.values() if one.exit_code == ROLLED_BACK and one.began), None)
    if back is None or back.began is None:
        return []
    stay = [one for one in all_of_them.values() if one.exit_code == DONE and one.revision == one.began]
    return [(one, back.began) for one in stay if one.revision != back.began]


def _goes_back(one: GuardedDatabase) -> bool:
    if one.exit_code is not None:
        return one.exit_code in (ROLLED_BACK, REFUSED)
    return one.verdict == Verdict.ROLLBACK or one.state == Phase.ROLLING_BACK


# --- what runs


@dataclass(frozen=True)
class Heard:
    """One thing that the guard of a database said: an event of its JSON, or a line of text."""

    database: str
    event: dict[str, Any] = field(default_factory=dict)
    line: str = ""


_ERROR = "Error: "


class FleetGuard:
    """One rollout of `command` (options of ``leadprotect guard``, ``--`` and what is guarded) over all databases.

    `canary` is the territory whose database goes first. `together`: a pause of one pauses all, a rollback of one takes
    all back; else each is on its own. `tell` hears what each guard says. Raises `SettingsError` without databases,
    `InvalidRequest` for a canary that is none, or a territory that none of them has.
    """

    def __init__(
        self,
        settings: Settings,
        command: Sequence[str],
        *,
        canary: str | None,
        workers: int | None = None,
        together: bool = False,
        goes_back: bool = True,
        dry_run: bool = False,
        tell: Callable[[Heard], None],
        program: Sequence[str] = ("leadprotect",),
    ) -> None:
        if not settings.databases:
            raise SettingsError(f"--fleet: there is no section [{SECTION}]; write into it: DE = postgresql://...")
        found = {one.name: _part(settings, one, command) for one in settings.databases}
        self._commands = {name: words for name, words in found.items() if words is not None}
        self._databases = {one.name: one for one in settings.databases if one.name in self._commands}
        self._canary = self._named(canary) if canary else None
        self._program = tuple(program)
        self._workers, self._together = workers or WORKERS, together
        self._goes_back = together and goes_back and not dry_run
        self._tell = tell
        self._all = {name: GuardedDatabase(one.territories) for name, one in self._databases.items()}
        self._children: dict[str, Child] = {}
        self._said: dict[str, tuple[str, str]] = {}
        self._leaving = ""
        self._queue: queue.SimpleQueue[Heard | tuple[str, int] | str] = queue.SimpleQueue()

    def run(self) -> FleetOutcome:
        """Guard all of them to their end."""
        self._begin()
        while any(one.running for one in self._all.values()):
            self._happened(self._queue.get())
            self._begin()
            if self._together:
                self._pass_on()
        if self._goes_back and not self._leaving:
            for one in to_go_back(self._all):
                self._take_back(one)
            for one, revision in had_it_before(self._all):
                why = f"it had {one.revision} before this run, and stays there, while another one went back"
                following = f"leadprotect --on {one.territories[0]} rollback --to {revision}"
                self._all[one.name] = replace(one, why=why, following=(following,))
                self._tell(Heard(one.name, line=f"{why}; to take it back, too: {following}"))
        found = tuple(one if one.began_at_all else replace(one, why=self._why_not()) for one in self._all.values())
        codes = [one.exit_code for one in found if one.exit_code is not None]
        return FleetOutcome(found, worst("guard", codes))

    def interrupt(self, why: str) -> None:
        """Leave, as soon as each guard has stopped what it runs; from any thread or signal handler."""
        self._queue.put(why)

    def _why_not(self) -> str:
        if self._leaving:
            return self._leaving
        first = self._all.get(self._canary or "")
        if first is not None and first.exit_code != DONE:
            return f"{first.name} went first, and ended {first.ended}"
        return "another one did not end well"

    def _named(self, territory: str) -> str:
        for name, one in self._databases.items():
            if territory in one.territories:
                return name
        known = ", ".join(code for one in self._databases.values() for code in one.territories)
        raise InvalidRequest(f"--canary: {territory!r} is in no database of [{SECTION}]; those hold {known}")

    def _begin(self) -> None:
        names = may_begin(self._all, self._canary, workers=self._workers, together=self._together)
        for name in names if not self._leaving else ():
            self._start(name, self._databases[name])

    def _start(self, name: str, one: TerritoryDatabase) -> None:
        words = (
            *self._program,
            "guard",
            "--json",
            "--heed",
            *(word.replace(PLACE, name) for word in self._commands[name]),
        )
        child = Child(
            words,
            lambda line: self._queue.put(_read(name, line)),
            lambda code: self._queue.put((name, code)),
            environment=os.environ | {ON: one.territories[0], "PYTHONUNBUFFERED": "1"},
            listens=True,
        )
        self._all[name] = replace(self._all[name], began_at_all=True)
        self._children[name] = child
        child.start()

    def _happened(self, what: Heard | tuple[str, int] | str) -> None:
        if isinstance(what, str):
            self._leaving = self._leaving or what
            for child in self._children.values():
                child.interrupt()
            return
        if isinstance(what, tuple):
            name, code = what
            self._ended(name, code)
            return
        if what.event.get("event") == EVENT:
            stands = {key: value for key, value in what.event.items() if key != "event"}
            self._all[what.database] = replace(self._all[what.database], **stands)
            return
        if what.event.get("event") == "ended":
            following = tuple(_said_of(self._databases[what.database], line) for line in what.event["following"])
            what.event["following"] = following
            self._all[what.database] = replace(self._all[what.database], why=what.event["why"], following=following)
        self._tell(what)

    def _ended(self, name: str, code: int) -> None:
        child, one = self._children[name], self._all[name]
        refused = next((line for line in child.last if line.startswith(_ERROR)), child.why).removeprefix(_ERROR)
        why = one.why if one.state else refused  # one that never stood anywhere said so in text
        self._all[name] = replace(one, exit_code=code if code >= 0 else 128 - code, why=why)

    def _pass_on(self) -> None:
        for name, child in self._children.items():
            word = heard_from_others(self._all, name)
            if self._all[name].running and self._said.get(name, (Verdict.PROCEED, "")) != word:
                self._said[name] = word
                child.say(f"{word[0]} {' '.join(word[1].split())}")

    def _take_back(self, one: GuardedDatabase) -> None:
        words = ("rollback", "--to", one.began or "base")
        done = run_on(self._databases[one.name], words, lambda _, line: self._tell(Heard(one.name, line=line)))
        code, why = (ROLLED_BACK, "another one went back") if done.exit_code == 0 else (REFUSED, " ".join(done.errors))
        following = () if code == ROLLED_BACK else (f"leadprotect --on {one.territories[0]} {' '.join(words)}",)
        revision = one.began if code == ROLLED_BACK else one.revision
        self._all[one.name] = replace(one, exit_code=code, why=why, revision=revision, following=following)


def _part(settings: Settings, one: TerritoryDatabase, command: Sequence[str]) -> tuple[str, ...] | None:
    """The command for one database: a backfill of territories that it names is one of those that are there."""
    if "backfill" not in command:
        return tuple(command)
    at = list(command).index("backfill")
    require_held(settings, command[at:])
    part = part_of(one, command[at:])
    return None if part is None else (*command[:at], *part)


def _said_of(one: TerritoryDatabase, line: str) -> str:
    """What to run, on this database."""
    return line.replace("leadprotect ", f"leadprotect --on {one.territories[0]} ", 1)


def _read(name: str, line: str) -> Heard:
    try:
        event = json.loads(line)
    except ValueError:
        return Heard(name, line=line)
    return Heard(name, event) if isinstance(event, dict) and "event" in event else Heard(name, line=line)
