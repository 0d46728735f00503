"""One HTML file with its data, its style and its charts, and nothing from anywhere else."""

from __future__ import annotations

import json
from pathlib import Path

_LOOK, _SHARED = Path(__file__).with_name("page.css"), Path(__file__).with_name("page.js")


def fill(template: Path, data: object) -> str:
    """The page of `template`: its data as JSON, with the style and the functions that our pages share."""
    page = template.read_text(encoding="utf-8")
    page = page.replace("/*LOOK*/", _LOOK.read_text(encoding="utf-8").rstrip())
    page = page.replace("/*SHARED*/", _SHARED.read_text(encoding="utf-8").rstrip())
    return page.replace("/*DATA*/null", as_script(data))


def as_script(data: object) -> str:
    """`data` as JSON that no text in it can end, whatever somebody called a table."""
    return json.dumps(data, separators=(",", ":")).replace("</", "<\\/").replace("<!--", "\\u003c!--")
