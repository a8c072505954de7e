"use strict";
// Without this script the page shows everything it can; with it, choices choose, and figures answer to a pointer.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const tip = document.getElementById("tip");

// Theme: the system's until the button is pressed, then the reader's, remembered where the browser allows it.
const theme = document.getElementById("theme");
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const remembered = () => { try { return localStorage.getItem("reparam-theme"); } catch { return null; } };
let chosen = remembered();
function paint() {
  const dark = chosen ? chosen === "dark" : systemDark.matches;
  document.documentElement.style.colorScheme = dark ? "dark" : "light";
  theme.setAttribute("aria-pressed", dark);
  theme.querySelector("span").textContent = dark ? "Light" : "Dark";
}
theme.addEventListener("click", () => {
  chosen = theme.getAttribute("aria-pressed") === "true" ? "light" : "dark";
  try { localStorage.setItem("reparam-theme", chosen); } catch { /* a page on disc may have no storage */ }
  paint();
});
systemDark.addEventListener("change", paint);
paint();

// A control with data-shows="energy" shows what has its value as data-energy, and hides what has another one.
// Choices that offer each other's values, such as the energy tables, follow one another.
const offers = (choice, value) => [...choice.options].some((option) => option.value === value);
function follow(choice) {
  for (const other of all("select[data-shows]")) {
    if (other.value === choice.value || !offers(other, choice.value) || !offers(choice, other.value)) continue;
    other.value = choice.value;
    other.dispatchEvent(new Event("input"));
  }
}
for (const control of all("[data-shows]")) {
  const name = `data-${control.dataset.shows}`;
  const show = () => {
    // Not `.hidden`, which SVG elements lack.
    for (const part of all(`[${name}]`)) part.toggleAttribute("hidden", part.getAttribute(name) !== control.value);
    if (control.options) follow(control);
  };
  control.addEventListener("input", show);
  control.addEventListener("change", show);
}
for (const control of all("[data-strength]")) {
  control.addEventListener("input", () =>
    control.closest("section").style.setProperty("--strength", control.value / 100));
}
for (const button of all("[data-fold]")) {
  button.addEventListener("click", () => {
    for (const fold of all("details", button.parentElement.nextElementSibling)) fold.open = button.dataset.fold === "open";
  });
}

// Tips: beside the pointer, inside the window.
function showTip(x, y) {
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(6, Math.min(x + 14, innerWidth - box.width - 6))}px`;
  tip.style.top = `${y + 18 + box.height > innerHeight ? y - box.height - 10 : y + 18}px`;
}
document.addEventListener("pointermove", (event) => {
  const owner = event.target.closest("[data-tip]");
  if (owner) {
    tip.textContent = owner.dataset.tip;
    showTip(event.clientX, event.clientY);
  } else if (!event.target.closest(".plot")) tip.hidden = true;
});

// Charts: a guide at the nearest point, and every line's value there.
function value(y) {
  return Math.abs(y) < 1e-3 && y !== 0 ? y.toExponential(2) : String(Number(y.toPrecision(4)));
}
for (const chart of all("[data-chart]")) {
  const { epochs, lines } = JSON.parse(chart.dataset.chart);
  const plot = chart.querySelector(".plot"), guide = chart.querySelector(".guide");
  const places = [...new Set(lines.flatMap((line) => line.points.map((point) => point[0])))].sort((a, b) => a - b);
  const nearest = (x, xs) => xs.reduce((best, at) => (Math.abs(at - x) < Math.abs(best - x) ? at : best), xs[0]);
  let at = 0;
  function read(x, pointer) {
    at = places.indexOf(x);
    const box = plot.getBoundingClientRect(), share = x / epochs;
    guide.hidden = false;
    guide.style.left = `${100 * share}%`;
    const rows = [document.createTextNode(`epoch ${value(x)}`)];
    for (const line of lines) {
      const found = nearest(x, line.points.map((point) => point[0]));
      if (Math.abs(found - x) > epochs / 20) continue;
      const swatch = document.createElement("i");
      swatch.style.setProperty("--c", line.colour.includes("(") ? line.colour : `var(--${line.colour})`);
      const last = line.points.filter((point) => point[0] === found).at(-1);
      rows.push(document.createTextNode("\n"), swatch, `${line.name}  ${value(last[1])}`);
    }
    tip.replaceChildren(...rows);
    showTip(pointer ? pointer.clientX : box.left + share * box.width, pointer ? pointer.clientY : box.top);
  }
  const rest = () => { guide.hidden = tip.hidden = true; };
  for (const kind of ["pointermove", "pointerdown"]) {
    plot.addEventListener(kind, (event) => {
      const box = plot.getBoundingClientRect();
      read(nearest(((event.clientX - box.left) / box.width) * epochs, places), event);
    });
  }
  plot.addEventListener("pointerleave", rest);
  plot.addEventListener("blur", rest);
  plot.addEventListener("focus", () => { if (plot.matches(":focus-visible")) read(places[at]); });
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    read(places[Math.max(0, Math.min(places.length - 1, at + step))]);
  });
}
