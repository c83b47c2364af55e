// Loads the page again when runs have moved on, and leaves what the reader chose as it was.
const chosen = JSON.parse(sessionStorage.getItem("chosen") ?? "{}");
const named = (key) => key.textContent.trim();

function restore() {
  if (typeof keys === "undefined") return;
  const hidden = keys.filter((key) => (chosen.hidden ?? []).includes(named(key))).map((key) => key.dataset.run);
  if (hidden.length) show(new Set(hidden), false);
  document.querySelectorAll("select").forEach((select, index) => {
    const option = [...select.options].find((one) => one.text === chosen.selects?.[index]);
    if (!option || option.selected) return;
    select.value = option.value;
    select.dispatchEvent(new Event("change"));
  });
  document.querySelectorAll("details").forEach((part) => { part.open = (chosen.open ?? []).includes(part.querySelector("summary").textContent); });
  scrollTo(0, chosen.scroll ?? 0);
}

function save() {
  const texts = (query, text) => [...document.querySelectorAll(query)].map(text);
  sessionStorage.setItem("chosen", JSON.stringify({
    hidden: texts('button[data-run][aria-pressed="false"]', named),
    selects: texts("select", (select) => select.selectedOptions[0]?.text),
    open: texts("details[open] > summary", (summary) => summary.textContent),
    scroll: scrollY,
  }));
}

async function look() {
  try {
    const version = await (await fetch("/version")).text();
    if (version !== watched.version) { save(); location.reload(); return; }
  } catch { /* the command has ended: the last page stays */ }
  setTimeout(look, watched.every);
}
restore();
setTimeout(look, watched.every);
