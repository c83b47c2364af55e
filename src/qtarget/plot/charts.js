// Draws plots as SVG at the width they have on the page. `figures` holds what plot/chart_data.py writes.
// Gives the page its buttons of names, and `show`, which hides and shows what carries them.
const { keys, show } = (() => {
const { axes, panels } = JSON.parse(document.getElementById("figures").textContent);
const SVG = "http://www.w3.org/2000/svg";
const FONT_SIZE = 12, LINE_HEIGHT = 15, TICK_GAP = 6, NAME_CHARACTERS = 24;
const NEAR = 40;  // px from the pointer: what is farther isn't meant
const DASHES = { solid: "", dashed: "6 4", dotted: "1.5 4", dashdot: "7 3 1.5 3" };
const SYMBOLS = [
  (r) => `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`,
  (r) => `M${-r * 0.9} ${-r * 0.9}h${1.8 * r}v${1.8 * r}h${-1.8 * r}z`,
  (r) => `M0 ${-1.25 * r}L${1.25 * r} 0L0 ${1.25 * r}L${-1.25 * r} 0z`,
  (r) => `M0 ${-1.2 * r}L${1.15 * r} ${0.85 * r}H${-1.15 * r}z`,
  (r) => `M0 ${1.2 * r}L${1.15 * r} ${-0.85 * r}H${-1.15 * r}z`,
];
const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];

const ruler = document.createElement("canvas").getContext("2d");
ruler.font = `${FONT_SIZE}px system-ui, "Segoe UI", Roboto, sans-serif`;
const widthOf = (text) => ruler.measureText(text).width;

function make(parent, name, attributes = {}, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

// Numbers as Python's format writes them: ".1f" and ".3g".
function written(value, format) {
  const digits = Number(format.slice(1, -1));
  return format.endsWith("f") ? fixed(value, digits) : short(value, digits);
}

// What rounds to zero has no minus.
function fixed(value, decimals) {
  return (Math.abs(value) < 0.5 * 10 ** -decimals ? 0 : value).toFixed(decimals);
}

function short(value, digits = 3) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e6)) return value.toExponential(digits - 1).replace(/\.?0*e\+?/, "e");
  return String(Number(value.toPrecision(Math.max(digits, Math.ceil(Math.log10(size + 1))))));
}

function wrapped(text, characters, most) {
  const lines = [""];
  const parts = text.split(/(?<= )/).flatMap((word) => (word.length > characters ? word.split(/(?<=[_,=/])/) : [word]));
  for (const word of parts) {
    if (lines.at(-1) && (lines.at(-1) + word).trimEnd().length > characters) lines.push("");
    lines[lines.length - 1] += word;
  }
  const cut = (line) => (line.length > characters ? line.slice(0, characters - 1) + "…" : line);
  const kept = lines.slice(0, most).map((line) => cut(line.trimEnd()));
  if (lines.length > most) kept[most - 1] = cut(kept[most - 1].slice(0, characters - 1) + "…");
  return kept;
}

// Axes

function linearTicks(low, high, most) {
  const rough = (high - low) / Math.max(1, most), power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const ticks = [];
  for (let index = Math.ceil(low / step - 1e-9); index <= high / step + 1e-9; index++) ticks.push(Number((index * step).toPrecision(12)));
  return ticks;
}

function logTicks(low, high) {
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  const factors = last - first > 3 ? [1] : [1, 2, 5], every = Math.max(1, Math.ceil((last - first) / 8)), ticks = [];
  for (let power = first; power <= last; power += every) ticks.push(...factors.map((factor) => factor * 10 ** power));
  return ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
}

// From values to px. `from` and `to`: px of the low and of the high end.
function scaleOf({ low, high, log }, from, to) {
  const into = log ? Math.log10 : (value) => value;
  const at = (value) => from + ((into(value) - into(low)) / (into(high) - into(low))) * (to - from);
  at.back = (px) => { const share = into(low) + ((px - from) / (to - from)) * (into(high) - into(low)); return log ? 10 ** share : share; };
  return at;
}

function rangeOf(values, axis, fromZero) {
  const usable = values.filter((value) => Number.isFinite(value) && (!axis.log || value > 0));
  if (axis.span) return { low: axis.span[0], high: axis.span[1], log: false };
  let low = Math.min(...usable), high = Math.max(...usable);
  if (!usable.length) [low, high] = axis.log ? [1, 10] : [0, 1];
  if (axis.log) return low === high ? { low: low / 2, high: high * 2, log: true } : { low: low / (high / low) ** 0.04, high: high * (high / low) ** 0.04, log: true };
  if (fromZero) return { low: Math.min(0, low), high: high * 1.02 || 1, log: false };
  const room = (high - low) * 0.05 || Math.abs(high) * 0.1 || 1;
  return { low: low - room, high: high + room, log: false };
}

// The labels of ticks: four digits, more where neighbours would look alike.
function labelled(ticks) {
  for (let digits = 4; ; digits++) {
    const texts = ticks.map((tick) => short(tick, digits));
    if (new Set(texts).size === texts.length || digits === 12) return texts;
  }
}

// Ticks of an axis whose labels don't touch each other: fewer of them where they would.
function fitting(range, room, sizeOf, gap) {
  let most = Math.max(2, Math.floor(room / (gap + 22)));
  let ticks;
  do {
    ticks = range.log ? logTicks(range.low, range.high) : linearTicks(range.low, range.high, most);
    most -= 1;
  } while (!range.log && most >= 1 && labelled(ticks).reduce((sum, text) => sum + sizeOf(text) + gap, 0) > room);
  return labelled(ticks).map((text, index) => ({ value: ticks[index], lines: [text] }));
}

// One plot

class Chart {
  constructor(place, key) {
    this.place = place;
    this.key = key;
    this.hidden = new Set();
    this.zoom = null;
    new ResizeObserver(() => this.draw()).observe(place);
    place.addEventListener("pointermove", (event) => this.point(event));
    place.addEventListener("pointerleave", () => this.leave());
    place.addEventListener("pointerdown", (event) => this.press(event));
    place.addEventListener("pointerup", (event) => this.release(event));
    place.addEventListener("dblclick", () => { this.zoom = null; this.draw(); });
  }

  show(key) {
    this.key = key;
    this.zoom = null;
    this.draw();
  }

  get panel() { return panels[this.key]; }
  get lines() { return this.panel.lines.filter((line) => !this.hidden.has(line.run)); }
  get dots() { return this.panel.dots.filter((dot) => !this.hidden.has(dot.run)); }
  get xKind() { return this.panel.x.choices.includes(xChoice) ? xChoice : "step"; }  // what this plot's x axis is
  xs(line) { return axes[line.x[this.xKind]]; }

  draw() {
    const { width, height } = this.place.getBoundingClientRect();
    if (width < 40 || height < 40) return;
    this.svg?.remove();
    this.svg = make(this.place, "svg", { width, height, role: "img", "aria-label": this.panel.title });
    this.targets = [];
    const kind = this.panel.heat ? "heat" : this.panel.dots.length ? "dots" : "lines";
    this.frame = this[kind + "Frame"](width, height);
    this.axesOf();
    this.reference();
    this[kind + "Marks"]();
    this.over = make(this.svg, "g");
  }

  // Frames: the ranges, ticks and margins of each kind of plot

  xTitle(width) {
    const title = this.panel.x.choices.length ? X_TITLES[this.xKind] : this.panel.x.title;
    return title ? wrapped(title, Math.max(12, Math.floor((width - 80) / 6.5)), 3) : [];
  }

  linesFrame(width, height) {
    const { x, y } = this.panel, all = this.lines;
    const values = all.flatMap((line) => [...line.y, ...(line.low ?? []), ...(line.high ?? [])]);
    if (this.panel.reference !== null && !y.log) values.push(this.panel.reference);
    const yRange = rangeOf(values, y, false);
    const yTicks = fitting(yRange, height - 60, () => LINE_HEIGHT, 26);
    const left = Math.max(...yTicks.map((tick) => widthOf(tick.lines[0])), 8) + TICK_GAP + 4 + (y.title ? LINE_HEIGHT + 4 : 0);
    const xRange = this.zoom ?? rangeOf(all.flatMap((line) => this.xs(line)), x, !x.near);
    const titles = this.xTitle(width - left), right = width - 14;
    const xTicks = fitting(xRange, right - left, widthOf, 14);
    return this.placed({ left, right, top: 10, bottom: height - 22 - LINE_HEIGHT * titles.length - 4, xRange, yRange, titles, xTicks, yTicks });
  }

  dotsFrame(width, height) {
    const dots = this.dots;
    const yTicks = dots.map((dot, value) => ({ value, lines: wrapped(dot.label, NAME_CHARACTERS, 2) }));
    const left = Math.min(width * 0.5, Math.max(0, ...yTicks.flatMap((tick) => tick.lines.map(widthOf))) + TICK_GAP + 6);
    const values = dots.flatMap((dot) => [dot.value, dot.low, dot.high]);
    if (this.panel.reference !== null) values.push(this.panel.reference);
    const xRange = rangeOf(values, this.panel.x, false), titles = this.xTitle(width - left), right = width - 16;
    const xTicks = fitting(xRange, right - left, widthOf, 14);
    const yRange = { low: dots.length - 0.4, high: -0.6, log: false };
    return this.placed({ left, right, top: 6, bottom: height - 22 - LINE_HEIGHT * titles.length - 4, xRange, yRange, xTicks, yTicks, titles, named: true });
  }

  heatFrame(width, height) {
    const { columns, rows } = this.panel.heat, { y } = this.panel;
    const yTicks = rows.map((row, value) => ({ value, lines: wrapped(row, 18, 2) }));
    const left = Math.min(width * 0.45, Math.max(...yTicks.flatMap((tick) => tick.lines.map(widthOf))) + TICK_GAP + 4 + (y.title ? LINE_HEIGHT + 4 : 0));
    const right = width - 12, titles = this.xTitle(width - left), cell = (right - left) / columns.length;
    const longest = Math.max(...columns.map(widthOf)), turned = longest > cell - 6;
    const xTicks = columns.map((column, value) => ({ value, lines: wrapped(column, 22, 1) }));
    const room = turned ? Math.min(110, longest * 0.75 + 16) : 18;
    return this.placed({ left, right, top: 8, bottom: height - room - LINE_HEIGHT * titles.length - 6, room, turned, titles, xTicks, yTicks, named: true,
      xRange: { low: -0.5, high: columns.length - 0.5, log: false }, yRange: { low: -0.5, high: rows.length - 0.5, log: false } });
  }

  placed(frame) {
    return { ...frame, x: scaleOf(frame.xRange, frame.left, frame.right), y: scaleOf(frame.yRange, frame.bottom, frame.top) };
  }

  axesOf() {
    const { left, right, top, bottom, x, y, xTicks, yTicks, titles, named, turned, room = 18 } = this.frame;
    const { height } = this.svg.getBoundingClientRect(), heat = Boolean(this.panel.heat);
    const grid = make(this.svg, "g", { class: "grid" }), texts = make(this.svg, "g", { class: "ticks" });
    for (const { value, lines } of xTicks) {
      if (!heat) make(grid, "path", { d: `M${x(value)} ${top}V${bottom}` });
      const turn = turned ? { transform: `rotate(-40 ${x(value)} ${bottom + 14})`, "text-anchor": "end" } : { "text-anchor": "middle" };
      make(texts, "text", { x: x(value), y: bottom + 16, ...turn }, lines[0]);
    }
    for (const { value, lines } of yTicks) {
      if (!named) make(grid, "path", { d: `M${left} ${y(value)}H${right}` });
      lines.forEach((line, index) => make(texts, "text", {
        x: left - TICK_GAP, y: y(value) + 4 + (index - (lines.length - 1) / 2) * (LINE_HEIGHT - 2), "text-anchor": "end",
      }, line));
    }
    if (!heat) thin(texts, xTicks.length);
    titles.forEach((line, index) => make(this.svg, "text", {
      class: "x-title", x: (left + right) / 2, y: bottom + room + LINE_HEIGHT * (index + 1), "text-anchor": "middle",
    }, line));
    if (this.panel.y.title && !this.panel.dots.length) {
      const middle = Math.min(height - 20, (top + bottom) / 2), most = Math.floor((bottom - top + 20) / 6.5);
      make(this.svg, "text", { class: "y-title", transform: `translate(12 ${middle}) rotate(-90)`, "text-anchor": "middle" }, wrapped(this.panel.y.title, most, 1)[0]);
    }
    const clip = make(make(this.svg, "defs"), "clipPath", { id: `clip-${this.place.id}` });
    make(clip, "rect", { x: left - 7, y: top - 7, width: Math.max(0, right - left + 14), height: Math.max(0, bottom - top + 14) });
    this.inside = make(this.svg, "g", { "clip-path": `url(#clip-${this.place.id})` });
  }

  reference() {
    const { left, right, top, bottom, x, y } = this.frame, value = this.panel.reference;
    if (value === null || this.panel.heat) return;
    make(this.inside, "path", { class: "reference", d: this.panel.dots.length ? `M${x(value)} ${top}V${bottom}` : `M${left} ${y(value)}H${right}` });
  }

  // Marks

  linesMarks() {
    const { x, y, yRange } = this.frame;
    if (!this.panel.lines.length) make(this.svg, "text", { class: "x-title", x: (this.frame.left + this.frame.right) / 2, y: 60, "text-anchor": "middle" }, "nothing recorded");
    for (const line of this.lines) {
      const xs = this.xs(line), usable = (index) => Number.isFinite(line.y[index]) && Number.isFinite(xs[index]) && (!yRange.log || line.y[index] > 0);
      const group = make(this.inside, "g", { class: "trace", "data-run": line.run, opacity: line.faint ? 0.45 : 1 });
      const points = xs.map((_, index) => index).filter(usable).map((index) => ({ index, px: x(xs[index]), py: y(line.y[index]) }));
      if (line.low) this.intervals(group, line, points);
      if (line.joined && points.length > 1) make(group, "path", { class: "line", d: pathOf(points), stroke: line.colour, "stroke-dasharray": DASHES[line.dash] });
      const every = line.joined && !line.low ? Math.max(1, Math.floor(points.length / 12)) : 1;
      const marked = line.marked || points.length === 1 ? points.filter((_, place) => place % every === 0) : [];
      for (const { px, py } of marked) make(group, "path", { class: "mark", d: SYMBOLS[line.symbol](line.joined ? 3 : 4.5), transform: `translate(${px} ${py})`, fill: line.colour });
      for (const { index, px, py } of points) this.targets.push({ line, group, px, py, text: () => this.pointText(line, xs, index) });
    }
  }

  intervals(group, line, points) {
    const { y } = this.frame;
    if (line.band) {
      const upper = points.map(({ index, px }) => `${px} ${y(line.high[index])}`), lower = points.map(({ index, px }) => `${px} ${y(line.low[index])}`).reverse();
      make(group, "path", { class: "band", d: `M${[...upper, ...lower].join("L")}z`, fill: line.colour });
      return;
    }
    for (const { index, px } of points) {
      const low = y(line.low[index]), high = y(line.high[index]);
      make(group, "path", { class: "line", stroke: line.colour, d: `M${px} ${low}V${high}M${px - 3} ${low}h6M${px - 3} ${high}h6` });
    }
  }

  pointText(line, xs, index) {
    const at = this.panel.x.choices.length ? X_NAMES[this.xKind] : line.at;
    const { low, high } = this.frame.yRange, digits = Math.max(3, Math.ceil(Math.log10(Math.abs(high) / (high - low))) + 3);
    const interval = line.low ? ` [${short(line.low[index], digits)}, ${short(line.high[index], digits)}]` : "";
    return [line.label, `${line.metric} ${short(line.y[index], digits)}${interval} at ${at} ${short(xs[index], 4)}`, ...(line.texts ? [line.texts[index]] : [])];
  }

  dotsMarks() {
    const { x, y } = this.frame, { number, unit } = this.panel;
    this.dots.forEach((dot, row) => {
      const group = make(this.inside, "g", { class: "trace", "data-run": dot.run }), py = y(row), low = x(dot.low), high = x(dot.high);
      make(group, "path", { class: "line", stroke: dot.colour, d: `M${low} ${py}H${high}M${low} ${py - 5}v10M${high} ${py - 5}v10` });
      make(group, "path", { class: "mark", d: SYMBOLS[dot.symbol](5), transform: `translate(${x(dot.value)} ${py})`, fill: dot.colour });
      const ends = `[${written(dot.low, number)}, ${written(dot.high, number)}]`;
      this.targets.push({ group, px: x(dot.value), py, text: () => [dot.label, `${written(dot.value, number)}${unit} ${ends}`] });
    });
  }

  heatMarks() {
    const { columns, rows, values, lower } = this.panel.heat, { x, y } = this.frame, { number, unit } = this.panel;
    const known = values.flat().filter((value) => value !== null), low = Math.min(...known), high = Math.max(...known);
    const width = Math.abs(x(1) - x(0)) - 2, height = Math.abs(y(1) - y(0)) - 2;
    const fits = Math.max(...known.map((value) => widthOf(written(value, number)))) < width - 4 && height > LINE_HEIGHT;
    values.forEach((row, up) => row.forEach((value, across) => {
      if (value === null) return;
      const share = high > low ? (value - low) / (high - low) : 1, good = lower && high > low ? 1 - share : share;
      const colour = VIRIDIS[Math.min(9, Math.floor(good * 10))], px = x(across), py = y(up);
      const group = make(this.inside, "g", { class: good > 0.55 ? "cell bright" : "cell" });
      make(group, "rect", { x: px - width / 2, y: py - height / 2, width, height, fill: colour });
      if (fits) make(group, "text", { x: px, y: py + 4, "text-anchor": "middle" }, written(value, number));
      this.targets.push({ group, px, py, text: () => [`${columns[across]} · ${rows[up]}`, `${written(value, number)}${unit}`] });
    }));
  }

  // Pointing, and a closer look at a part of the x axis

  at(event) {
    const box = this.place.getBoundingClientRect();
    return { px: event.clientX - box.left, py: event.clientY - box.top };
  }

  point(event) {
    const { px, py } = this.at(event);
    if (this.pressed !== undefined && event.buttons) { this.select(px); return; }
    const reach = this.panel.heat ? Infinity : NEAR;
    const distance = (target) => Math.hypot(target.px - px, target.py - py);
    const nearest = this.targets.reduce((best, target) => (distance(target) < (best ? distance(best) : reach) ? target : best), null);
    this.leave();
    if (!nearest) return;
    this.svg.classList.add("pointed");
    nearest.group.classList.add("near");
    (nearest.line?.members ?? []).forEach((member) => this.member(nearest.line, member));
    if (!this.panel.heat) make(this.over, "circle", { class: "halo", cx: nearest.px, cy: nearest.py, r: 7 });
    showTip(nearest.text(), event);
  }

  member(line, { x, y }) {
    const xs = axes[x[this.xKind]], points = xs.map((value, index) => ({ px: this.frame.x(value), py: y[index] === null ? NaN : this.frame.y(y[index]) }));
    make(this.over, "path", { class: "member", d: pathOf(points.filter(({ py }) => Number.isFinite(py))), stroke: line.colour });
  }

  leave() {
    this.svg?.classList.remove("pointed");
    this.svg?.querySelectorAll(".near").forEach((group) => group.classList.remove("near"));
    this.over?.replaceChildren();
    tip.hidden = true;
  }

  press(event) {
    if (event.pointerType === "mouse" && this.panel.lines.length) this.pressed = this.at(event).px;
    else this.point(event);
  }

  select(px) {
    this.leave();
    const { top, bottom } = this.frame;
    make(this.over, "rect", { class: "selection", x: Math.min(px, this.pressed), y: top, width: Math.abs(px - this.pressed), height: bottom - top });
  }

  release(event) {
    const from = this.pressed, to = this.at(event).px;
    this.pressed = undefined;
    if (from === undefined || Math.abs(to - from) < 8) return;
    const [low, high] = [this.frame.x.back(Math.min(from, to)), this.frame.x.back(Math.max(from, to))];
    this.zoom = { low, high, log: this.frame.xRange.log };
    this.draw();
  }
}

const pathOf = (points) => (points.length ? "M" + points.map(({ px, py }) => `${px.toFixed(1)} ${py.toFixed(1)}`).join("L") : "");

// Of the first `count` texts, those of the x axis, none touches the one before.
function thin(texts, count) {
  let end = -Infinity;
  for (const text of [...texts.children].slice(0, count)) {
    const box = text.getBoundingClientRect();
    if (box.left < end + 4) text.remove();
    else end = box.right;
  }
}

const tip = document.createElement("div");
tip.className = "chart-tip";
tip.hidden = true;
document.body.append(tip);
function showTip(lines, event) {
  tip.replaceChildren(...lines.map((line) => Object.assign(document.createElement("div"), { textContent: line })));
  tip.hidden = false;
  const size = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(event.clientX + 14, innerWidth - size.width - 8))}px`;
  tip.style.top = `${event.clientY - size.height - 14 >= 8 ? event.clientY - size.height - 14 : event.clientY + 18}px`;
}

const X_TITLES = { step: "step", tokens: "tokens read", supervised: "supervised tokens", seconds: "seconds since the start" };
const X_NAMES = { step: "step", tokens: "tokens", supervised: "supervised tokens", seconds: "second" };
let xChoice = "step";
const charts = [...document.querySelectorAll(".plot")].filter((place) => panels[place.id.slice(5)]).map((place) => new Chart(place, place.id.slice(5)));
const chartOf = (id) => charts.find((chart) => chart.place.id === id);

// A list of plots that stand in one place, one at a time; its caption follows.
document.querySelectorAll("select[data-plot]").forEach((choice) => choice.addEventListener("change", () => {
  const chart = chartOf(choice.dataset.plot);
  chart.show(choice.value);
  const caption = chart.place.parentElement.querySelector("figcaption");
  if (caption) caption.textContent = panels[choice.value].caption;
}));
document.querySelectorAll("select[data-x]").forEach((choice) => choice.addEventListener("change", () => {
  xChoice = choice.value;
  charts.forEach((chart) => { chart.zoom = null; chart.draw(); });
}));

// A click on a name hides what carries it: its marks in every plot, and its own parts of the page.
const keys = [...document.querySelectorAll("[data-run]:is(button)")];
function show(runs, shown) {
  keys.filter((key) => runs.has(key.dataset.run)).forEach((key) => key.setAttribute("aria-pressed", String(shown)));
  document.querySelectorAll("[data-of]").forEach((part) => { if (runs.has(part.dataset.of)) part.hidden = !shown; });
  charts.forEach((chart) => {
    runs.forEach((run) => (shown ? chart.hidden.delete(Number(run)) : chart.hidden.add(Number(run))));
    chart.draw();
  });
}
keys.forEach((key) => key.addEventListener("click", () => show(new Set([key.dataset.run]), key.getAttribute("aria-pressed") !== "true")));
return { keys, show };
})();
