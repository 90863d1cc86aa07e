// What each plot shows: quality against size, layers and training of the chosen run, what files consist of.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const ROW = 26; // pixels
  const { add, changed } = lowbitReport.charts;
  const element = (id) => document.getElementById(id);
  const metrics = Object.fromEntries(data.metrics.map((metric) => [metric.key, metric]));
  const named = (spec, name) => spec.layer.find((layer) => layer.name === name);

  const spansDecades = (values) => Math.min(...values) > 0 && Math.max(...values) >= 10 * Math.min(...values);

  // A scale of one single value would have no length.
  function around(values) {
    const value = values[0];
    return value !== 0 && values.every((other) => other === value) ? { domain: [0.9 * value, 1.1 * value].sort((a, b) => a - b) } : {};
  }

  // Quality against size.
  for (const size of data.sizes) element("pareto-x").append(new Option(size.title, size.key));
  if (data.y !== null) element("pareto-y").value = data.y;

  function pareto(charts, narrow) {
    const metric = metrics[element("pareto-y").value];
    const size = data.sizes.find((one) => one.key === element("pareto-x").value);
    if (!metric) return "No run has a metric to plot.";
    const points = [];
    const parents = new Map();
    for (const number of lowbitReport.visibleRuns()) {
      const run = data.runs[number];
      const y = run.values[metric.key];
      const x = run.sizes[size.key];
      if (y === undefined) continue;
      if (run.role === "parent") parents.set(`${run.model} ${y}`, { y, label: `parent ${run.model}` });
      else if (x !== null) {
        points.push({
          x, y, method: run.method, model: run.model, series: `${run.method} ${run.model}`,
          settings: run.settings || "–", seed: run.seed ?? "–", "run with": run.with || "–", run: run.id,
        });
      }
    }
    if (!points.length) return `No quantized run that the leaderboard shows has both ${metric.name} and ${size.title}.`;
    const spec = charts.pareto;
    spec.datasets = { points, parents: [...parents.values()] };
    const values = [...points, ...parents.values()].map((point) => point.y);
    const log = spansDecades(values);
    const models = new Set(points.map((point) => point.model)).size;
    for (const layer of spec.layer) {
      const { x, y } = layer.encoding;
      if (x?.field) {
        x.title = size.title;
        Object.assign(x.scale, around(points.map((point) => point.x)));
      }
      y.title = metric.title;
      y.scale = { type: log ? "log" : "linear", padding: 24, ...(log ? {} : { zero: false }), ...around(values) };
      for (const step of layer.transform ?? []) {
        if (!step.window) continue;
        for (const one of step.window) if (one.as === "best") one.op = metric.lower ? "min" : "max";
        for (const one of step.sort ?? []) if (one.field === "y") one.order = metric.lower ? "ascending" : "descending";
      }
    }
    const names = named(spec, "parents").mark;
    names.baseline = metric.lower ? "top" : "bottom";
    names.dy = metric.lower ? 5 : -5;
    const { tooltip, shape, color } = named(spec, "points").encoding;
    for (const one of tooltip) {
      if (one.field === "x") one.title = size.title;
      if (one.field === "y") one.title = metric.name;
    }
    if (models < 2) shape.legend = null;
    if (narrow) {
      color.legend = { orient: "bottom", columns: 2, title: "method" };
      if (models > 1) shape.legend = { orient: "bottom", columns: 1, title: "model" };
      for (const layer of spec.layer) if (layer.encoding.x?.axis) layer.encoding.x.axis.tickCount = 4;
      spec.height = 320;
    }
    return spec;
  }

  // Layers and training of one run.
  const read = (number) => JSON.parse(element(`run-${number}`).textContent);
  let run = read(Number(element("run").value));

  function cells(name) {
    const { kinds, blocks, at, count, values } = run.layers;
    const column = values[name];
    return at.map(([kind, block], place) => ({
      kind: kinds[kind],
      block: blocks[block] < 0 ? "none" : String(blocks[block]),
      value: Array.isArray(column) ? column[place] : column,
      layers: count[place],
    })).filter((cell) => cell.value !== null);
  }

  function heat(name) {
    return (charts, narrow) => {
      if (!run.layers) return run.why_no_layers;
      const key = name();
      if (!(key in run.layers.values)) return "This run recorded no diagnostics of its layers.";
      const spec = charts.heat;
      const wide = run.layers.blocks.length > (narrow ? 6 : 8);
      if (wide) spec.layer = spec.layer.filter((layer) => layer.name !== "numbers");
      const { color, tooltip } = named(spec, "cells").encoding;
      color.title = words(key);
      tooltip.find((one) => one.field === "value").title = words(key);
      spec.height = ROW * run.layers.kinds.length;
      spec.datasets = { cells: cells(key) };
      return spec;
    };
  }

  const words = (name) => name.replaceAll("_", " ");

  function training(charts) {
    if (!run.training) return run.why_no_training;
    const { losses, held_out } = run.training;
    const rows = [["training", losses], ["held out", held_out]].flatMap(([curve, points]) =>
      points.map(([step, loss]) => ({ curve, step, loss })));
    return withCurves(charts.training, rows);
  }

  function blocks(charts) {
    if (!run.training) return run.why_no_training;
    const rows = run.training.blocks.flatMap((points, block) => points.map(([step, loss]) => ({ block, step, loss })));
    return withCurves(charts.blocks, rows);
  }

  function withCurves(spec, rows) {
    const log = spansDecades(rows.map((row) => row.loss));
    for (const one of spec.layer ?? [spec]) one.encoding.y.scale = log ? { type: "log" } : { type: "linear", zero: false };
    spec.datasets = { curves: rows };
    return spec;
  }

  function showRun() {
    const number = Number(element("run").value);
    run = read(number);
    for (const place of document.querySelectorAll(".run-name")) place.textContent = data.runs[number].label;
    say("layers", run.layers ? null : run.why_no_layers);
    say("training", run.training ? null : run.why_no_training);
    const diagnostic = element("diagnostic");
    const before = diagnostic.value;
    const names = Object.keys(run.layers?.values ?? {}).filter((name) => name !== "relative_error");
    diagnostic.replaceChildren(...names.map((name) => new Option(words(name), name)));
    const density = names.find((name) => name.includes("density"));
    diagnostic.value = names.includes(before) ? before : density ?? names[0] ?? "";
    element("diagnostic-note").hidden = !run.layers || density !== undefined;
    element("diagnostic-note").textContent = "This method has no planes of bits, and so no density of planes.";
    const whole = Boolean(run.training && (run.training.losses.length || run.training.held_out.length));
    const each = Boolean(run.training && run.training.blocks.some((points) => points.length));
    element("training-whole").hidden = !whole;
    element("training-each").hidden = !each;
    element("training-whole").classList.toggle("alone", !each);
    element("training-each").classList.toggle("alone", !whole);
    for (const id of ["error-plot", "diagnostic-plot", "training-plot", "blocks-plot"]) changed(id);
  }

  function say(section, text) {
    element(`${section}-body`).hidden = text !== null;
    element(`${section}-nothing`).hidden = text === null;
    element(`${section}-nothing`).textContent = text ?? "";
  }

  // What files consist of.
  function shortLabels(runs) {
    const several = new Set(runs.map((one) => one.model)).size > 1;
    const names = runs.map((one) => (several ? `${one.method} · ${one.model}` : one.method));
    return names.map((name, number) => (names.filter((other) => other === name).length > 1 ? `${name} · ${runs[number].id}` : name));
  }

  function bits(charts) {
    const most = Number(element("bits-note").dataset.most);
    const seen = new Set();
    const shown = [];
    let alike = 0;
    let left = 0;
    for (const number of lowbitReport.visibleRuns()) {
      const one = data.runs[number];
      if (one.role === "parent" || !one.items.length) continue;
      const key = JSON.stringify([one.method, one.model, one.items]);
      if (seen.has(key)) alike += 1;
      else if (seen.size >= most) left += 1;
      else {
        seen.add(key);
        shown.push(one);
      }
    }
    const notes = ["Without the parents, in the leaderboard’s order."];
    if (alike) notes.push(`${alike} more run${alike === 1 ? " has a file" : "s have files"} of the same parts as one shown.`);
    if (left) notes.push(`${left} further runs are not shown: filter the leaderboard to see them.`);
    element("bits-note").textContent = notes.join(" ");
    if (!shown.length) return "No run that the leaderboard shows says what its file consists of.";
    const labels = shortLabels(shown);
    charts.bits.height = ROW * shown.length;
    charts.bits.datasets = {
      items: shown.flatMap((one, number) => one.items.map(([item, size, bytes], place) => (
        { run: labels[number], item, bits: size, bytes, place }))),
    };
    return charts.bits;
  }

  add("pareto-plot", pareto);
  add("error-plot", heat(() => "relative_error"));
  add("diagnostic-plot", heat(() => element("diagnostic").value));
  add("training-plot", training);
  add("blocks-plot", blocks);
  add("bits-plot", (charts, narrow) => {
    const spec = bits(charts);
    if (typeof spec !== "string" && narrow) {
      spec.encoding.y.axis.labelLimit = 120;
      spec.encoding.color.legend = { ...spec.encoding.color.legend, columns: 1, labelLimit: 240 };
    }
    return spec;
  });
  element("pareto-x").addEventListener("change", () => changed("pareto-plot"));
  element("pareto-y").addEventListener("change", () => changed("pareto-plot"));
  element("diagnostic").addEventListener("change", () => changed("diagnostic-plot"));
  element("run").addEventListener("change", showRun);
  document.addEventListener("lowbit:rows", () => { changed("pareto-plot"); changed("bits-plot"); });
  showRun();
})();
