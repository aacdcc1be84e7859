// The hive view: which heads hold which tokens after each call.
(() => {
  "use strict";
  const at = (id) => document.getElementById(id);
  if (!at("hive-panel")) return;
  const runs = JSON.parse(at("data").textContent).runs.filter((run) => run.hives.length);
  const LEVELS = 10;
  let hive = null; // what is shown
  let heads = []; // the chosen heads, each as layer * hive.heads + head
  let held = new Uint16Array(0); // by token: how many of them hold it
  let spans = [];
  let here = 0; // the token that is looked at
  let wanted = 0; // counts changes, so that a late unpacking is not shown
  let timer = 0;

  const total = () => hive.prompt_tokens + hive.calls; // tokens that were ever read
  const step = () => Number(at("hive-step").value);
  const holds = (head, token, call) => {
    const gone = hive.evictedAt[head * hive.tokens.length + token];
    return token < hive.prompt_tokens + call && (gone < 0 || gone > call);
  };

  async function unpack(one) {
    if (one.evictedAt) return;
    const packed = Uint8Array.from(atob(one.evicted_at), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    one.evictedAt = new Int16Array(await new Response(stream).arrayBuffer());
  }

  // --- choosing ---

  function fill(select, options, keep) {
    const before = select.value;
    select.replaceChildren(...options.map(([text, value]) => new Option(text, value)));
    if (keep && options.some(([, value]) => String(value) === before)) select.value = before;
  }

  const run = () => runs[Number(at("hive-run").value)];
  const ofSample = () => run().hives.filter((one) => one.sample === at("hive-sample").value);

  function chooseRun() {
    const samples = [...new Set(run().hives.map((one) => one.sample))];
    fill(at("hive-sample"), samples.map((name) => [name, name]));
    at("hive-sample").parentElement.hidden = samples.length < 2;
    chooseSample();
  }

  function chooseSample() {
    const before = hive && hive.method;
    const names = ofSample().map((one) => one.method);
    // The first to be shown is one that also evicts after the prompt, comb or buzz if one of these does.
    const late = ofSample().filter((one) => one.late).map((one) => one.method);
    const own = (among) => ["comb", "buzz"].map((stem) => among.find((name) => name.startsWith(stem))).find(Boolean);
    const first = names.includes(before) ? before : own(late) || late[0] || own(names) || names[0];
    at("hive-methods").replaceChildren(...names.map((name) => {
      const label = document.createElement("label");
      const radio = document.createElement("input");
      const text = document.createElement("span");
      Object.assign(radio, { type: "radio", name: "hive-method", value: name, checked: name === first });
      radio.addEventListener("change", () => chooseMethod(name));
      text.textContent = name;
      label.append(radio, text);
      return label;
    }));
    chooseMethod(first);
  }

  async function chooseMethod(name) {
    wanted += 1;
    const mine = wanted;
    const next = ofSample().find((one) => one.method === name);
    try {
      await unpack(next);
    } catch (error) {
      at("hive-policy").textContent = `This browser cannot unpack the recording (${error.name}); a newer one can.`;
      return;
    }
    if (mine !== wanted) return;
    const start = hive === null ? 0 : Math.min(step(), next.calls); // first the prompt: what follows is for the slider
    hive = next;
    at("hive-policy").textContent = [hive.method, hive.policy].filter(Boolean).join(": ");
    const numbers = (count, word) => [["all", "all"], ...Array.from({ length: count }, (_, i) => [`${word} ${i}`, i])];
    fill(at("hive-layer"), numbers(hive.layers, "layer"), true);
    fill(at("hive-head"), numbers(hive.heads, "head"), true);
    Object.assign(at("hive-step"), { max: hive.calls, value: start, disabled: hive.calls === 0 });
    at("hive-play").disabled = hive.calls === 0;
    write();
    chooseHeads();
  }

  function chooseHeads() {
    const chosen = (select, count) => (select.value === "all" ? [...Array(count).keys()] : [Number(select.value)]);
    const inLayer = chosen(at("hive-head"), hive.heads);
    heads = chosen(at("hive-layer"), hive.layers).flatMap((layer) => inLayer.map((head) => layer * hive.heads + head));
    drawCurve();
    update();
  }

  // --- text ---

  function token(text, number) {
    const span = document.createElement("span");
    span.dataset.i = number;
    for (const part of (text || "\u00b7").split(/(\n)/)) { // a part of a character has no text of its own
      if (part === "\n") {
        const mark = document.createElement("i");
        mark.textContent = "\u21b5";
        span.append(mark, "\n");
      } else if (part) {
        span.append(part);
      }
    }
    return span;
  }

  function write() {
    spans = hive.tokens.map(token);
    const names = hive.read ? ["Read at once", "Read token by token"] : ["Prompt", "Answer"];
    const parts = [spans.slice(0, hive.prompt_tokens), spans.slice(hive.prompt_tokens)];
    at("hive-text").replaceChildren(...parts.flatMap((part, i) => {
      const title = document.createElement("h3");
      const body = document.createElement("p");
      title.textContent = names[i];
      body.append(...part);
      return [title, body];
    }));
    here = Math.min(here, hive.tokens.length - 1);
  }

  // --- drawing ---

  function level(count) {
    if (count === 0) return 0;
    return count === heads.length ? LEVELS : Math.max(1, Math.min(LEVELS - 1, Math.round((LEVELS * count) / heads.length)));
  }

  function update() {
    const call = step();
    const read = hive.prompt_tokens + call;
    const tokens = hive.tokens.length;
    held = new Uint16Array(tokens);
    for (const head of heads) {
      const row = head * tokens;
      for (let i = 0; i < read; i += 1) {
        const gone = hive.evictedAt[row + i];
        if (gone < 0 || gone > call) held[i] += 1;
      }
    }
    for (let i = 0; i < tokens; i += 1) {
      const name = `t ${i < read ? `l${level(held[i])}` : "later"}${i === here ? " here" : ""}`;
      if (spans[i].className !== name) spans[i].className = name;
    }
    count(read);
    const when = call === 0 ? (hive.read ? "after the first call" : "after the prompt") : `after call ${call} of ${hive.calls}`;
    at("hive-when").textContent = when;
    at("hive-step").setAttribute("aria-valuetext", when);
    const x = hive.calls ? (100 * call) / hive.calls : 100;
    at("hive-step").style.setProperty("--done", `${x}%`);
    at("hive-curve").querySelector(".now").setAttribute("d", `M${x} 0V40`);
    drawComb();
    tell();
  }

  function count(read) {
    let sum = 0;
    let every = 0;
    let gone = 0;
    for (let i = 0; i < read; i += 1) {
      sum += held[i];
      if (held[i] === heads.length) every += 1;
      if (held[i] === 0) gone += 1;
    }
    const perHead = sum / heads.length;
    const put = (id, value, share) => {
      const note = document.createElement("small");
      note.textContent = share === undefined ? "" : ` ${Math.round(100 * share)}%`;
      const digits = Number.isInteger(value) ? 0 : 1;
      const text = value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
      at(id).replaceChildren(text, note);
    };
    put("count-read", read);
    put("count-held", perHead, perHead / read);
    put("count-every", every);
    put("count-some", read - every - gone);
    put("count-gone", gone, gone / read);
  }

  // Tokens held per head after each call, above the slider.
  function drawCurve() {
    const lost = new Float64Array(hive.calls + 1);
    for (const head of heads) {
      for (let i = 0; i < total(); i += 1) {
        const gone = hive.evictedAt[head * hive.tokens.length + i];
        if (gone >= 0) lost[gone] += 1 / heads.length;
      }
    }
    let sum = 0;
    const points = Array.from(lost, (value, call) => {
      sum += value;
      const x = hive.calls ? (100 * call) / hive.calls : 100;
      return `${x.toFixed(3)} ${(40 - (38 * (hive.prompt_tokens + call - sum)) / total()).toFixed(3)}`;
    });
    const seen = (call) => (40 - (38 * (hive.prompt_tokens + call)) / total()).toFixed(3);
    const line = `M${points.join("L")}`;
    at("hive-curve").querySelector(".seen").setAttribute("d", `M0 ${seen(0)}L100 ${seen(hive.calls)}`);
    at("hive-curve").querySelector(".line").setAttribute("d", line);
    at("hive-curve").querySelector(".area").setAttribute("d", `${line}V40H0Z`);
  }

  function surface(canvas, width, height) {
    const ratio = window.devicePixelRatio || 1;
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    return context;
  }

  const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const honey = (share) => `rgba(${ink("--cell")}, ${share})`;
  const shades = () => Array.from({ length: LEVELS + 1 }, (_, i) => honey(i ? 0.12 + (0.88 * i) / LEVELS : 0));

  // The comb has a cell a token. Cells of 7 pixels, or smaller ones for a long text, in rows that stand in gaps.
  function comb() {
    const width = at("hive-comb").parentElement.clientWidth;
    const radius = total() > 4000 ? 2.6 : total() > 1500 ? 4.2 : 5.6;
    const across = Math.sqrt(3) * radius;
    const columns = Math.max(1, Math.floor((width - across / 2) / across));
    const centre = (i) => {
      const row = Math.floor(i / columns);
      return [((i % columns) + 0.5 + (row % 2) / 2) * across, radius + 1 + 1.5 * radius * row];
    };
    return { width, radius, across, columns, centre };
  }

  function hexagon(context, [x, y], radius) {
    context.beginPath();
    for (let corner = 0; corner < 6; corner += 1) {
      const angle = (Math.PI / 3) * corner + Math.PI / 6;
      context.lineTo(x + radius * Math.cos(angle), y + radius * Math.sin(angle));
    }
    context.closePath();
  }

  function drawComb() {
    const { width, radius, columns, centre } = comb();
    if (width <= 0) return;
    const rows = Math.ceil(hive.tokens.length / columns);
    const context = surface(at("hive-comb"), width, 2 * radius + 2 + 1.5 * radius * (rows - 1));
    const colors = shades();
    const read = hive.prompt_tokens + step();
    context.lineWidth = 1;
    for (let i = 0; i < hive.tokens.length; i += 1) {
      hexagon(context, centre(i), radius - 0.7);
      if (i < read && held[i]) {
        context.fillStyle = colors[level(held[i])];
        context.fill();
      } else {
        context.strokeStyle = ink("--rule");
        context.globalAlpha = i < read ? 1 : 0.4;
        context.stroke();
        context.globalAlpha = 1;
      }
    }
    hexagon(context, centre(here), radius);
    context.strokeStyle = ink("--deep");
    context.lineWidth = 1.6;
    context.stroke();
  }

  // The token that is looked at: what it is, and which heads hold it.
  function tell() {
    const call = step();
    const read = here < hive.prompt_tokens + call;
    const part = here < hive.prompt_tokens ? (hive.read ? "first call" : "prompt") : (hive.read ? "text" : "answer");
    at("token-position").textContent = `${here}, ${part}`;
    at("token-text").textContent = (hive.tokens[here] || "\u00b7").replace(/\n/g, "\u21b5").replace(/^ | $/g, "\u2423");
    let all = 0;
    const layers = new Set();
    for (let head = 0; head < hive.layers * hive.heads; head += 1) {
      if (holds(head, here, call)) {
        all += 1;
        layers.add(Math.floor(head / hive.heads));
      }
    }
    const most = hive.layers * hive.heads;
    let text = `Held by ${all} of ${most} heads, in ${layers.size} of ${hive.layers} layers.`;
    if (!read) text = here >= total() ? "The last token is never read, so no cache holds it." : "Not read yet.";
    else if (all === 0) text = `Held by none of ${most} heads.`;
    else if (all === most) text = most === 1 ? "Held by the only head." : `Held by all ${most} heads.`;
    at("token-heads").textContent = text;
    drawMatrix(call);
  }

  function drawMatrix(call) {
    const width = at("hive-matrix").parentElement.clientWidth;
    if (width <= 0) return;
    const cell = Math.max(2, Math.min(16, width / hive.layers));
    const gap = cell > 5 ? 1 : 0.5;
    const context = surface(at("hive-matrix"), width, cell * hive.heads);
    for (let layer = 0; layer < hive.layers; layer += 1) {
      for (let head = 0; head < hive.heads; head += 1) {
        context.fillStyle = holds(layer * hive.heads + head, here, call) ? honey(1) : ink("--faint");
        context.fillRect(layer * cell, head * cell, cell - gap, cell - gap);
      }
    }
  }

  function look(number, follow) {
    const next = Math.max(0, Math.min(hive.tokens.length - 1, number));
    if (next === here) return;
    spans[here].classList.remove("here");
    here = next;
    spans[here].classList.add("here");
    if (follow) scroll();
    drawComb();
    tell();
  }

  // Bring the token into the middle of the reader; the page stays where it is.
  function scroll() {
    const reader = at("hive-text");
    reader.scrollTop = spans[here].offsetTop - reader.clientHeight / 2;
  }

  // --- time ---

  function play(on) {
    window.clearInterval(timer);
    timer = 0;
    if (on) {
      if (step() >= hive.calls) at("hive-step").value = 0;
      update();
      const pause = Math.max(40, Math.min(220, 12000 / Math.max(1, hive.calls)));
      timer = window.setInterval(() => {
        at("hive-step").value = step() + 1;
        update();
        if (step() >= hive.calls) play(false);
      }, pause);
    }
    at("hive-play").setAttribute("aria-pressed", String(on));
    at("hive-play").setAttribute("aria-label", on ? "Pause" : "Play");
    at("hive-play-icon").setAttribute("d", on ? "M7 5h4v14H7zM13 5h4v14h-4z" : "M8 5v14l11-7z");
  }

  // --- events ---

  at("hive-run").addEventListener("change", () => { play(false); chooseRun(); });
  at("hive-sample").addEventListener("change", () => { play(false); chooseSample(); });
  at("hive-layer").addEventListener("change", chooseHeads);
  at("hive-head").addEventListener("change", chooseHeads);
  at("hive-step").addEventListener("input", () => { play(false); update(); });
  at("hive-play").addEventListener("click", () => play(timer === 0));
  at("hive-text").addEventListener("mouseover", (event) => {
    const span = event.target.closest("[data-i]");
    if (span) look(Number(span.dataset.i), false);
  });
  at("hive-text").addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: here - 1, ArrowRight: here + 1, ArrowUp: here - 10, ArrowDown: here + 10, Home: 0, End: hive.tokens.length - 1 };
    if (!(event.key in moves)) return;
    event.preventDefault();
    look(moves[event.key], true);
  });
  at("hive-comb").addEventListener("mousemove", (event) => {
    const { radius, across, columns } = comb();
    const row = Math.max(0, Math.round((event.offsetY - radius - 1) / (1.5 * radius)));
    const column = Math.floor(event.offsetX / across - (row % 2) / 2);
    const number = row * columns + column;
    if (column >= 0 && column < columns && number < hive.tokens.length) look(number, false);
  });
  at("hive-comb").addEventListener("click", scroll);
  window.addEventListener("resize", () => { if (hive) { drawComb(); tell(); } });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (hive) { drawComb(); tell(); } });

  fill(at("hive-run"), runs.map((one, number) => [one.name, number]));
  at("hive-run").parentElement.hidden = runs.length < 2;
  chooseRun();
})();
