// Draws each figure when it comes near the window: a page of many figures opens at once.
"use strict";
const MARGIN = 600; // pixels
const touch = matchMedia("(pointer: coarse)").matches;
// Nothing leaves the reader's machine: no button sends a figure to a server.
const config = { responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "", typesetMath: false };
const plots = [...document.querySelectorAll(".plot")];

function draw(plot) {
  if (plot.dataset.drawn) return;
  plot.dataset.drawn = "yes";
  const { data, layout } = JSON.parse(plot.nextElementSibling.textContent);
  if (touch) layout.dragmode = false; // a finger scrolls the page
  Plotly.newPlot(plot, data, layout, config);
}

function drawNear() {
  for (const plot of plots) {
    if (plot.dataset.drawn || plot.closest("details:not([open])")) continue;
    const { top, bottom } = plot.getBoundingClientRect();
    if (top < innerHeight + MARGIN && bottom > -MARGIN) draw(plot);
  }
}

for (const event of ["load", "scroll", "resize"]) addEventListener(event, drawNear, { passive: true });
document.addEventListener("toggle", drawNear, true); // a folded part was opened
addEventListener("beforeprint", () => plots.forEach(draw));
