"""A revision that was released is as it was released."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from leadprotect.authoring.finding import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from leadprotect.authoring.chain import RevisionChain, RevisionFile

MANIFEST = "released.json"
"""Beside env.py: the id of each released revision, and the SHA-256 of its file."""


def released(chain: RevisionChain) -> Iterator[Problem]:
    """Databases have run it: whoever edits it makes two that have one number and differ."""
    file = chain.scripts / MANIFEST
    known = {one.id: one for one in chain.revisions}
    for name, digest in read_manifest(chain).items():
        if name not in known:
            yield Problem("released", file, _line(file, name), f"{name} was released and is gone",
                          "take it back from the release; databases name it in their version table")  # fmt: skip
        elif sha256(known[name]) != digest:
            yield Problem("released", known[name].file, 1, f"{name} was released and is edited",
                          "take back the released text, and mend it in a new revision: leadprotect new")  # fmt: skip


def read_manifest(chain: RevisionChain) -> dict[str, str]:
    """Id -> hash; empty where nothing was released."""
    file = chain.scripts / MANIFEST
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def write_manifest(chain: RevisionChain) -> Path:
    """Freeze every revision as it is now."""
    file = chain.scripts / MANIFEST
    hashes = {one.id: sha256(one) for one in chain.revisions}
    file.write_text(json.dumps(hashes, indent=2) + "\n", encoding="utf-8")
    return file


def sha256(one: RevisionFile) -> str:
    """Of its text, whatever ends its lines: Git may check it out with others."""
    return hashlib.sha256("\n".join(one.source.splitlines()).encode()).hexdigest()


def _line(file: Path, name: str) -> int:
    lines = file.read_text(encoding="utf-8").splitlines()
    return next((number for number, text in enumerate(lines, start=1) if f'"{name}"' in text), 1)
