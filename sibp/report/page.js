// Draws the figures, and lets a reader switch, sort, filter and download. Nothing leaves the reader's machine.
"use strict";
const MARGIN = 600; // pixels: figures are drawn when they come near the window
const MARKED = 10; // points of a curve, at most, that carry the method's marker
const DASHES = { solid: "", dash: "8 5", dot: "2 4", dashdot: "8 4 2 4", longdash: "14 5", longdashdot: "14 4 2 4" };
const touch = matchMedia("(pointer: coarse)").matches;
const styles = JSON.parse(document.getElementById("styles").textContent);
const config = { responsive: true, displayModeBar: touch ? false : "hover", displaylogo: false, showSendToCloud: false, plotlyServerURL: "", typesetMath: false,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "toImage"],
  modeBarButtonsToAdd: touch || !window.Plotly ? [] : ["png", "svg"].map((format) => ({ name: `Download as ${format.toUpperCase()}`,
    icon: format === "png" ? Plotly.Icons.camera : Plotly.Icons.disk, click: (plot) => download(plot, format) })) };
const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const shade = (colour) => `rgba(${[1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16)).join(",")},0.18)`;
const plots = [...document.querySelectorAll(".plot")];
const states = new Map(); // part of the page -> the values of its switches and its hidden methods
for (const part of document.querySelectorAll("main > section"))
  states.set(part, { axis: "training steps", scale: "log", accuracy: "error", spread: "band", smooth: "0", hidden: new Set() });

const smoothed = (values, keep) => {
  let last = null;
  return values.map((value) => (value === null ? null : (last = last === null ? value : keep * last + (1 - keep) * value)));
};

// 1 - accuracy; an error of 0 is drawn at half the smallest other error, since a logarithmic axis has no place for 0.
function errors(values) {
  const found = values.map((value) => (value === null ? null : +(1 - value).toPrecision(6)));
  const floor = Math.min(1, ...found.filter((value) => value > 0)) / 2;
  return found.map((value) => (value === null ? null : Math.max(value, floor)));
}
const isError = (figure, state) => figure.curves && state.accuracy === "error" && figure.y_title.endsWith("acc");

function traces(line, figure, state) {
  const grey = () => getComputedStyle(document.documentElement).getPropertyValue("--muted").trim();
  const style = line.muted ? { ...styles[line.group], colour: grey(), dash: "solid" } : styles[line.group];
  const curve = figure.curves, error = isError(figure, state);
  if (line.kind === "seed" && state.spread !== "seeds") return [];
  const x = curve ? line.x[state.axis] : Object.values(line.x)[0];
  if (!x) return [];
  const flip = (values) => (error ? errors(values) : values);
  const keep = curve && line.kind !== "cross" ? Number(state.smooth) : 0;
  const ready = (values) => flip(keep ? smoothed(values, keep) : values);
  const about = `<b>${escaped(line.group)}</b>${line.detail ? "<br>" + escaped(line.detail) : ""}`;
  const at = (i) => (curve ? `<br>step ${line.x["training steps"][i]}` : "");
  const value = (i) => (figure.rows.length || line.y[i] === null ? "" : `<br>${escaped(figure.y_title)} ${+line.y[i].toPrecision(5)}`);
  const texts = line.y.map((_, i) => (line.texts ? escaped(line.texts[i]) + (line.detail ? "<br>" + escaped(line.detail) : "") : about) + at(i));
  const seconds = curve && line.x["training seconds"];
  const base = { type: "scatter", name: escaped(line.label), x, y: ready(line.y), showlegend: false,
    text: texts.map((text, i) => text + (seconds ? `, ${seconds[i]} s` : "") + value(i)), hovertemplate: "%{text}<extra></extra>" };
  const marker = { color: style.colour, symbol: style.mark, size: 6 };
  if (line.kind === "cross") return [{ ...base, mode: "markers", marker: { ...marker, symbol: "x", size: 11 } }];
  if (line.kind === "points") return [{ ...base, mode: "markers", marker }];
  if (line.kind === "interval") {
    const bars = { type: "data", symmetric: false, array: [line.high[0] - x[0]], arrayminus: [x[0] - line.low[0]],
      color: style.colour, thickness: 2.5, width: 5 };
    return [{ ...base, mode: "markers", marker: { ...marker, size: 10 }, error_x: bars }];
  }
  if (line.kind === "seed") return [{ ...base, mode: "lines", line: { color: style.colour, width: 1, dash: style.dash }, opacity: 0.5 }];
  const legend = line.muted ? null : escaped(line.label + (line.detail ? ` (${line.detail})` : ""));
  const main = { ...base, meta: { legend }, mode: line.muted ? "lines" : "lines+markers", marker: { ...marker, maxdisplayed: MARKED }, line: { color: style.colour, width: line.muted ? 1 : 2.5, dash: style.dash } };
  if (!line.low || (curve && state.spread !== "band")) return [main];
  const edge = { type: "scatter", x, mode: "lines", hoverinfo: "skip", showlegend: false, line: { width: 0, color: style.colour } };
  const upper = { ...edge, y: ready(line.high), fill: "tonexty", fillcolor: shade(style.colour) };
  return [{ ...edge, y: ready(line.low) }, upper, main];
}

// Ticks at powers of ten where there are enough of them, else at 1, 2 and 5 times these.
function logTicks(values) {
  const logs = values.filter((value) => value > 0).map(Math.log10), span = Math.max(...logs) - Math.min(...logs);
  return span < 0.9 || span > 8 || !logs.length ? { nticks: 6, exponentformat: "power" } : { exponentformat: "power", dtick: span > 2.5 ? 1 : "D2" };
}

function layout(plot, figure, state, data) {
  const css = getComputedStyle(document.documentElement), colour = (name) => css.getPropertyValue(name).trim();
  const shown = data.filter((trace) => trace.hoverinfo !== "skip");
  const axis = (title, log, key) => ({ title: { text: escaped(title), standoff: 8 }, type: log ? "log" : "linear", gridcolor: colour("--rule"),
    linecolor: colour("--faint"), zeroline: false, automargin: true, ...(log ? logTicks(shown.flatMap((trace) => trace[key])) : {}) });
  const error = isError(figure, state);
  const yLog = figure.curves ? (figure.y_log || error) && state.scale === "log" : figure.y_log;
  const own = !figure.curves && !figure.rows.length && !plot.closest("section").querySelector(".methods");
  plot.classList.toggle("legend", own);
  if (own) for (const trace of data) if (trace.meta?.legend) trace.showlegend = true;
  const y = axis(error ? `1 − ${figure.y_title}` : figure.y_title, yLog, "y");
  if (figure.rows.length)
    Object.assign(y, { tickvals: figure.rows.map((_, i) => i), ticktext: figure.rows.map(escaped), range: [figure.rows.length - 0.5, -0.5] });
  return { xaxis: axis(figure.curves ? state.axis : figure.x_title, figure.x_log, "x"), yaxis: y, margin: { l: 56, r: 12, t: 26, b: 40 },
    showlegend: own, legend: { orientation: "h", y: -0.3, yanchor: "top", font: { size: 11 } }, hovermode: "closest", paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: touch ? false : "zoom",
    hoverlabel: { align: "left" }, modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--faint"), activecolor: colour("--ink") },
    font: { family: "system-ui, DejaVu Sans, sans-serif", size: 12, color: colour("--ink") } };
}

function draw(plot) {
  const figure = (plot.figure ??= JSON.parse(plot.nextElementSibling.textContent));
  const state = states.get(plot.closest("section"));
  const data = figure.lines.filter((line) => !state.hidden.has(line.group)).flatMap((line) => traces(line, figure, state));
  plot.dataset.name = figure.name;
  plot.dataset.drawn = "yes";
  Plotly.react(plot, data, layout(plot, figure, state, data), config);
}

// A downloaded picture stands alone, so it gets the title and the legend that the page shows above it.
function download(plot, format) {
  const figure = plot.figure, css = getComputedStyle(document.documentElement);
  const data = plot.data.map((trace) => (trace.meta?.legend ? { ...trace, name: trace.meta.legend, showlegend: true } : trace));
  const named = data.filter((trace) => trace.showlegend).length;
  const width = 900, height = 480 + 22 * named;
  const full = { ...plot.layout, title: { text: escaped(figure.title), x: 0.5 }, width, height, showlegend: named > 0,
    margin: { l: 70, r: 20, t: 50, b: 60 + 22 * named }, paper_bgcolor: css.getPropertyValue("--card").trim(),
    legend: { orientation: "v", x: 0, y: -0.18, yanchor: "top" } };
  return Plotly.downloadImage({ data, layout: full }, { format, filename: figure.name, width, height, scale: format === "png" ? 2 : 1 });
}

function drawNear() {
  for (const plot of plots) {
    if (plot.dataset.drawn || plot.closest("details:not([open])")) continue;
    const { top, bottom } = plot.getBoundingClientRect();
    if (top < innerHeight + MARGIN && bottom > -MARGIN) draw(plot);
  }
}
const redraw = (part) => plots.filter((plot) => plot.dataset.drawn && (!part || part.contains(plot))).forEach(draw);

for (const part of document.querySelectorAll("main > section")) {
  const state = states.get(part), figures = [...part.querySelectorAll(".curves .plot")].map((plot) => JSON.parse(plot.nextElementSibling.textContent));
  for (const button of part.querySelectorAll(".methods button")) {
    const style = styles[button.dataset.group], line = button.querySelector("line");
    line.setAttribute("stroke", style.colour);
    line.setAttribute("stroke-width", 4);
    line.setAttribute("stroke-dasharray", DASHES[style.dash]);
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", shown);
      state.hidden[shown ? "delete" : "add"](button.dataset.group);
      redraw(part);
    });
  }
  for (const field of part.querySelectorAll("[data-switch]"))
    for (const button of field.querySelectorAll("button")) {
      if (field.dataset.switch === "axis" && !figures.some((f) => f.lines.some((line) => line.x[button.dataset.value]))) button.hidden = true;
      button.addEventListener("click", () => {
        state[field.dataset.switch] = button.dataset.value;
        for (const other of field.querySelectorAll("button")) other.setAttribute("aria-pressed", other === button);
        redraw(part);
      });
    }
}

const valueOf = (row, i) => row.cells[i].dataset.value ?? row.cells[i].textContent;
const numeric = (text) => (text === "inf" ? Infinity : text === "-inf" ? -Infinity : text === "" ? NaN : Number(text));
// Numbers by size, text by alphabet; in a column of numbers, other cells come last in both directions.
function order(a, b, sign) {
  const x = numeric(a), y = numeric(b);
  if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1;
  return sign * (isNaN(x) ? a.localeCompare(b, "en", { numeric: true }) : x - y || 0);
}
for (const box of document.querySelectorAll(".table")) {
  const table = box.querySelector("table"), body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, i) => head.firstElementChild.addEventListener("click", () => {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    body.append(...[...body.rows].sort((a, b) => order(valueOf(a, i), valueOf(b, i), sign)));
  }));
  const filter = box.querySelector("input");
  if (body.rows.length < 6) filter.hidden = true;
  filter.addEventListener("input", () => {
    for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(filter.value.toLowerCase());
  });
  const cell = (text) => `"${(/^[=+\-@\t\r]/.test(text) && isNaN(text) ? "'" + text : text).replace(/"/g, '""')}"`;
  box.querySelector(".csv").addEventListener("click", () => {
    const rows = [...body.rows].filter((row) => !row.hidden).map((row) => [...row.cells].map((_, i) => cell(valueOf(row, i))));
    const text = [heads.map((head) => cell(head.textContent)), ...rows].map((row) => row.join(",")).join("\n") + "\n";
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })),
      download: `${box.dataset.name}.csv` });
    link.click();
    URL.revokeObjectURL(link.href);
  });
}

const theme = document.getElementById("theme"), system = matchMedia("(prefers-color-scheme: dark)");
function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  theme.textContent = dark ? "Light" : "Dark";
  redraw();
}
theme.addEventListener("click", () => setTheme(document.documentElement.dataset.theme !== "dark"));
system.addEventListener("change", () => setTheme(system.matches));
addEventListener("message", ({ data }) => { if (typeof data?.dark === "boolean") setTheme(data.dark); }); // of a page around it
setTheme(system.matches);
for (const event of ["load", "scroll", "resize"]) addEventListener(event, drawNear, { passive: true });
document.addEventListener("toggle", drawNear, true); // a folded part was opened
addEventListener("beforeprint", () => plots.forEach(draw));
