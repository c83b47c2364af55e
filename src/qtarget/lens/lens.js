// Which quantity the small plots show.
const choices = [...document.querySelectorAll(".choice [data-quantity]")];
choices.forEach((choice) => choice.addEventListener("click", () => {
  choices.forEach((other) => other.setAttribute("aria-pressed", String(other === choice)));
  document.getElementById("sketches").dataset.quantity = choice.dataset.quantity;
}));

// Bars of p and Q over the vocabulary, at the slider's p(y).
const bars = JSON.parse(document.getElementById("bars").textContent);
const box = { left: 26, right: 298, top: 10, bottom: 132 };
const pitch = (box.right - box.left) / bars.tokens.length;

function element(parent, name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

// A plot from `low` to `high`, and the functions that draw into it.
function barPlot(place, [low, high]) {
  const svg = element(place, "svg", { viewBox: "0 0 304 150", role: "img", "aria-label": place.querySelector("h3").textContent.trim() });
  const y = (value) => box.bottom - ((value - low) / (high - low)) * (box.bottom - box.top);
  const x = (token) => box.left + (token + 0.5) * pitch;
  const ticks = [...new Set([0, 1, high > 1.2 ? high : 1, low < -0.1 ? low : 0])];
  ticks.forEach((tick) => {
    element(svg, "path", { class: tick === 0 ? "base" : "one", d: `M${box.left} ${y(tick)}H${box.right}` });
    element(svg, "text", { class: "tick", x: box.left - 4, y: y(tick) + 3.5 }, Number(tick.toFixed(1)));
  });
  bars.tokens.forEach((token, index) => element(svg, "text", { x: x(index), y: 147 }, token));
  const rects = (width, attributes) => {
    const made = bars.tokens.map((_, index) => element(svg, "rect", { ...attributes, x: x(index) - (width * pitch) / 2, width: width * pitch }));
    return (row) => row.forEach((value, index) => {
      made[index].setAttribute("y", y(Math.max(0, value)));
      made[index].setAttribute("height", Math.abs(y(value) - y(0)));
    });
  };
  return { svg, x, y, rects };
}

const updates = [];
{
  const plot = barPlot(document.getElementById("bars-world"), [0, 1]);
  const policy = plot.rects(0.86, { class: "p" });
  updates.push((step) => policy(bars.policy[step]));
  for (const role of ["prior", "teacher"]) {
    bars[role].forEach((value, index) => element(plot.svg, "circle", { class: role, cx: plot.x(index), cy: plot.y(value), r: 3.4 }));
  }
}
document.querySelectorAll("[data-bars]").forEach((place) => {
  const design = bars.designs[Number(place.dataset.bars)];
  const plot = barPlot(place, design.reach);
  const policy = plot.rects(0.86, { class: "p" }), target = plot.rects(0.46, { fill: design.colour });
  updates.push((step) => { policy(bars.policy[step]); target(design.targets[step]); });
});

document.querySelectorAll("[data-differences]").forEach((place) => {
  const difference = bars.differences[Number(place.dataset.differences)];
  const show = barPlot(place, difference.reach).rects(0.6, { fill: difference.colour });
  updates.push((step) => show(difference.targets[step]));
});

const slider = document.getElementById("slider"), where = document.getElementById("where");
function slide(step) {
  slider.value = step;
  slider.setAttribute("aria-valuetext", `p(y) = ${bars.p[step]}`);
  where.textContent = `p(y) = ${bars.p[step].toFixed(3)}`;
  updates.forEach((update) => update(step));
}
slider.addEventListener("input", () => slide(Number(slider.value)));
document.querySelectorAll("[data-stop]").forEach((stop) => stop.addEventListener("click", () => slide(bars.p.indexOf(Number(stop.dataset.stop)))));
slide(bars.p.indexOf(0.3));

// The numbers of a token: at the pointer, under a finger, or with the keyboard.
const details = JSON.parse(document.getElementById("details").textContent);
const tip = document.getElementById("tip");
const digits = (value) => (Math.abs(value) >= 0.001 || value === 0 ? Number(value.toPrecision(3)).toString() : value.toExponential(1));

function line(text, kind) {
  const made = document.createElement("div");
  if (kind) made.className = kind;
  made.textContent = text;
  return made;
}

function tell(span) {
  const [row, design, place] = span.dataset.token.split(" ").map(Number);
  const token = details.rows[row][place];
  const name = document.createElement("b");
  name.textContent = token.text;
  const head = line(token.wrong ? " made wrong" : "");
  head.prepend(name);
  const prior = token.prior === null ? "" : ` · p prior ${digits(token.prior)}`;
  const others = token.alternatives.map((other) => `${other.text} ${digits(other.p)}`).join(" · ");
  const numbers = (values) => values.map((value, place) => `${details.titles[place]} ${digits(value)}`).join(" · ");
  const pulls = token.pulls[design];
  const lines = pulls ? [`${details.designs[design]}: ${numbers(pulls)}`] : token.differences[design - token.pulls.length];
  tip.replaceChildren(
    head,
    ...lines.map((text) => line(text)),
    line(`p ${digits(token.p)}${prior} · nll ${digits(token.nll)}`),
    line(`instead: ${others}`, "quiet"),
  );
  tip.hidden = false;
  const near = span.getClientRects()[0], size = tip.getBoundingClientRect();
  const above = near.top - size.height - 8;
  tip.style.left = `${Math.max(8, Math.min(near.left, innerWidth - size.width - 8))}px`;
  tip.style.top = `${above >= 8 ? above : Math.min(near.bottom + 8, innerHeight - size.height - 8)}px`;
}

// While the page scrolls, the numbers stay with a token that was chosen and go with one that was only pointed at.
function follow(held) {
  const place = held?.matches(".token") ? held.getBoundingClientRect() : null;
  if (place && place.bottom > 0 && place.top < innerHeight) tell(held);
  else tip.hidden = true;
}

function walk(event) {
  const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
  if (event.key === "Escape") tip.hidden = true;
  if (!(event.key in steps) || !event.target.matches(".token")) return;
  const line = [...event.target.parentElement.querySelectorAll(".token")];
  const next = Math.max(0, Math.min(line.length - 1, line.indexOf(event.target) + steps[event.key]));
  line.forEach((span, index) => { span.tabIndex = index === next ? 0 : -1; });
  line[next].focus();
  event.preventDefault();
}

if (tip) {
  const shown = document.getElementById("demonstrations");
  const on = (event) => { if (event.target.matches?.(".token")) tell(event.target); };
  const off = (event) => { if (event.target.matches?.(".token")) tip.hidden = true; };
  shown.addEventListener("pointerover", on);
  shown.addEventListener("pointerout", off);
  shown.addEventListener("focusin", on);
  shown.addEventListener("focusout", off);
  shown.addEventListener("click", on);
  shown.addEventListener("keydown", walk);
  addEventListener("scroll", () => follow(document.activeElement), { passive: true });
}
