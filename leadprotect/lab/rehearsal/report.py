"""One HTML file of a rehearsal, with its data, its charts and nothing from anywhere else."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadprotect.lab.rehearsal.steps import BUILDS
from leadprotect.lab.rehearsal.watching import EVERY_S
from leadprotect.page import fill

if TYPE_CHECKING:
    from leadprotect.lab.rehearsal.result import Rehearsal
    from leadprotect.lab.rehearsal.steps import Step
    from leadprotect.lab.rehearsal.watching import Sample
    from leadprotect.lab.traffic import Done

TEMPLATE = Path(__file__).with_name("report.html")
BUCKET_S = 0.1
SLOWEST = 12
MOST_ERRORS = 100
METADATA_S = DOWNGRADE_S = 5.0
GATE_S = 2.0
_GAP_S = 4 * EVERY_S  # samples nearer to each other are one span


def write_report(rehearsal: Rehearsal, file: Path) -> None:
    """Write the report; the folder must be there."""
    file.write_text(fill(TEMPLATE, report_data(rehearsal)), encoding="utf-8")


def report_data(r: Rehearsal) -> dict[str, Any]:
    """What the report shows; times in seconds since the begin, latencies in milliseconds."""
    against = r.verdict()
    return {
        "database": r.database,
        "server": r.server,
        "leads": r.leads,
        "activities": r.activities,
        "began": datetime.fromtimestamp(r.began, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "seconds": round(r.ended - r.began, 2),
        "budget": round(1000 * r.budget),
        "writer": r.writer,
        "reader": r.reader,
        "looks": r.looks,
        "against": against,
        "notes": r.notes,
        "figures": told_figures(r),
        "steps": [_step(r, step) for step in r.steps],
        "latency": {version: _buckets(r, version) for version in ("old", "new")},
        "locks": {name: _spans(r, name) for name in ("leads", "activities")},
        "long": [[name, _since(r, began), _since(r, ended)] for name, began, ended in r.long],
        "kinds": [
            {"version": k.version, "kind": k.kind.replace("_", " "), "count": k.count, "outcomes": k.outcomes}
            | {"p50": _ms(k.p50), "p99": _ms(k.p99), "longest": _ms(k.longest)}
            for k in r.kinds()
        ],
        "slowest": [_told(r, one) for one in r.stalls(SLOWEST)],
        "errors": [_told(r, one) for one in r.errors()[:MOST_ERRORS]],
    }


def told_figures(r: Rehearsal) -> list[dict[str, Any]]:
    """The figures with what they may be: name, value as text, limit as text, whether it is kept (None: no limit)."""
    f = r.figures()
    return [
        _figure(
            "Longest stall",
            f"{1000 * f.longest_stall:.0f} ms",
            f"{1000 * r.budget:.0f} ms",
            f.longest_stall <= r.budget,
        ),
        _figure("Errors", f"{f.errors}", f"{r.allowed}", f.errors <= r.allowed),
        _figure("Metadata steps, in all", f"{f.metadata:.2f} s", f"{METADATA_S:.0f} s", f.metadata <= METADATA_S),
        _figure("Downgrade", f"{f.downgrade:.2f} s", f"{DOWNGRADE_S:.0f} s", f.downgrade <= DOWNGRADE_S),
        _figure("Gate query", f"{f.gate:.2f} s", f"{GATE_S:.0f} s", f.gate <= GATE_S),
        _figure("Transactions", f"{f.transactions:,}", "", None),
    ]


def _figure(name: str, value: str, limit: str, kept: bool | None) -> dict[str, Any]:  # noqa: FBT001 - a column of the table above
    return {"name": name, "value": value, "limit": limit, "kept": kept}


def _step(r: Rehearsal, step: Step) -> dict[str, Any]:
    stalls = [one.seconds for one in r.done if step.began <= one.at <= step.ended]
    return {
        "title": step.title,
        "command": step.command,
        "begin": _since(r, step.began),
        "end": _since(r, step.ended),
        "code": step.code,
        "longest": _ms(max(stalls, default=0.0)),
        "transactions": len(stalls),
        "warnings": [line for _, line in step.lines if "alembic.runtime" not in line],
        "revisions": [
            {"name": one.name, "begin": _since(r, one.began), "end": _since(r, one.ended), "attempts": one.attempts}
            | {"seconds": round(one.seconds, 3), "waited": round(one.waited, 2), "builds": one.name in BUILDS}
            for one in step.revisions
        ],
    }


def _buckets(r: Rehearsal, version: str) -> list[list[float]]:
    """Time, longest latency and median of each tenth of a second that had any."""
    found: dict[int, list[float]] = {}
    for one in r.done:
        if one.version == version:
            found.setdefault(int((one.at - r.began) / BUCKET_S), []).append(one.seconds)
    return [
        [round(number * BUCKET_S, 1), _ms(max(values)), _ms(sorted(values)[len(values) // 2])]
        for number, values in sorted(found.items())
    ]


def _spans(r: Rehearsal, name: str) -> list[list[Any]]:
    """Begin, end, mode, whether it was granted, most sessions, and who: samples that follow each other in one."""
    open_spans: dict[tuple[str, bool], list[Any]] = {}
    spans = []
    for sample in r.samples:
        if sample.table != name:
            continue
        key = (sample.mode, sample.granted)
        span = open_spans.get(key)
        if span is not None and sample.at - span[1] <= _GAP_S:
            span[1], span[4] = sample.at, max(span[4], sample.sessions)
            continue
        span = [sample.at, sample.at, sample.mode.removesuffix("Lock"), sample.granted, sample.sessions, sample.who]
        open_spans[key] = span
        spans.append(span)
    return [[_since(r, begin), _since(r, end + EVERY_S), *rest] for begin, end, *rest in spans]


def _told(r: Rehearsal, one: Done) -> dict[str, Any]:
    ended = one.at + one.seconds
    step = next((s for s in r.steps if s.began <= ended and one.at <= s.ended), None)
    revision = next((v for s in r.steps for v in s.revisions if v.began <= ended and one.at <= v.ended), None)
    return {
        "at": _since(r, one.at),
        "ms": _ms(one.seconds),
        "what": f"{one.version} version: {one.kind.replace('_', ' ')}",
        "outcome": one.outcome,
        "detail": one.detail,
        "during": (revision.name if revision else step.title) if step else "traffic alone",
        "locks": _locks_at(r.samples, one.at, ended),
    }


def _locks_at(samples: list[Sample], began: float, ended: float) -> str:
    """Who waited for, or held, something strong then."""
    found = {
        (sample.who, "held" if sample.granted else "waited for", sample.mode.removesuffix("Lock"), sample.table)
        for sample in samples
        if began - EVERY_S <= sample.at <= ended + EVERY_S and "migration" in sample.who
    }
    return "; ".join(f"{who} {how} {mode} on {table}" for who, how, mode, table in sorted(found))


def _since(r: Rehearsal, at: float) -> float:
    return round(at - r.began, 3)


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 1)
