"""Checks an exported audit without a database: rows against seals, seals against each other."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

from leadprotect.audit.findings import Finding, KeptSeal, Verdict, named, of_rows
from leadprotect.audit.seals import FORMAT, ROW, SEAL, chained, joined, numbers, row_hash, seal_body, unzoned
from leadprotect.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_FIELDS = {
    "export": {"format", "database", "origin", "heads", "left_out"},
    "seal": {*SEAL, "previous", "hash"},
    "link": {"territory", "number", "previous", "body", "hash"},
    "row": {*ROW, "seal"},
}


@dataclass(frozen=True)
class Proof:
    """What an exported file proves: `rows` sealed rows as they were, `heads` the newest seal of each chain.

    `left_out` names territories that the login which exported it could not read.
    """

    rows: int
    seals: int
    heads: dict[str | None, tuple[int, str]]
    findings: tuple[Finding, ...]
    left_out: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """Of the file; it says nothing of what it does not hold."""
        return "tampered" if self.findings else "intact"

    @property
    def intact(self) -> bool:
        """Whether nothing in the file was changed, removed or added."""
        return not self.findings


@dataclass(frozen=True)
class Known:
    """Seals as an export names them: what `verify_audit` compares with. `origin` is server and table of the audit."""

    database: str
    origin: str
    seals: frozenset[KeptSeal]

    @property
    def first(self) -> str | None:
        """The hash of the first seal of the rows without territory."""
        return next((seal.hash for seal in self.seals if seal[:2] == (None, 1)), None)


@dataclass
class _Chain:
    """A chain while its lines are read; `seals` are those of which rows must follow."""

    number: int = 0
    hash: str | None = None
    seals: dict[int, dict[str, Any]] = field(default_factory=dict)


def verify_file(lines: Iterable[str]) -> Proof:
    """Check the lines of ``audit export --sealed``; needs no database and no network.

    Raises `InvalidRequest`, naming the line, for what is no such file.
    """
    records = _records(lines)
    header = _header(records)
    chains: dict[str | None, _Chain] = {}
    findings: list[Finding] = []
    intact = 0
    for place, group in groupby(records, key=_seal_of):
        if place is None:
            for link in group:
                findings += _link(chains.setdefault(link["territory"], _Chain()), link)
        else:
            hashes = [(row["id"], _hash(row)) for row in group]
            wrong = list(_rows(place, chains.setdefault(place[0], _Chain()).seals.pop(place[1], None), hashes))
            findings += wrong
            intact += 0 if wrong else len(hashes)
    for territory, chain in chains.items():
        for number, seal in chain.seals.items():
            gone = numbers(seal["ids"])
            findings.append(Finding(territory, number, f"{named('row', gone)} removed", gone))
    heads = {code: (chain.number, chain.hash or "") for code, chain in chains.items()}
    findings += _heads(header["heads"], heads)
    return Proof(intact, sum(chain.number for chain in chains.values()), heads, tuple(findings), (*header["left_out"],))


def known_seals(lines: Iterable[str]) -> Known:
    """Every seal that an export names; raises `InvalidRequest`, naming the line, for what is no export with seals."""
    records = _records(lines)
    header = _header(records)
    seals = {
        KeptSeal(record["territory"], record["number"], record["hash"])
        for record in records
        if record["type"] in {"seal", "link"}
    }
    return Known(header["database"], header["origin"], frozenset(seals))


def _header(records: Iterator[dict[str, Any]]) -> dict[str, Any]:
    header = next(records, {})
    if header.get("format") != FORMAT:
        message = f"line 1: this is no export with seals (leadprotect audit export --sealed) of format {FORMAT}"
        raise InvalidRequest(message)
    return header


def _records(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            lacking = _FIELDS[record["type"]] - record.keys()
        except (ValueError, KeyError, TypeError, AttributeError):
            lacking = {"type"}
        if lacking:
            lacks = f"this is no line of an export with seals; it lacks {', '.join(sorted(lacking))}"
            message = f"line {number}: {lacks}; write it anew with --sealed"
            raise InvalidRequest(message)
        yield record


def _seal_of(record: dict[str, Any]) -> tuple[str | None, int] | None:
    return (record["territory"], record["seal"]) if record["type"] == "row" else None


def _link(chain: _Chain, link: dict[str, Any]) -> Iterator[Finding]:
    territory, number = link["territory"], link["number"]
    if number != chain.number + 1:
        yield Finding(territory, number, "the seals before it were removed")
    elif link["previous"] != chain.hash:
        yield Finding(territory, number, "does not continue the seal before it")
    try:
        body = seal_body(unzoned(link)) if link["type"] == "seal" else bytes.fromhex(link["body"])
        fits = chained(link["previous"], body) == link["hash"]
    except (ValueError, TypeError):
        fits = False
    if not fits:
        yield Finding(territory, number, "the seal itself was changed")
    elif link["type"] == "seal" and link["row_count"] and link["detached_table"] is None:
        chain.seals[number] = link
    chain.number, chain.hash = number, link["hash"]


def _rows(
    place: tuple[str | None, int], seal: dict[str, Any] | None, found: list[tuple[Any, bytes]]
) -> Iterator[Finding]:
    """What is wrong with the rows of a seal; they stand in the order of their numbers."""
    territory, number = place
    if seal is None:
        ranges = joined(sorted(i for i, _ in found))
        yield Finding(territory, number, f"{named('row', ranges)} inserted: no seal has them", ranges)
        return
    yield from of_rows(territory, number, seal, found)


def _hash(row: dict[str, Any]) -> bytes:
    try:
        return row_hash(row)
    except ValueError:  # half a surrogate: no text of PostgreSQL
        return b""


def _heads(expected: list[dict[str, Any]], found: dict[str | None, tuple[int, str]]) -> Iterator[Finding]:
    """The first line says how far each chain went, so that a file that was cut off shows."""
    for head in expected:
        if found.get(head["territory"]) != (head["number"], head["hash"]):
            yield Finding(head["territory"], head["number"], "the newest seal of the chain is not in the file")
