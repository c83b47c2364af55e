const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");

// Axes and text take the page's colours; what is plotted keeps its own.
function pageColours() {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--soft").trim(), rule = style.getPropertyValue("--rule").trim();
  return { "font.color": ink, "xaxis.gridcolor": rule, "yaxis.gridcolor": rule, "xaxis.linecolor": rule, "yaxis.linecolor": rule };
}

const plots = Object.entries(figures).flatMap(([key, figure]) => {
  const place = document.getElementById("plot-" + key);
  if (!place) return [];
  Plotly.newPlot(place, figure.data, figure.layout, { responsive: true, displayModeBar: false });
  return [place];
});
const paint = () => plots.forEach((place) => Plotly.relayout(place, pageColours()));
paint();
dark.addEventListener("change", paint);

// A list of plots that stand in one place, one at a time.
document.querySelectorAll("select[data-plot]").forEach((choice) => choice.addEventListener("change", () => {
  const { data, layout } = figures[choice.value];
  Plotly.react(choice.dataset.plot, data, layout).then(paint);
}));

// A click on a name hides what carries it: its traces in every plot, and its own parts of the page.
const keys = [...document.querySelectorAll("[data-run]")];
function show(runs, shown) {
  keys.filter((key) => runs.has(key.dataset.run)).forEach((key) => key.setAttribute("aria-pressed", String(shown)));
  document.querySelectorAll("[data-of]").forEach((part) => { if (runs.has(part.dataset.of)) part.hidden = !shown; });
  plots.forEach((place) => {
    const traces = place.data.flatMap((trace, index) => (runs.has(trace.legendgroup) ? [index] : []));
    if (traces.length) Plotly.restyle(place, { visible: shown }, traces);
  });
}
keys.forEach((key) => key.addEventListener("click", () => show(new Set([key.dataset.run]), key.getAttribute("aria-pressed") !== "true")));
