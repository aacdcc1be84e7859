// Answers of all methods to one sample, side by side.
(() => {
  "use strict";
  const at = (id) => document.getElementById(id);
  if (!at("samples-panel")) return;
  const runs = JSON.parse(at("data").textContent).runs.filter((run) => run.samples.length);

  function element(tag, text, name) {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (name) node.className = name;
    return node;
  }

  function fill(select, names) {
    select.replaceChildren(...names.map((name, number) => new Option(name, number)));
  }

  // How many characters an answer shares with the full cache's, from its start to the end of a word.
  function shared(a, b) {
    let end = 0;
    while (end < a.length && end < b.length && a[end] === b[end]) end += 1;
    if (end === a.length && end === b.length) return end;
    while (end > 0 && /\S/.test(a[end - 1])) end -= 1;
    return end;
  }

  function card(answer, full) {
    const article = element("article");
    article.append(element("h3", answer.method));
    const text = element("p");
    const same = full && !answer.full ? shared(answer.output, full.output) : 0;
    if (same) text.append(element("mark", answer.output.slice(0, same)));
    text.append(answer.output.slice(same) || (same ? "" : "(empty)"));
    const facts = answer.metrics.map(([name, value]) => `${name} ${value}`);
    facts.push(`${answer.cached} cached${answer.mib ? ` (${answer.mib} MiB)` : ""}`, `${answer.tokens} token${answer.tokens === 1 ? "" : "s"}`);
    article.append(text, element("p", undefined, "quiet"));
    article.lastChild.textContent = facts.join(" · ");
    return article;
  }

  function show() {
    const { samples } = runs[Number(at("samples-run").value)];
    const number = Number(at("samples-sample").value);
    const { reference, answers } = samples[number];
    const full = answers.find((answer) => answer.full);
    at("samples-reference").replaceChildren();
    if (reference.length) {
      at("samples-reference").append(element("h3", "Reference"), element("p", reference.join(" · ")));
    }
    at("samples-answers").replaceChildren(...answers.map((answer) => card(answer, full)));
    at("samples-note").textContent = full ? "Marked: where an answer begins exactly as the full cache's does." : "";
    at("samples-back").disabled = number === 0;
    at("samples-on").disabled = number === samples.length - 1;
  }

  function start() {
    fill(at("samples-sample"), runs[Number(at("samples-run").value)].samples.map((sample) => sample.id));
    show();
  }

  function move(by) {
    at("samples-sample").value = Number(at("samples-sample").value) + by;
    show();
  }

  fill(at("samples-run"), runs.map((run) => run.name));
  at("samples-run").parentElement.hidden = runs.length < 2;
  at("samples-run").addEventListener("change", start);
  at("samples-sample").addEventListener("change", show);
  at("samples-back").addEventListener("click", () => move(-1));
  at("samples-on").addEventListener("click", () => move(1));
  start();
})();
