// Answers of all methods to one sample, side by side, and the ways between an answer and its hive view.
(() => {
  "use strict";
  const at = (id) => document.getElementById(id);
  if (!at("samples-panel")) return;
  const all = JSON.parse(at("data").textContent).runs;
  const runs = all.filter((run) => run.samples.length);
  const recorded = all.filter((run) => run.hives.length); // as the hive view numbers them
  let sorted = []; // samples of the run, in the chosen order
  let wanted = ""; // the method whose answer was asked for by the hive view

  function element(tag, text, name) {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (name) node.className = name;
    return node;
  }

  function fill(select, names) {
    select.replaceChildren(...names.map((name, number) => new Option(name, number)));
  }

  const run = () => runs[Number(at("samples-run").value)];
  const order = () => (run().measure ? at("samples-order").value : "data");

  // --- how far from the full cache ---

  // The mean over a sample's answers, or over the chosen method's alone; NaN if none has a distance.
  function distance(sample) {
    const of = at("samples-of").value;
    const found = sample.answers.filter((one) => one.distance !== null && (of === "" || one.method === of));
    return found.reduce((sum, one) => sum + one.distance, 0) / found.length;
  }

  // Items by their distance, those without one last; equal ones stay as they were.
  function byDistance(items, far) {
    const sign = { far: -1, near: 1 }[order()];
    if (!sign) return [...items];
    const key = (item) => (Number.isFinite(far(item)) ? sign * far(item) : Infinity);
    return [...items].sort((a, b) => (key(a) === key(b) ? 0 : key(a) - key(b)));
  }

  function told(value) {
    if (!Number.isFinite(value)) return "";
    const kl = run().measure.startsWith("KL");
    return ` \u00b7 ${run().measure} ${kl ? Number(value.toPrecision(3)) : (100 * (1 - value)).toFixed(1)}`;
  }

  // --- one sample ---

  // How many characters an answer shares with the full cache's, from its start to the end of a word.
  function shared(a, b) {
    let end = 0;
    while (end < a.length && end < b.length && a[end] === b[end]) end += 1;
    if (end === a.length && end === b.length) return end;
    while (end > 0 && /\S/.test(a[end - 1])) end -= 1;
    return end;
  }

  function card(answer, full, sample) {
    const article = element("article", undefined, answer.method === wanted ? "wanted" : "");
    const title = element("h3", answer.method);
    if (run().hives.some((hive) => hive.sample === sample.id && hive.method === answer.method)) {
      const link = element("a", "its hive");
      link.href = "#hive";
      link.addEventListener("click", () => toHive(sample.id, answer.method));
      title.append(link);
    }
    const text = element("p");
    const same = full && !answer.full ? shared(answer.output, full.output) : 0;
    if (same) text.append(element("mark", answer.output.slice(0, same)));
    text.append(answer.output.slice(same) || (same ? "" : "(empty)"));
    const facts = answer.metrics.map(([name, value]) => `${name} ${value}`);
    facts.push(`${answer.cached} cached${answer.mib ? ` (${answer.mib} MiB)` : ""}`, `${answer.tokens} token${answer.tokens === 1 ? "" : "s"}`);
    article.append(title, text, element("p", facts.join(" \u00b7 "), "quiet"));
    return article;
  }

  function show() {
    const number = Number(at("samples-sample").value);
    const sample = sorted[number];
    const full = sample.answers.find((answer) => answer.full);
    const others = byDistance(sample.answers.filter((answer) => !answer.full), (answer) => answer.distance ?? NaN);
    const answers = order() === "data" ? sample.answers : [...(full ? [full] : []), ...others];
    at("samples-reference").replaceChildren();
    if (sample.reference.length) {
      at("samples-reference").append(element("h3", "Reference"), element("p", sample.reference.join(" \u00b7 ")));
    }
    at("samples-answers").replaceChildren(...answers.map((answer) => card(answer, full, sample)));
    const { samples, total, measure } = run();
    const notes = [];
    if (full) notes.push("Marked: where an answer begins exactly as the full cache's does.");
    if (samples.length < total) {
      const chosen = measure && measure.startsWith("KL") && total > 100 ? "those furthest from the full cache, and the first of the others" : "the first";
      notes.push(`${samples.length} of ${total} samples: ${chosen}.`);
    }
    at("samples-note").textContent = notes.join(" ");
    at("samples-back").disabled = number === 0;
    at("samples-on").disabled = number === sorted.length - 1;
  }

  function sort(keep) {
    sorted = byDistance(run().samples, distance);
    fill(at("samples-sample"), sorted.map((sample) => sample.id + (order() === "data" ? "" : told(distance(sample)))));
    at("samples-of").parentElement.hidden = order() === "data" || at("samples-of").options.length < 3;
    at("samples-sample").value = Math.max(0, sorted.findIndex((sample) => sample.id === keep));
    show();
  }

  function start(keep) {
    const far = run().samples.flatMap((sample) => sample.answers).filter((answer) => answer.distance !== null);
    const names = [...new Set(far.map((answer) => answer.method))];
    at("samples-of").replaceChildren(new Option("all methods", ""), ...names.map((name) => new Option(name, name)));
    at("samples-order").parentElement.hidden = !run().measure;
    sort(keep);
  }

  function move(by) {
    wanted = "";
    at("samples-sample").value = Number(at("samples-sample").value) + by;
    show();
  }

  // --- between an answer and its hive view ---

  function choose(select, value) {
    if (select.value === String(value)) return;
    select.value = value;
    select.dispatchEvent(new Event("change", { bubbles: true }));
  }

  const method = (name) => document.querySelector(`[name="hive-method"][value=${CSS.escape(name)}]`);

  function toHive(sample, name) {
    choose(at("hive-run"), recorded.indexOf(run()));
    choose(at("hive-sample"), sample);
    method(name).click();
  }

  function toAnswer() {
    const from = recorded[Number(at("hive-run").value)];
    at("samples-run").value = runs.indexOf(from);
    wanted = document.querySelector('[name="hive-method"]:checked').value;
    start(at("hive-sample").value);
  }

  if (at("hive-panel")) {
    const back = element("a", "Its answer, beside the others");
    Object.assign(back, { href: "#answers", id: "hive-answer" });
    back.addEventListener("click", toAnswer);
    const line = element("p", undefined, "quiet");
    line.append(back);
    at("hive-policy").after(line);
    const possible = () => {
      const from = recorded[Number(at("hive-run").value)];
      line.hidden = !from || !from.samples.some((sample) => sample.id === at("hive-sample").value);
    };
    for (const id of ["hive-run", "hive-sample"]) at(id).addEventListener("change", possible);
    possible();
  }

  fill(at("samples-run"), runs.map((one) => one.name));
  at("samples-run").parentElement.hidden = runs.length < 2;
  at("samples-run").addEventListener("change", () => { wanted = ""; start(); });
  at("samples-sample").addEventListener("change", () => { wanted = ""; show(); });
  for (const id of ["samples-order", "samples-of"]) {
    at(id).addEventListener("change", () => { wanted = ""; sort(); });
  }
  at("samples-back").addEventListener("click", () => move(-1));
  at("samples-on").addEventListener("click", () => move(1));
  start();
})();
