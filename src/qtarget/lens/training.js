// Tokens of a run at the slider's step: coloured by a quantity; of the chosen one its numbers, its course and its bars.
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const slider = at("slider"), panel = at("token");
const spans = [...document.querySelectorAll(".token")];
const choices = [...document.querySelectorAll("[data-quantity]")];
let step = 0, quantity = choices[0].dataset.quantity, chosen = null;

const digits = (value) => {
  if (value === null) return "–";
  return Math.abs(value) >= 0.001 || value === 0 ? Number(value.toPrecision(3)).toString() : value.toExponential(1);
};
const brief = (value) => (Math.abs(value) < 0.0005 ? "0" : value.toFixed(3));
const tokenOf = (span) => { const [row, place] = span.dataset.token.split(" ").map(Number); return data.rows[row][place]; };
const valueOf = (token) => (quantity === "pull" ? token.q[step] - token.p[step] : token[quantity][step]);

// Blue above 0, red below, the deeper the nearer to the end of the scale.
function shade(value, end) {
  const colour = value >= 0 ? data.up : data.down;
  const depth = Math.round(255 * data.deepest * Math.min(Math.abs(value ?? 0) / end, 1)).toString(16).padStart(2, "0");
  return colour + depth;
}

function make(parent, name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
}

function part(parent, kind, style, text) {
  const made = document.createElement(text === undefined ? "i" : "span");
  made.className = kind;
  Object.assign(made.style, style);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function paint() {
  slider.value = step;
  slider.setAttribute("aria-valuetext", `step ${data.steps[step]}`);
  at("where").textContent = `step ${data.steps[step]} of ${data.steps.at(-1)}`;
  const end = data.ends[quantity];
  spans.forEach((span) => { span.style.background = shade(valueOf(tokenOf(span)), end); });
  at("scale").style.background = `linear-gradient(90deg, ${shade(-end, end)}, transparent, ${shade(end, end)})`;
  const beyond = quantity === "trust";
  at("low").textContent = `${beyond ? "≤ " : ""}−${digits(end)}`;
  at("high").textContent = `${beyond ? "≥ " : ""}${digits(end)}`;
  const choice = choices.find((one) => one.dataset.quantity === quantity);
  at("about").textContent = `${choice.textContent}: ${choice.title}.`;
  if (chosen) tell();
}

function tell() {
  const token = tokenOf(chosen);
  const names = choices.filter((one) => one.dataset.quantity in token).map((one) => [one.textContent, token[one.dataset.quantity][step]]);
  const name = document.createElement("b");
  name.textContent = token.text;
  at("numbers").replaceChildren(name, ` ${token.wrong ? "made wrong " : ""}at step ${data.steps[step]}: ${names.map(([title, value]) => `${title} ${digits(value)}`).join(" · ")}`);
  const all = [{ text: token.text, p: token.p, q: token.q }, ...token.others];
  const values = all.flatMap((one) => [...one.p, ...one.q]).filter((value) => value !== null);
  const low = Math.min(0, ...values), high = Math.max(1, ...values);
  drawCourse(token, low, high);
  const head = document.createElement("div");
  head.className = "bar";
  ["token", "", "p → Q"].forEach((title) => part(head, "title", {}, title));
  at("bars").replaceChildren(head, ...all.map((one) => bar(one, low, high)));
}

// p in grey and Q in the design's colour, over the steps; a line where the slider stands.
function drawCourse(token, low, high) {
  const svg = at("course"), first = data.steps[0], last = data.steps.at(-1);
  const x = (index) => 26 + ((data.steps[index] - first) / Math.max(1, last - first)) * 286;
  const y = (value) => 98 - ((value - low) / (high - low)) * 88;
  svg.replaceChildren();
  for (const tick of [0, 1]) {
    make(svg, "path", { d: `M26 ${y(tick)}H312`, stroke: "var(--rule)" });
    make(svg, "text", { x: 20, y: y(tick) + 4, "text-anchor": "end" }, tick);
  }
  make(svg, "path", { d: `M${x(step)} 8V98`, stroke: "var(--ink)", id: "here" });
  const lines = [["p", "var(--soft)", 3], ["q", data.colour, 2]];
  for (const [key, stroke, width] of lines) {
    const path = token[key].map((value, index) => `${index ? "L" : "M"}${x(index)} ${y(value)}`).join("");
    make(svg, "path", { d: path, stroke, "stroke-width": width, "stroke-linejoin": "round", class: key });
    make(svg, "circle", { cx: x(step), cy: y(token[key][step]), r: 3.2, fill: stroke });
  }
  make(svg, "text", { x: 26, y: 114 }, `step ${first}`);
  make(svg, "text", { x: 312, y: 114, "text-anchor": "end" }, `step ${last}: grey p(y), colour Q(y)`);
}

function bar(one, low, high) {
  const line = document.createElement("div");
  line.className = "bar";
  const share = (value) => (100 * value) / (high - low);
  part(line, "name", {}, one.text).title = one.text;
  const track = part(line, "track", {}, "");
  for (const [key, colour] of [["p", ""], ["q", data.colour]]) {
    const value = one[key][step];
    if (value === null) continue;
    part(track, key, { left: `${share(Math.min(0, value) - low)}%`, width: `${share(Math.abs(value))}%`, background: colour });
  }
  part(track, "zero", { left: `${share(-low)}%` });
  const value = one.p[step];
  part(line, "value", {}, value === null ? "not recorded" : `${brief(value)} → ${brief(one.q[step])}`);
  return line;
}

function choose(span) {
  chosen?.classList.remove("chosen");
  chosen = span;
  span.classList.add("chosen");
  [...span.parentElement.querySelectorAll(".token")].forEach((other) => { other.tabIndex = other === span ? 0 : -1; });
  span.closest("article").append(panel);
  panel.hidden = false;
  tell();
}

function walk(event) {
  const moves = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
  if (!(event.key in moves) || !event.target.matches?.(".token")) return;
  const line = [...event.target.parentElement.querySelectorAll(".token")];
  line[Math.max(0, Math.min(line.length - 1, line.indexOf(event.target) + moves[event.key]))].focus();
  event.preventDefault();
}

slider.addEventListener("input", () => { step = Number(slider.value); paint(); });
choices.forEach((choice) => choice.addEventListener("click", () => {
  quantity = choice.dataset.quantity;
  choices.forEach((other) => other.setAttribute("aria-pressed", String(other === choice)));
  paint();
}));
document.addEventListener("focusin", (event) => { if (event.target.matches?.(".token")) choose(event.target); });
document.addEventListener("click", (event) => { if (event.target.matches?.(".token")) choose(event.target); });
document.addEventListener("keydown", walk);
if (spans.length) choose(spans.find((span) => span.matches(".wrong")) ?? spans[0]);
paint();
