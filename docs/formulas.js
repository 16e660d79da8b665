// Typesets every formula that pymdownx.arithmatex marked, with KaTeX.
for (const node of document.querySelectorAll(".arithmatex")) {
  const tex = node.textContent.trim();
  katex.render(tex.slice(2, -2), node, { displayMode: tex.startsWith("\\["), throwOnError: false });
}
