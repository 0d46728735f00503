// What the pages of leadprotect share: elements, tables, a time axis and a bubble that explains.
const NS = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);
const html = (tag, text, cls) => { const e = document.createElement(tag); if (text !== undefined) e.textContent = text; if (cls) e.className = cls; return e; };
const draw = (parent, tag, attributes, text) => {
  const e = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) e.setAttribute(name, value);
  if (text !== undefined) e.textContent = text;
  parent.append(e);
  return e;
};
const number = (value) => value.toLocaleString("en");
let range = [0, 1]; // seconds that the charts show

function list(id, lines) {
  byId(id).hidden = lines.length === 0;
  for (const line of lines) byId(id).querySelector("ul").append(html("li", line));
}

function row(body, cells) {
  const tr = html("tr");
  const names = body.closest("table")?.tHead?.rows[0].cells ?? [];
  for (const [index, [value, cls]] of cells.entries()) {
    const td = html("td", undefined, cls);
    td.dataset.name = names[index]?.textContent ?? "";
    td.append(value);
    tr.append(td);
  }
  body.append(tr);
}

const LEFT = 50;
function scaleX(width) {
  const [from, to] = range;
  return (t) => LEFT + (t - from) / (to - from) * (width - LEFT - 8);
}

function axisX(svg, x, width, height) {
  const [from, to] = range;
  const raw = (to - from) / Math.max(3, width / 90);
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((f) => f * unit).find((s) => s >= raw);
  for (let t = Math.ceil(from / step) * step; t <= to; t += step) {
    draw(svg, "line", {x1: x(t), x2: x(t), y1: 22, y2: height - 18, stroke: "var(--grid)"});
    draw(svg, "text", {x: x(t), y: height - 5, "text-anchor": "middle"}, `${+t.toFixed(2)} s`);
  }
}

const bubble = html("div", "", "tip");
bubble.hidden = true;
document.body.append(bubble);
function tip(element, text) {
  element.addEventListener("pointerenter", (event) => {
    bubble.textContent = text;
    bubble.hidden = false;
    const side = event.clientX > innerWidth / 2 ? -bubble.offsetWidth - 12 : 12;
    bubble.style.left = `${Math.max(4, event.clientX + side)}px`;
    bubble.style.top = `${Math.min(event.clientY + 14, innerHeight - bubble.offsetHeight - 4)}px`;
  });
  element.addEventListener("pointerleave", () => { bubble.hidden = true; });
}
