"""What each part costs as the leads grow, and what ten times the most would take, reckoned from that."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import log10
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg

import leadprotect
from leadprotect import phases
from leadprotect.audit.history import attempts
from leadprotect.audit.seals import seal
from leadprotect.audit.verification import verify_audit
from leadprotect.lab.bench.access import CHECK, JOIN
from leadprotect.lab.bench.backfill import check_disk
from leadprotect.lab.bench.clock import Case, backend_seconds
from leadprotect.lab.bench.comparison import DATABASE, LOGIN, Bench, asking, asking_to, undone
from leadprotect.lab.commands import isolated, run_alembic, run_to_end
from leadprotect.lab.data import generate_host, generated_user
from leadprotect.migration import gate
from leadprotect.settings import current

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from leadprotect.lab.servers import Server

OWNER = generated_user(0)

# a row for each lead, as an assertion writes it; two chains, whose numbers alternate
ATTEMPTS = f"""
    INSERT INTO leadprotect.lead_access_audit
      (lead_id, user_id, login, role, territory, action, outcome, reason, note, basis)
    SELECT l.id, '{OWNER}', '{LOGIN}', 'none', l.territory, 'EDIT', 'ALLOW', 'owner',
           CASE WHEN random() < 0.3 THEN 'asked for by the customer' END, 'assignment'
    FROM public.leads AS l WHERE l.territory IS NOT NULL
    """
_SAMPLE_S = 0.05

PLAN_S = 3.0
"""What whoever is about to deploy waits for it."""


@dataclass(frozen=True)
class Growth:
    """A part at each number of leads, in their order; `linear` where it grows with them, else it should stay flat.

    `figure` is what the value at a million must not be above, or must reach where `more` is better.
    """

    what: str
    unit: str
    values: tuple[float, ...]
    linear: bool
    figure: float | None = None
    more: bool = False

    def step(self) -> float:
        """How many times the value before it the last one is."""
        return self.values[-1] / self.values[-2] if len(self.values) > 1 and self.values[-2] else 1.0

    def reckoned(self, times: float, last: float) -> float:
        """At `times` as many leads, where the last number of them was `last` times the one before.

        What does not grow with them grows as a tree and the misses of a cache do: by as much for each such step.
        """
        if self.linear:
            return self.values[-1] * times
        if last <= 1:
            return self.values[-1]
        costs = [1 / value if self.more else value for value in self.values[-2:]]
        cost = costs[-1] + max(costs[-1] - costs[0], 0.0) * log10(times) / log10(last)
        return 1 / cost if self.more else cost


@dataclass(frozen=True)
class _Part:
    value: float
    unit: str
    linear: bool
    figure: float | None = None
    more: bool = False


def measure_scale(server: Server, counts: list[int], *, blocks: int, say: Callable[[str], None]) -> list[Growth]:
    """Generate each number of leads with five activities each, and measure every part."""
    check_disk(max(counts))
    found = [_measured(server, count, blocks, say) for count in counts]
    return [
        Growth(what, part.unit, tuple(one[what].value for one in found), part.linear, part.figure, part.more)
        for what, part in found[-1].items()
    ]


def _measured(server: Server, leads: int, blocks: int, say: Callable[[str], None]) -> dict[str, _Part]:
    url = server.create_database(DATABASE)
    bench = Bench(server, f"PostgreSQL {server.major}", leads, blocks)
    parts: dict[str, _Part] = {}
    with isolated(server.folder, database_url=url, observation_window=0), psycopg.connect(url, autocommit=True) as conn:
        say(f"{leads:,} leads: generating")
        if conn.execute("SELECT FROM pg_roles WHERE rolname = %s", (LOGIN,)).fetchone() is None:
            conn.execute(f"CREATE ROLE {LOGIN} LOGIN")
        generate_host(conn, leads)
        for what, part in (("upgrade and backfill", _moved), ("checks and edits", _asked), ("audit", _audited)):
            say(f"{leads:,} leads: {what}")
            parts |= part(bench, conn, url)
        down = _took(server, "downgrade", phases.before("contract")[-1])
        parts["downgrade to before contract, with two index builds"] = _Part(down, "s", linear=True)
    return parts


def _took(server: Server, *arguments: str) -> float:
    """Seconds of an Alembic command, without those of one that only looks."""
    began = time.perf_counter()
    run_alembic(server.folder, "current")
    started = time.perf_counter()
    run_alembic(server.folder, *arguments)
    return max(time.perf_counter() - started - (started - began), 0.0)


def _moved(bench: Bench, conn: psycopg.Connection[Any], url: str) -> dict[str, _Part]:
    settings = current()
    first = _planned(bench.server)
    upgrade = _took(bench.server, "-x", "contract=hold", "upgrade", "head")
    begin = time.perf_counter()
    leadprotect.backfill(url, ["DE", "CH"], settings=settings)
    filled = time.perf_counter()
    conn.execute("VACUUM (ANALYZE)")
    with psycopg.connect(url, autocommit=True) as own:
        asked = time.perf_counter()
        gate.conditions(own, settings=settings)
        asked = time.perf_counter() - asked
    planned = _planned(bench.server)
    conn.execute(f"GRANT leadprotect_app, leadprotect_de TO {LOGIN}; GRANT SELECT, UPDATE ON public.leads TO {LOGIN}")
    accepted = ("-x", "accept=unowned:1,unprotected:1", "-x", "contract=require")
    contract = _took(bench.server, *accepted, "upgrade", "head")
    conn.execute("CREATE TABLE public.plain_leads (LIKE public.leads INCLUDING ALL)")
    conn.execute("INSERT INTO public.plain_leads SELECT * FROM public.leads")
    conn.execute(f"GRANT SELECT, UPDATE ON public.plain_leads TO {LOGIN}")
    conn.execute("VACUUM (ANALYZE)")
    return {
        "plan, before the first revision": _Part(first, "s", linear=False, figure=PLAN_S),
        "plan, before contract": _Part(planned, "s", linear=True, figure=PLAN_S),
        "upgrade before contract, with two index builds": _Part(upgrade, "s", linear=True),
        "backfill, one worker, verified": _Part(filled - begin, "s", linear=True),
        "gate, asked once": _Part(asked, "s", linear=True),
        "contract, which asks the gate five times": _Part(contract, "s", linear=True),
    }


def _planned(server: Server) -> float:
    """Seconds of the command, its start among them; that it would stop at the gate is no failure."""
    began = time.perf_counter()
    run_to_end(("leadprotect", "plan"), folder=server.folder, heard=lambda _: None)
    return time.perf_counter() - began


def _asked(bench: Bench, conn: psycopg.Connection[Any], _url: str) -> dict[str, _Part]:
    owned = "SELECT lead_id FROM leadprotect.user_lead_assignments WHERE user_id = %s AND territory = 'DE' LIMIT 1000"
    own = [str(lead) for (lead,) in conn.execute(owned, (OWNER,))]
    ids = [[UUID(lead) for lead in own]]
    by_ids = "UPDATE public.{} SET company = company WHERE id = ANY (%b::uuid[])"
    who = "SELECT * FROM leadprotect.who_could_edit(%s::uuid, now())"
    with bench.connections(OWNER) as bound, bench.connections(login="postgres") as free:
        cases = {
            "two rows by key, joined": Case(one := free(), asking(one, JOIN, own)),
            "check": Case(two := bound(), asking(two, CHECK, own)),
            "assertion with its record": Case(
                three := bound(), asking_to(three, "SELECT leadprotect.assert_edit_and_audit(%s::uuid)", own)
            ),
            "a page of 50 own leads": Case(
                four := bound(), asking(four, "SELECT * FROM leadprotect.editable_leads(%s::uuid, 50)", own), 20
            ),
            "UPDATE of 1,000 own leads by ids": Case(five := bound(), undone(five, by_ids.format("leads"), ids), 1),
            "the same unprotected": Case(six := bound(), undone(six, by_ids.format("plain_leads"), ids), 1),
            "who could edit a lead": Case(seven := free(), asking(seven, who, own), 20),
        }
        cost = bench.cost(cases)
    return {what: _Part(sorted(found)[len(found) // 2], "us", linear=False) for what, found in cost.items()}


def _audited(bench: Bench, conn: psycopg.Connection[Any], url: str) -> dict[str, _Part]:
    del bench
    conn.execute(ATTEMPTS)
    conn.execute("VACUUM (ANALYZE) leadprotect.lead_access_audit")
    (rows,) = conn.execute("SELECT count(*) FROM leadprotect.lead_access_audit").fetchone() or (0,)
    parts: dict[str, _Part] = {}
    acts: dict[str, Callable[[Any], object]] = {"seal": seal, "verify": verify_audit, "seal with nothing to do": seal}
    for what, act in acts.items():
        with psycopg.connect(url) as own:
            begin, used = time.perf_counter(), backend_seconds(own.info.backend_pid)
            with _memory(own.info.backend_pid) as most:
                act(own)
            took, used = time.perf_counter() - begin, backend_seconds(own.info.backend_pid) - used
        if what == "seal with nothing to do":
            parts[what] = _Part(took, "s", linear=True)
        else:
            parts[what] = _Part(rows / took, "rows/s", linear=False, figure=100_000.0, more=True)
            parts[f"{what}, CPU of the backend a million rows"] = _Part(used / rows * 1e6, "s", linear=False)
        parts[f"{what}, memory of the backend"] = _Part(most[0], "MiB", linear=False)
    with psycopg.connect(url) as own:
        begin = time.perf_counter()
        attempts(own)
        parts["the newest 100 attempts"] = _Part(time.perf_counter() - begin, "s", linear=True)
    return parts


@contextmanager
def _memory(pid: int) -> Iterator[list[float]]:
    """The most MiB of its own that a backend has meanwhile; the pages of shared buffers are everybody's."""
    most, ended = [0.0], threading.Event()

    def sample() -> None:
        while not ended.wait(_SAMPLE_S):
            with suppress(OSError):  # a process that is gone has none
                status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
                most[0] = max(most[0], int(status.split("RssAnon:")[1].split()[0]) / 1024)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()
