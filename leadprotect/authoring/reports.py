"""What was found, as a person reads it, and as programs do."""

from __future__ import annotations

import json
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leadprotect.authoring.finding import Problem
    from leadprotect.authoring.validate import Report

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def as_text(report: Report) -> str:
    """A paragraph for each finding: where, what, and what to do."""
    lines = [
        f"{seen_from_here(one.file)}:{one.line}: {one.rule}: {one.problem}\n    {one.solution}"
        for one in report.problems
    ]
    lines += [f"not judged: {rule}: {why}" for rule, why in report.not_judged.items()]
    count = len(report.problems)
    found = "nothing is wrong" if not count else "1 problem" if count == 1 else f"{count} problems"
    return "\n".join([*lines, f"{found}: {report.revisions} revisions, {len(report.rules)} rules"])


def as_github(report: Report) -> str:
    """Annotations of GitHub Actions, one a line.

    Source: https://docs.github.com/actions/reference/workflow-commands-for-github-actions
    """
    lines = [_annotation(one) for one in report.problems]
    lines += [f"::warning title={rule}::not judged: {_escaped(why)}" for rule, why in report.not_judged.items()]
    return "\n".join(lines)


def as_sarif(report: Report) -> str:
    """SARIF 2.1.0, as code scanning reads it.

    Source: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
    """
    rules = [{"id": rule, "shortDescription": {"text": _holds(rule)}} for rule in report.rules]
    driver = {"name": "leadprotect", "version": version("leadprotect"), "rules": rules}
    notes = [{"level": "warning", "message": {"text": f"{rule}: not judged: {why}"}}
             for rule, why in report.not_judged.items()]  # fmt: skip
    run = {
        "tool": {"driver": driver},
        "invocations": [{"executionSuccessful": not notes, "toolExecutionNotifications": notes}],
        "results": [_result(one) for one in report.problems],
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2)


def _holds(rule: str) -> str:
    """What a rule is about: the first line of its module."""
    module = import_module(f"leadprotect.authoring.rules.{rule.replace('-', '_')}")
    return str(module.__doc__).splitlines()[0]


def _result(one: Problem) -> dict[str, Any]:
    place = {"artifactLocation": {"uri": seen_from_here(one.file)}, "region": {"startLine": one.line}}
    return {
        "ruleId": one.rule,
        "level": "error",
        "message": {"text": f"{one.problem}. {one.solution[0].upper()}{one.solution[1:]}."},
        "locations": [{"physicalLocation": place}],
    }


def _annotation(one: Problem) -> str:
    where = f"file={_escaped(seen_from_here(one.file), value=True)},line={one.line},title={one.rule}"
    return f"::error {where}::{_escaped(f'{one.problem}; {one.solution}')}"


def _escaped(text: str, *, value: bool = False) -> str:
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return text.replace(":", "%3A").replace(",", "%2C") if value else text


def seen_from_here(file: Path) -> str:
    """From the current folder, as whoever checks it out names it."""
    here = Path.cwd()
    return file.relative_to(here).as_posix() if file.is_relative_to(here) else file.as_posix()
