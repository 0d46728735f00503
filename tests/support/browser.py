"""A page in headless Chromium: what it says on its console, and what a reader would see of it."""

from __future__ import annotations

import html
import json
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.programs import program

QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=3000",
    "--enable-logging=stderr",
]

# What is folded, or could be scrolled, must be readable as well.
# No window is narrower than 500 pixels, a frame in it is. The page measures itself and tells the outer one.
FRAME = """<!doctype html><title>frame</title>
<script>
addEventListener("message", (event) => {
  const told = document.createElement("pre");
  told.id = "measured";
  told.textContent = event.data;
  document.body.append(told);
});
</script>
<body style="margin:0"><iframe src="page.html" style="border:0;width:{width}px;height:2400px"></iframe></body>
"""
MEASURE = """
<script>
document.querySelectorAll("details").forEach((e) => { e.open = true; });
const isText = (e) => e.childElementCount === 0 && e.textContent.trim() && e.getClientRects().length;
const allTexts = [...document.querySelectorAll("body *:not(script, style)")].filter(isText);
const outside = (e) => e.getBoundingClientRect().left < 0 || e.getBoundingClientRect().right > innerWidth + 1;
parent.postMessage(JSON.stringify({
  title: document.title,
  text: document.body.innerText,
  width: innerWidth,
  wider: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  small: allTexts.filter((e) => parseFloat(getComputedStyle(e).fontSize) < 11).map((e) => e.textContent),
  outside: allTexts.filter(outside).map((e) => e.textContent),
  counts: Object.fromEntries(SELECTORS.map((s) => [s, document.querySelectorAll(s).length])),
}), "*");
</script></body>
"""


@dataclass(frozen=True)
class Page:
    """What a browser made of a page; `measured` is what the page found of itself, `console` its messages."""

    measured: dict[str, Any]
    console: tuple[str, ...]

    def count(self, selector: str) -> int:
        found: int = self.measured["counts"][selector]
        return found


def opened(page: str, *, width: int, count: tuple[str, ...] = ()) -> Page:
    """Open a page `width` pixels wide and count elements; skips without Chromium, fails where CI=true."""
    chromium = program("chromium", "chromium")
    with tempfile.TemporaryDirectory(prefix="lp-chromium-") as name:
        folder = Path(name)
        measuring = MEASURE.replace("SELECTORS", json.dumps(count))
        (folder / "page.html").write_text(page.replace("</body>", measuring), encoding="utf-8")
        (folder / "frame.html").write_text(FRAME.replace("{width}", str(width)), encoding="utf-8")
        window = [f"--user-data-dir={folder / 'profile'}", f"--window-size={max(width, 500)},2400"]
        frame = (folder / "frame.html").as_uri()
        done = subprocess.run(
            [chromium, *QUIET, *window, "--dump-dom", frame], capture_output=True, text=True, check=True
        )
    told = re.search(r'<pre id="measured">(.*?)</pre>', done.stdout, re.DOTALL)
    console = tuple(line for line in done.stderr.splitlines() if ":CONSOLE" in line)
    return Page(json.loads(html.unescape(told[1])) if told else {}, console)
