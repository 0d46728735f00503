"""Writes docs/package.md: the README without what leads into a checkout, for a package index (`make readme`)."""

from __future__ import annotations

import re

from tests.support.database import ROOT

PAGE = ROOT / "docs/package.md"
_IMAGE = re.compile(r"^!\[[^\]]*\]\((?!https:)[^)]+\)\n\n?", re.MULTILINE)
_LINK = re.compile(r"\[([^\]]+)\]\((?!https:)[^)]+\)")


def for_an_index(readme: str) -> str:
    """Pictures of the checkout are left out, and what a link says stays."""
    return _LINK.sub(r"\1", _IMAGE.sub("", readme))


if __name__ == "__main__":
    PAGE.write_text(for_an_index((ROOT / "README.md").read_text(encoding="utf-8")), encoding="utf-8")
