"""The rules and the dashboard that the package ships: `python -m tests.support.rules` writes them."""

from __future__ import annotations

from leadprotect.gates.measures import PRESETS
from leadprotect.gates.rules import FOLDER, rendered
from tests.support import dashboard

SHIPPED = FOLDER / "rules"


def files() -> dict[str, str]:
    """Name of each file in the package's folder of rules -> its text."""
    return {file: text for name, measures in PRESETS.items() for file, text in rendered(measures, name=name).items()}


def main() -> None:
    for file, text in files().items():
        (SHIPPED / file).write_text(text, encoding="utf-8")
    (FOLDER / "dashboard.json").write_text(dashboard.built(), encoding="utf-8")


if __name__ == "__main__":
    main()
