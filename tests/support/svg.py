"""Plain SVG, the same on every machine: boxes with lines of text, and arrows; light and dark as the reader has it."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape

LINE, PAD, WIDE = 17, 12, 7.0
"""Pixels: a line of small text, the room inside a box, and one letter of it."""

SHEET = """
svg {
  --ground: #ffffff; --box: #f6f8fa; --edge: #8c959f; --ink: #1f2328; --dim: #59636e; --mark: #0969da; --stop: #9a6700;
}
@media (prefers-color-scheme: dark) {
  svg {
    --ground: #0d1117; --box: #151b23; --edge: #6e7681; --ink: #f0f6fc; --dim: #9198a1; --mark: #4493f8;
    --stop: #d29922;
  }
}
.ground { fill: var(--ground) }
.box { fill: var(--box); stroke: var(--edge) }
.mark { fill: var(--box); stroke: var(--mark); stroke-width: 2 }
.host { fill: var(--ground); stroke: var(--edge); stroke-dasharray: 5 4 }
.stop { fill: var(--box); stroke: var(--stop); stroke-width: 2 }
.arrow { fill: none; stroke: var(--dim); stroke-width: 1.5 }
.head { fill: var(--dim) }
text { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: var(--ink) }
text.title { font-weight: 700; font-size: 14px }
text.typed { font-weight: 700; fill: var(--mark) }
text.dim { fill: var(--dim) }
text.part { font-weight: 700; font-size: 15px; fill: var(--mark) }
"""


@dataclass
class Picture:
    """A sheet of some width; what is put on it decides how high it is."""

    title: str
    width: int
    height: int = 0
    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, said: str, kind: str = "") -> None:
        self.parts.append(f'<text class="{kind}" x="{x:g}" y="{y:g}" xml:space="preserve">{escape(said)}</text>')
        self.height = max(self.height, int(y) + PAD)

    def box(self, x: int, y: int, width: int, title: str, lines: list[str], kind: str = "box") -> int:
        """A title and lines under it; returns where it ends."""
        height = 2 * PAD + LINE * (len(lines) + 1)
        self.parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>')
        self.text(x + PAD, y + PAD + 11, title, "title")
        for number, line in enumerate(lines, start=1):
            self.text(x + PAD, y + PAD + 11 + LINE * number, line)
        self.height = max(self.height, y + height + PAD)
        return y + height

    def arrow(self, *points: tuple[int, int]) -> None:
        path = " ".join(f"{x},{y}" for x, y in points)
        self.parts.append(f'<polyline class="arrow" points="{path}" marker-end="url(#end)"/>')

    def written(self) -> str:
        """The whole file."""
        head = '<marker id="end" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        size = f'viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}"'
        return "\n".join([
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
            f"<title>{escape(self.title)}</title>",
            f"<style>{SHEET}</style>",
            f'<defs>{head}<path class="head" d="M0,0 L8,4 L0,8 z"/></marker></defs>',
            f'<rect class="ground" width="{self.width}" height="{self.height}" rx="8"/>',
            *self.parts,
            "</svg>\n",
        ])  # fmt: skip
