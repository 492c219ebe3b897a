"""The HTML of a report page: no network, no script but its own, works from a file."""

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>__TITLE__</title>
<style>
:root { color-scheme: light dark; --line: #8884; --mark: #2a6fdb; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid var(--mark); }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
tr.real { opacity: .75; font-style: italic; }
td.differs { color: var(--mark); font-weight: 600; }
.keys td { text-align: left; font-family: ui-monospace, monospace; font-size: 12px;
  max-width: 34rem; overflow-wrap: anywhere; vertical-align: top; }
.runs { display: flex; gap: 1.5rem; flex-wrap: wrap; align-items: flex-start; }
figure { margin: 0; flex: 1 1 20rem; min-width: 0; }
figure img, .curve img { max-width: 100%; image-rendering: pixelated; cursor: zoom-in; }
.curve img { image-rendering: auto; }
figcaption { font-size: 13px; }
.steps button { font: inherit; padding: .2rem .8rem; margin-right: .3rem; cursor: pointer; }
.steps button[aria-pressed=true] { background: var(--mark); color: white; }
dialog { border: 0; padding: 0; max-width: 100vw; max-height: 100vh; width: 100vw; height: 100vh;
  overflow: auto; background: #111; }
dialog img { image-rendering: pixelated; transform-origin: 0 0; cursor: zoom-out; }
</style>
</head>
<body>
<h1>__TITLE__</h1>
<p id="lead"></p>
<div class="scroll"><table id="scores"><thead></thead><tbody></tbody></table></div>
<div class="curve"><h2>Curve</h2><img id="curve" alt="quality against the number of steps"></div>
<div id="differences" hidden><h2>Paired differences to the first run</h2>
<div class="scroll"><table><thead></thead><tbody></tbody></table></div><p></p></div>
<h2>Samples, the same indices everywhere</h2>
<div class="steps" role="group" aria-label="number of steps"></div>
<div class="runs" id="grids"></div>
<h2>One sample per column, one number of steps per row</h2>
<div class="runs" id="strips"></div>
<h2>What decides the numbers</h2>
<div class="scroll"><table class="keys" id="protocol"><tbody></tbody></table></div>
<ul id="notes"></ul>
<dialog aria-label="image"><img alt=""></dialog>
<script type="application/json" id="data">__DATA__</script>
<script>
const data = JSON.parse(document.getElementById("data").textContent);
const make = (tag, text, kind) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (kind) node.className = kind;
  return node;
};
const number = text => {
  const value = parseFloat(text.replace(/,/g, ""));
  return isNaN(value) ? null : value;
};

function sortable(table, head, rows) {
  const line = make("tr");
  head.forEach((name, column) => {
    const cell = make("th"), button = make("button", name);
    button.onclick = () => {
      const up = cell.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("th").forEach(th => th.removeAttribute("aria-sort"));
      cell.setAttribute("aria-sort", up ? "ascending" : "descending");
      const body = table.tBodies[0], key = row => row.cells[column].textContent;
      [...body.rows].sort((a, b) => {
        const x = number(key(a)), y = number(key(b));
        if (x === null && y === null) return key(a).localeCompare(key(b)) * (up ? 1 : -1);
        if (x === null || y === null) return x === null ? 1 : -1;
        return (x - y) * (up ? 1 : -1);
      }).forEach(row => body.append(row));
    };
    cell.append(button); line.append(cell);
  });
  table.tHead.append(line);
  rows.forEach(cells => {
    const row = make("tr", undefined, cells.includes("real") ? "real" : "");
    cells.forEach(cell => row.append(make("td", cell)));
    table.tBodies[0].append(row);
  });
}

function picture(source, caption) {
  const figure = make("figure"), image = make("img");
  image.src = source; image.alt = caption; image.onclick = () => zoom(image);
  figure.append(image, make("figcaption", caption));
  return figure;
}

const dialog = document.querySelector("dialog"), large = dialog.querySelector("img");
let factor = 1;
const scale = value => {
  factor = Math.min(16, Math.max(0.25, value));
  large.style.width = large.naturalWidth * factor + "px";
};
function zoom(image) {
  large.src = image.src; large.alt = image.alt;
  dialog.showModal();
  scale(2);
}
large.onclick = () => dialog.close();
dialog.onwheel = event => {
  event.preventDefault();
  scale(factor * (event.deltaY < 0 ? 1.25 : 0.8));
};

function show(steps) {
  document.querySelectorAll(".steps button").forEach(button =>
    button.setAttribute("aria-pressed", button.dataset.steps === String(steps)));
  const place = document.getElementById("grids");
  place.replaceChildren(...data.runs.filter(run => run.grids[steps]).map(run =>
    picture(run.grids[steps], run.name + ", " + steps + (steps == 1 ? " step" : " steps"))));
}

document.getElementById("lead").textContent = data.lead;
sortable(document.getElementById("scores"), data.head, data.rows);
const curve = document.getElementById("curve");
curve.src = data.curve; curve.onclick = () => zoom(curve);
if (data.differences) {
  const part = document.getElementById("differences");
  part.hidden = false;
  sortable(part.querySelector("table"), data.differences.head, data.differences.rows);
  part.querySelector("p").textContent = data.differences.note;
}
data.steps.forEach(steps => {
  const button = make("button", String(steps));
  button.dataset.steps = steps; button.onclick = () => show(steps);
  document.querySelector(".steps").append(button);
});
show(data.steps[0]);
document.getElementById("strips").append(...data.runs.map(run => picture(run.strip, run.name)));
data.protocol.forEach(([key, ...values]) => {
  const row = make("tr");
  row.append(make("td", key));
  const differs = new Set(values).size > 1;
  values.forEach(value => row.append(make("td", value, differs ? "differs" : "")));
  document.getElementById("protocol").tBodies[0].append(row);
});
data.notes.forEach(note => document.getElementById("notes").append(make("li", note)));
</script>
</body>
</html>
"""
