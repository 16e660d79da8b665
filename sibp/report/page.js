// Draws each figure when it comes near the window: a page of many figures opens at once.
"use strict";
const touch = matchMedia("(pointer: coarse)").matches;
function draw(plot) {
  if (plot.dataset.drawn) return;
  plot.dataset.drawn = "yes";
  const { data, layout } = JSON.parse(plot.nextElementSibling.textContent);
  if (touch) layout.dragmode = false; // a finger scrolls the page
  Plotly.newPlot(plot, data, layout, { responsive: true, displaylogo: false });
}
const plots = document.querySelectorAll(".plot");
const watcher = new IntersectionObserver(
  (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target)),
  { rootMargin: "600px" },
);
plots.forEach((plot) => watcher.observe(plot));
addEventListener("beforeprint", () => plots.forEach(draw));
