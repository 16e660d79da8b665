// A report inside a page of the site follows the site's palette: by a message, as pages from files see nothing of each other.
for (const frame of document.querySelectorAll("iframe.report")) {
  const tell = () => frame.contentWindow.postMessage({ dark: document.body.dataset.mdColorScheme === "slate" }, "*");
  frame.addEventListener("load", tell);
  new MutationObserver(tell).observe(document.body, { attributeFilter: ["data-md-color-scheme"] });
}
