// The leaderboard: sorting, filtering, columns, theme. Runs before the plots' library is read.
"use strict";
(() => {
  const table = document.getElementById("runs");
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  const rows = [...body.rows];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const chosen = (id) => document.getElementById(id)?.value ?? "";
  const runs = JSON.parse(document.getElementById("data").textContent).runs;

  function sortKey(row, column, numeric) {
    const text = row.cells[column].dataset.sort;
    if (text === undefined) return null;
    return numeric ? Number(text.replace(/^(-?)inf$/, "$1Infinity")) : text;
  }

  function sortBy(column, direction) {
    const numeric = headings[column].dataset.numeric === "1";
    const sign = direction === "ascending" ? 1 : -1;
    const keyed = [...body.rows].map((row) => [sortKey(row, column, numeric), row]);
    keyed.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (a < b ? -1 : a > b ? 1 : 0);
    });
    headings.forEach((heading) => heading.removeAttribute("aria-sort"));
    headings[column].setAttribute("aria-sort", direction);
    body.append(...keyed.map(([, row]) => row));
    document.dispatchEvent(new Event("lowbit:rows"));
  }

  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const first = heading.dataset.higher === "1" ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      sortBy(column, heading.getAttribute("aria-sort") === first ? other : first);
    });
  });

  function filter() {
    const words = chosen("filter").toLowerCase().split(/\s+/).filter(Boolean);
    const model = chosen("model");
    const method = chosen("method");
    const way = chosen("way");
    const parents = document.getElementById("parents").checked;
    let shown = 0;
    rows.forEach((row, number) => {
      const run = runs[Number(row.dataset.run)];
      const parent = run.role === "parent";
      const fits =
        (parents || !parent) &&
        (!model || run.model === model) &&
        (!method || parent || run.method === method) &&
        (!way || run.with === way) &&
        words.every((word) => texts[number].includes(word));
      row.hidden = !fits;
      const made = document.querySelector(`details.made[data-run="${row.dataset.run}"]`);
      if (made) made.hidden = !fits;
      shown += fits;
    });
    const all = rows.length;
    document.getElementById("count").textContent =
      shown === all ? `${all} run${all === 1 ? "" : "s"}` : shown === 0 ? `None of ${all} runs fits the filter` : `${shown} of ${all} runs`;
    document.dispatchEvent(new Event("lowbit:rows"));
  }

  for (const id of ["filter", "model", "method", "way", "parents"]) {
    document.getElementById(id)?.addEventListener("input", filter);
  }

  for (const box of document.querySelectorAll("input[data-column]")) {
    box.addEventListener("change", () => {
      const column = Number(box.dataset.column);
      for (const row of table.rows) row.cells[column].hidden = !box.checked;
    });
  }

  function openLinked() {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && target.tagName === "DETAILS") {
      target.open = true;
      target.scrollIntoView();
    }
  }
  addEventListener("hashchange", openLinked);
  openLinked();

  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  function showTheme() {
    button.setAttribute("aria-pressed", String(isDark()));
    document.dispatchEvent(new Event("lowbit:theme"));
  }
  button.hidden = false;
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    showTheme();
  });
  system.addEventListener("change", showTheme);
  showTheme();

  window.lowbitReport = {
    isDark,
    visibleRuns: () => [...body.rows].filter((row) => !row.hidden).map((row) => Number(row.dataset.run)),
  };
  document.documentElement.dataset.interactive = String(Math.round(performance.now()));
})();
