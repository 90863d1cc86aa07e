// Draws one plot into its place when it comes into view, and again when its data, its width or the theme change.
"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const places = new Map();
  const watcher = new IntersectionObserver(
    (entries) => entries.forEach((entry) => { if (entry.isIntersecting) drawIfStale(entry.target); }),
    { rootMargin: "300px" },
  );
  const resized = new ResizeObserver((entries) => entries.forEach((entry) => {
    const place = places.get(entry.target);
    const narrow = entry.contentRect.width < 560;
    if (place && place.narrow !== undefined && place.narrow !== narrow) invalidate(entry.target);
  }));

  function add(id, makeSpec) {
    const element = document.getElementById(id);
    element.classList.add("waiting");
    places.set(element, { makeSpec, stale: true, view: null, running: false });
    watcher.observe(element);
    resized.observe(element);
  }

  async function drawIfStale(element) {
    const place = places.get(element);
    if (!place.stale || place.running || element.offsetParent === null) return;
    place.stale = false;
    place.running = true;
    place.narrow = element.clientWidth < 560;
    const spec = place.makeSpec(structuredClone(charts), place.narrow);
    place.view?.finalize();
    place.view = null;
    if (typeof spec === "string") {
      const text = document.createElement("p");
      text.className = "nothing";
      text.textContent = spec;
      element.replaceChildren(text);
    } else {
      place.view = await vegaEmbed(element, spec, {
        ast: true,
        renderer: "svg",
        config: charts.themes[lowbitReport.isDark() ? "dark" : "light"],
        actions: { export: { svg: true, png: true }, source: false, compiled: false, editor: false },
        downloadFileName: `lowbit-${element.id.replace("-plot", "")}`,
        tooltip: { theme: lowbitReport.isDark() ? "dark" : "light" },
      });
    }
    element.classList.remove("waiting");
    element.dataset.drawn = String(Number(element.dataset.drawn ?? 0) + 1);
    place.running = false;
    if (place.stale) drawIfStale(element);
  }

  function invalidate(element) {
    const place = places.get(element);
    place.stale = true;
    const box = element.getBoundingClientRect();
    if (box.top < innerHeight + 300 && box.bottom > -300) drawIfStale(element);
    else {
      watcher.unobserve(element);
      watcher.observe(element);
    }
  }

  const changed = (id) => invalidate(document.getElementById(id));
  document.addEventListener("lowbit:theme", () => places.forEach((_, element) => invalidate(element)));
  addEventListener("beforeprint", () => places.forEach((_, element) => drawIfStale(element)));

  window.lowbitReport.charts = { add, changed };
})();
