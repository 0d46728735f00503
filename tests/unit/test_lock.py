from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.database import ROOT

LOCKS = {path.name: path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("requirements*.lock"))}
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
GROUPS: dict[str, list[Any]] = PROJECT["dependency-groups"]


def ranges(*lists: list[Any]) -> list[Requirement]:
    return [Requirement(line) for lines in lists for line in lines if isinstance(line, str)]


def locked(lock: str) -> dict[str, set[str]]:
    """Versions by name; there are several where they depend on the version of Python."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([\w.!]+)", LOCKS[lock], re.MULTILINE):
        found.setdefault(canonicalize_name(name), set()).add(version)
    return found


EVERYTHING = ranges(PROJECT["project"]["dependencies"], *EXTRAS.values(), *GROUPS.values())
WANTED = {
    "requirements.lock": EVERYTHING,
    "requirements-demo.lock": ranges(PROJECT["project"]["dependencies"], EXTRAS["demo"], GROUPS["build"]),
    "requirements-uv.lock": ranges(GROUPS["install"]),
}


@pytest.mark.parametrize(("lock", "wanted"), WANTED.items())
def test_every_range_holds_what_is_locked(lock: str, wanted: list[Requirement]) -> None:
    versions = locked(lock)
    names = {requirement.name: versions.get(canonicalize_name(requirement.name), {"missing"}) for requirement in wanted}
    outside = [
        str(r) for r in wanted if not all(r.specifier.contains(version) for version in names[r.name] - {"missing"})
    ]
    assert ([], []) == (outside, [name for name, found in names.items() if found == {"missing"}])


@pytest.mark.parametrize("lock", ["requirements-demo.lock", "requirements-uv.lock"])
def test_a_smaller_lock_holds_what_the_tests_install(lock: str) -> None:
    everything = locked("requirements.lock")
    assert {} == {name: found for name, found in locked(lock).items() if not found <= everything[name]}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_hashes_and_no_registry(lock: str) -> None:
    requirements = re.split(r"(?m)^(?=\w)", LOCKS[lock])[1:]
    assert [] == [requirement.split()[0] for requirement in requirements if "--hash=sha256:" not in requirement]
    assert "://" not in LOCKS[lock]
