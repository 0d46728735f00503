"""What several databases cost: a command on all of them, a list of leads on two, and leads that move between them.

Two embedded servers, each with the leads of a territory; nothing of it is about a machine beyond this one.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg

import leadprotect
from leadprotect import processes
from leadprotect.access.among import LeadList
from leadprotect.backfilling.run import backfill
from leadprotect.errors import LeadProtectError
from leadprotect.fleet.move import move
from leadprotect.lab import servers
from leadprotect.lab.commands import inherited, isolated, run_alembic
from leadprotect.lab.sheet import Sheet
from leadprotect.lab.traffic import Application, Statements, live_traffic, quantile
from leadprotect.settings import parse
from leadprotect.settings.files import CONFIG, write_ini

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from leadprotect.lab.servers import Server
    from leadprotect.settings import Settings

CODES = ("DE", "CH")
LEAD_TABLES = "public.activities (lead_id), public.contacts (lead_id)"
OWNER = UUID(int=1)
MANAGER = UUID(int=9)
LIVE_LEADS = 500
LIVE_RATE = 60.0
"""Transactions a second on the server that the leads leave: checks, asserted edits, lists, activities."""

_HOST = """
CREATE TABLE public.leads (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), territory text NOT NULL, city text);
CREATE TABLE public.activities (id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  lead_id uuid NOT NULL REFERENCES public.leads ON DELETE CASCADE, user_id uuid, kind text, created_at timestamptz);
CREATE TABLE public.contacts (id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  lead_id uuid NOT NULL REFERENCES public.leads ON DELETE CASCADE, name text);
"""
_LEADS = """
INSERT INTO public.leads (territory, city) SELECT '{code}', 'Ort ' || n FROM generate_series(1, {leads}) AS n;
INSERT INTO public.contacts (lead_id, name) SELECT l.id, 'Muster' FROM public.leads AS l, generate_series(1, 2);
INSERT INTO public.activities (lead_id, user_id, kind, created_at)
SELECT l.id, '{owner}', 'QUALIFIED_CALL', '2026-01-01' FROM public.leads AS l;
CREATE INDEX ON public.activities (lead_id);
CREATE INDEX ON public.contacts (lead_id);
"""
_LOGINS = """
CREATE ROLE boss LOGIN IN ROLE leadprotect_app, leadprotect_manager, leadprotect_{suffix};
CREATE ROLE service LOGIN IN ROLE leadprotect_app, leadprotect_{suffix};
GRANT SELECT, INSERT, UPDATE, DELETE ON public.leads, public.contacts, public.activities TO boss, service
"""


@dataclass(frozen=True)
class FleetFigure:
    """One thing that was measured; `figure` is what it must not be above, None where it is told beside another one."""

    what: str
    measured: float
    unit: str
    figure: float | None = None
    beside: str = ""

    @property
    def reached(self) -> bool:
        """Whether it is not above its figure."""
        return self.figure is None or self.measured <= self.figure


@dataclass(frozen=True)
class _Fleet:
    folder: Path
    urls: dict[str, str]
    owned: dict[str, list[str]]

    def settings(self, login: str) -> Settings:
        """Of both databases, as this login."""
        given = {"territories": ", ".join(CODES), "lead_tables": LEAD_TABLES, "observation_window": "0"}
        return parse(given, {}, {code: url.replace("postgres@", f"{login}@") for code, url in self.urls.items()})


def measure_fleet(
    folder: Path, *, leads: int, moved: int, rounds: int, at_once: int, say: Callable[[str], None]
) -> list[FleetFigure]:
    """Each figure of a fleet of two: `leads` on each server, of which `moved` leave the first one in slices.

    `folder` takes the settings of the run. Raises `LeadProtectError` where something is not as it must be.
    """
    with ExitStack() as stack:
        started = {code: stack.enter_context(servers.embedded(servers.SIZED)) for code in CODES}
        say(f"{leads:,} leads on each of two servers: upgrade, backfill, contract")
        fleet = _fleet(folder, started, leads + 400 + LIVE_LEADS)
        say(f"status on both and on each, {rounds} rounds")
        found = _overhead(fleet, rounds)
        say("can_edit_many of 1,000 leads")
        found += _many(fleet, rounds * 10)
        say("hand-overs, one by one")
        lines = iter(fleet.owned["DE"][LIVE_LEADS:])
        found += _handed_over(fleet, [next(lines) for _ in range(30)], [next(lines) for _ in range(250)])
        say(f"{moved:,} in slices of {at_once}, with live traffic")
        found += _live(fleet, [next(lines) for _ in range(moved)], at_once)
        return found


def _fleet(folder: Path, started: dict[str, Server], leads: int) -> _Fleet:
    urls, owned = {}, {}
    for code, server in started.items():
        urls[code] = server.create_database("crm")
        with psycopg.connect(urls[code], autocommit=True) as conn:
            conn.execute(_HOST.encode())
            conn.execute(_LEADS.format(code=code, leads=leads, owner=OWNER).encode())
            given = {"database_url": urls[code], "territories": code, "lead_tables": LEAD_TABLES}
            with isolated(server.folder, observation_window=0, **given):
                run_alembic(server.folder, "-x", "contract=hold", "upgrade", "head")
                backfill(urls[code], [code])
                conn.execute(_LOGINS.format(suffix=code.lower()).encode())
                run_alembic(server.folder, "-x", "contract=require", "upgrade", "head")
            conn.execute("VACUUM (ANALYZE)")
            owned[code] = [lead for (lead,) in conn.execute("SELECT id::text FROM public.leads ORDER BY random()")]
    return _Fleet(folder, urls, owned)


def _overhead(fleet: _Fleet, rounds: int) -> list[FleetFigure]:
    """The command on both, beside the slower one alone; in turn, each in a process as a user runs it."""
    file = write_ini(
        fleet.folder, {"leadprotect.databases": fleet.urls}, territories=", ".join(CODES), lead_tables=LEAD_TABLES,
        observation_window="0",
    )  # fmt: skip
    cases = {code: ("--on", code, "status", "--json") for code in CODES} | {"both": ("--fleet", "status", "--json")}
    times: dict[str, list[float]] = {name: [] for name in cases}
    for name in _in_turn(cases, rounds):
        began = time.perf_counter()
        done = processes.run_program(
            [sys.executable, "-P", "-m", "leadprotect", *cases[name]], env=inherited({CONFIG: str(file)})
        )
        times[name].append(time.perf_counter() - began)
        if done.returncode:
            raise LeadProtectError(f"{' '.join(cases[name])} ended with exit code {done.returncode}: {done.stderr}")
    middle = {name: statistics.median(values) for name, values in times.items()}
    slower = max(middle[code] for code in CODES)
    both = f"{middle['both']:.2f} s against {slower:.2f} s"
    return [FleetFigure("--fleet status, against the slower database", middle["both"] / slower, "times", 1.1, both)]


def _many(fleet: _Fleet, rounds: int) -> list[FleetFigure]:
    """Half as many leads of each server alone, and of both together; beside it what two servers allow on this machine.

    That is the floor: the same rows read by their keys, sent to both and then read, with no work of ours in between.
    """
    halves = {code: [(code, lead) for lead in fleet.owned[code][:500]] for code in CODES}
    asked = halves | {"both": random.sample([one for half in halves.values() for one in half], 1000)}

    def answered(name: str) -> None:
        answers = leadprotect.can_edit_many(leadprotect.route, asked[name], user_id=OWNER)
        if not all(answers.values()):
            raise LeadProtectError("can_edit_many denied a lead of its owner; its figures are of no use: report it")

    with ExitStack() as stack:
        stack.enter_context(_routed(fleet.settings("service")))
        conns = {code: stack.enter_context(psycopg.connect(fleet.urls[code])) for code in CODES}
        keys = {code: LeadList([lead for _, lead in half]).value(conns[code]) for code, half in halves.items()}

        def read(*codes: str) -> None:
            with ExitStack() as sent:
                for code in codes:
                    sent.enter_context(conns[code].pipeline())
                cursors = [conns[code].execute(_BY_KEY, (keys[code],)) for code in codes]
                if {cursor.fetchone() for cursor in cursors} != {(500,)}:
                    raise LeadProtectError("leads are missing; the figures of can_edit_many are of no use: report it")

        cases: dict[str, Callable[[], None]] = {name: partial(answered, name) for name in asked}
        cases |= {f"floor {code}": partial(read, code) for code in CODES} | {"floor both": partial(read, *CODES)}
        times: dict[str, list[float]] = {name: [] for name in cases}
        client: dict[str, list[float]] = {name: [] for name in cases}
        for name in _in_turn(cases, rounds + 10):
            began, worked = time.perf_counter(), time.process_time()
            cases[name]()
            client[name].append(time.process_time() - worked)
            times[name].append(time.perf_counter() - began)
    middle = {name: 1000 * statistics.median(values[10:]) for name, values in times.items()}
    own = 1000 * statistics.median(client["both"][10:])

    def against_half(what: str, kind: str, figure: float | None, more: str = "") -> FleetFigure:
        both, slower = middle[f"{kind}both"], max(middle[f"{kind}{code}"] for code in CODES)
        return FleetFigure(what, both / slower, "times", figure, f"{both:.1f} ms against {slower:.1f} ms{more}")

    return [
        against_half(
            "can_edit_many of 1,000 on two servers, against the slower half",
            "",
            1.2,
            f"; {own:.1f} ms CPU of the client",
        ),
        against_half("the same leads read by key on both, against the slower half of that", "floor ", None),
    ]


_BY_KEY = "SELECT count(l.territory) FROM public.leads AS l WHERE l.id = ANY (%b::uuid[])"


@contextmanager
def _routed(settings: Settings) -> Iterator[None]:
    leadprotect.settings.configured(settings)
    try:
        yield
    finally:
        leadprotect.dispose_routes()
        leadprotect.settings.current.cache_clear()


def _handed_over(fleet: _Fleet, alone: Sequence[str], together: Sequence[str]) -> list[FleetFigure]:
    s = fleet.settings("boss")
    single = []
    for lead in alone:
        began = time.perf_counter()
        _move(s, [lead], at_once=1)
        single.append(time.perf_counter() - began)
    at: list[float] = [time.perf_counter()]
    _move(s, together, at_once=1, tell=lambda *_: at.append(time.perf_counter()))
    each = sorted(1000 * (b - a) for a, b in pairwise(at[20:]))
    calls = sorted(1000 * one for one in single[5:])
    return [
        FleetFigure("hand-over of a lead, p50", quantile(each, 0.5), "ms", 20.0, f"p95 {quantile(each, 0.95):.1f} ms"),
        FleetFigure("a run of one lead, connections and catalogs included, p50", quantile(calls, 0.5), "ms"),
    ]


def _move(s: Settings, leads: Sequence[str], **how: Any) -> None:
    done = move(s, leads, to="CH", origin="DE", actor=MANAGER, **how)
    if done.moved != len(leads):
        raise LeadProtectError(f"{len(done.refused)} leads did not move: {done.refused[0].why}")


def _live(fleet: _Fleet, leads: Sequence[str], at_once: int) -> list[FleetFigure]:
    """The same traffic without a move and with it; it works on leads that stay."""
    edit = "UPDATE public.leads SET city = city WHERE id = %s"
    act = (
        "INSERT INTO public.activities (lead_id, user_id, kind, created_at) "
        "SELECT a.lead_id, a.user_id, a.kind, now() FROM public.activities AS a WHERE a.lead_id = %s LIMIT 1"
    )
    stay = fleet.owned["DE"][:LIVE_LEADS]
    url = fleet.urls["DE"].replace("postgres@", "service@")
    app = Application(
        "new", url, LIVE_RATE, Statements(edit, act, "SELECT FROM public.leads WHERE id = %s"),
        [(lead, "DE") for lead in stay], stay, sessions=4, limits="SET lock_timeout = '250ms'", every_due=True,
    )  # fmt: skip
    given = {"database_url": fleet.urls["DE"], "territories": ", ".join(CODES), "lead_tables": LEAD_TABLES}
    with isolated(fleet.folder, observation_window=0, **given), live_traffic(app, dict(os.environ)) as served:
        time.sleep(5.0)
        quiet, began = time.time(), time.perf_counter()
        time.sleep(15.0)
        since, began = time.time(), time.perf_counter()
        _move(fleet.settings("boss"), leads, at_once=at_once)
        seconds, until = time.perf_counter() - began, time.time()
    before = _p99([one for one in served.done if quiet <= one.at < since])
    during = [one for one in served.done if since <= one.at <= until]
    failed = sum(one.outcome in ("error", "unavailable") for one in during)
    moved = f"{len(leads):,} moved in slices of {at_once}"
    return [
        FleetFigure(
            f"live p99 while {moved}", _p99(during), "ms", 10.0, f"{before:.1f} ms before, {len(during):,} done"
        ),
        FleetFigure(f"live transactions that failed while {moved}", failed, "", 0),
        FleetFigure(f"leads a second, {moved}", len(leads) / seconds, "", None, f"{seconds:.0f} s"),
    ]


def _p99(done: Sequence[Any]) -> float:
    return quantile(sorted(1000 * one.seconds for one in done), 0.99)


def _in_turn(cases: dict[str, Any], rounds: int) -> Iterator[str]:
    for _ in range(rounds):
        yield from random.sample([*cases], len(cases))


def fleet_table(found: Sequence[FleetFigure]) -> Sheet:
    """What was measured, beside what it must not be above."""
    shown = Sheet(
        ("what", "measured", "figure", "beside"), "Fleet of two", ("measured", "figure"), folds=("what", "beside")
    )
    for one in found:
        figure = "" if one.figure is None else f"{one.figure:g}" + ("" if one.reached else " missed")
        shown.add(one.what, f"{one.measured:,.2f} {one.unit}".rstrip(), figure, one.beside)
    return shown
