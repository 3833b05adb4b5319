"use strict";
// The list of cases and what is behind it. Everything shown is put in as text, never as HTML.
(() => {
  const PAGE = 50;
  const BESIDE = 4; // scores that fit beside the candidates
  const SOURCES = {
    c: "context", m: "memory", b: "context and memory", o: "other", n: "no answer",
  };
  const settings = JSON.parse(document.getElementById("settings").textContent);
  const runs = [];

  function el(name, options, ...children) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(options || {})) {
      if (value !== null && value !== undefined) node.setAttribute(key, value);
    }
    for (const child of children.flat()) {
      if (child !== null && child !== undefined) node.append(child);
    }
    return node;
  }

  // Text of any direction keeps it to itself.
  const own = (text) => el("bdi", {}, text);
  const number = (value, digits, sign) => {
    if (value === null || value === undefined) return "–";
    let shown = value.toFixed(digits);
    if (Number(shown) === 0) shown = (0).toFixed(digits);
    return ((sign && Number(shown) >= 0 ? "+" : "") + shown).replace("-", "−");
  };
  const percent = (whole) => {
    if (whole === null || whole === undefined) return "–";
    if (whole < 0) return "<1 %";
    return whole > 100 ? ">99 %" : `${whole} %`;
  };

  async function unpack(id) {
    const packed = atob(document.getElementById(id).textContent.trim());
    const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
    const opened = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(opened).text());
  }

  // A token or candidate with its spaces to be seen.
  function code(text, kind) {
    const node = el("bdi", { class: `ck-code ${kind || ""}` });
    if (!text) {
      node.append("<empty>");
      return node;
    }
    for (const part of text.replaceAll("\n", "↵").split(/( )/)) {
      if (part === " ") node.append(el("span", { class: "ck-dot" }, "·"));
      else if (part) node.append(part);
    }
    return node;
  }

  // ---------------------------------------------------------------- the trace of one answer

  function heat(value) {
    if (value === null || value === undefined || value < settings.calm) return null;
    const place = Math.min(value / settings.most, 1) * (settings.stops.length - 1);
    const low = Math.min(Math.floor(place), settings.stops.length - 2);
    const channel = (colour, at) => parseInt(colour.slice(at, at + 2), 16);
    const mixed = [1, 3, 5].map((at) => {
      const [a, b] = [channel(settings.stops[low], at), channel(settings.stops[low + 1], at)];
      return Math.round(a + (b - a) * (place - low)).toString(16).padStart(2, "0");
    });
    return `#${mixed.join("")}`;
  }

  const share = (value) =>
    value === null || value === undefined || value < settings.calm
      ? 0 : Math.min(value / settings.most, 1);

  function candidates(run, flat, stream, chosen) {
    const list = el("div", { class: "ck-list" });
    for (let at = 0; at < flat.length; at += 2) {
      const kinds = `${at === 0 ? `ck-of-${stream}` : ""} ${flat[at] === chosen ? "ck-chosen" : ""}`;
      list.append(code(run.texts[flat[at]], kinds));
      list.append(el("span", { class: "ck-n" }, percent(flat[at + 1])));
    }
    return list;
  }

  function strip(run, tokens) {
    const shown = el("div", { class: "ck-tokens" });
    const words = [];
    for (const token of tokens) {
      if (!words.length || /^\s/.test(run.texts[token[0]])) words.push([]);
      words.at(-1).push(token);
    }
    for (const parts of words) {
      const word = el("span", { class: "ck-word" });
      const conflict = (token) => run.conflict < 0 ? null : token[2][run.conflict];
      for (const token of parts) {
        const chip = el("bdi", { class: "ck-chip" }, run.texts[token[0]].trim() || "⋯");
        chip.style.background = heat(conflict(token)) || "";
        const hot = share(conflict(token)) >= 0.5 ? " ck-hot" : "";
        word.append(el("span", { class: `ck-token${hot}` }, chip));
      }
      // Below a word: what the streams would have said where they are furthest apart.
      const peak = parts.reduce((a, b) => share(conflict(b)) > share(conflict(a)) ? b : a);
      for (const [stream, flat] of [["context", peak[5]], ["memory", peak[6]]]) {
        if (heat(conflict(peak)) && flat.length && flat[0] !== peak[0]) {
          word.append(el("span", { class: `ck-rival ck-of-${stream}` },
            `${stream}: `, code(run.texts[flat[0]]), ` ${percent(flat[1])}`));
        }
      }
      shown.append(word);
    }
    const box = el("div", { class: "ck-strip" }, shown);
    if (run.conflict >= 0) {
      box.append(el("div", { class: "ck-legend" }, el("span", {}, "conflict (jsd)"),
        el("span", {}, "0"), el("span", { class: "ck-scale" }),
        el("span", {}, `${number(settings.most, 2)} (ln 2)`)));
    }
    return box;
  }

  const column = (name, kind) => el("th", { scope: "col", class: kind || null }, name);
  const table = (head, rows) => el("div", { class: "ck-scroll" }, el("table", { class: "ck-table" },
    el("thead", {}, el("tr", {}, head)), el("tbody", {}, rows.map((row) => el("tr", {}, row)))));
  const first = (run, token, index) => [el("td", { class: "ck-n" }, String(index + 1)),
    el("td", { class: "ck-code" }, code(run.texts[token[0]]))];

  function score(run, token, [name, at]) {
    const value = token[2][at];
    const cell = el("td", { class: "ck-n" }, number(value, 3, name.includes("gain")));
    if (at === run.conflict) {
      const bar = el("i");
      bar.style.width = `${Math.round(share(value) * 100)}%`;
      cell.append(el("span", { class: "ck-bar" }, bar));
      cell.classList.add("ck-first");
    }
    return cell;
  }

  // What decided each token; scores for which there is no room beside it are folded away.
  function steps(run, tokens) {
    const streams = [["context", 5], ["memory", 6]]
      .filter(([, place]) => tokens.some((token) => token[place].length));
    const both = streams.length === 2;
    const kept = run.scores.map((name, at) => [name, at])
      .filter(([, at]) => tokens.some((token) => token[2][at] !== null));
    const shown = kept.length > BESIDE ? kept.filter(([, at]) => at === run.conflict) : kept;
    const named = (some) => some.map(([name, at]) =>
      column(name.replaceAll(/[-_]/g, " "), at === run.conflict ? "" : "ck-n"));
    const start = [column("#", "ck-n"), column("token")];
    const drawn = [table([...start, ...named(shown),
      ...both ? streams.map(([name]) => column(`${name} weight`, "ck-n")) : [],
      ...streams.map(([name]) => column(`${name} says`, `ck-of-${name}`)),
    ], tokens.map((token, index) => [...first(run, token, index),
      ...shown.map((one) => score(run, token, one)),
      ...both ? [token[3], token[4]].map((weight) =>
        el("td", { class: "ck-n" }, number(weight, 2, true))) : [],
      ...streams.map(([name, place]) =>
        el("td", {}, candidates(run, token[place], name, token[0]))),
    ]))];
    const rest = kept.filter((one) => !shown.includes(one));
    if (rest.length) {
      const head = [column("#", "ck-n"), column("token"), ...named(rest)];
      drawn.push(el("details", {}, el("summary", {}, `${rest.length} more scores`),
        table(head, tokens.map((token, index) =>
          [...first(run, token, index), ...rest.map((one) => score(run, token, one))]))));
    }
    return drawn;
  }

  // ---------------------------------------------------------------- one case

  const label = (text) => el("p", { class: "ck-label" }, text);
  const listed = (answers) => answers.length ? answers.map(own).flatMap((node, at) =>
    at ? [", ", node] : [node]) : ["–"];
  const judged = (answer) => el("span", { class: answer[1] ? "right" : "wrong" },
    answer[1] ? "✓ right" : "✗ wrong");

  function expected(name, kind, answers) {
    return el("div", { class: `ck-answer ${kind}` }, label(name), el("b", {}, listed(answers)));
  }

  function choices(list) {
    const best = Math.max(...list.map(([, value]) => value === null ? -Infinity : value));
    return el("p", {}, "Choices by log-probability: ", list.map(([text, value], at) => [
      at ? " · " : "", el(value === best ? "b" : "span", {}, own(text)), ` ${number(value, 2)}`,
    ]));
  }

  async function draw(run, at, method) {
    const head = run.cases[at];
    const block = await unpack(`run-${run.number}-block-${Math.floor(at / run.block)}`);
    const [passages, facts, prompts, told] = block[at % run.block];
    const [id, state, question, gold, context, memory, answers] = head;
    const view = el("div", { class: "ck-trace" });
    view.append(label(`Case ${id} · ${state}`), el("h3", { dir: "auto", tabindex: "-1" }, question));
    view.append(label(passages.length > 1 ? "Passages" : "Passage"));
    if (!passages.length) view.append(el("p", {}, "None: closed book."));
    passages.forEach((passage, place) => view.append(el("div", { class: "ck-passage", dir: "auto" },
      passages.length > 1 ? `${place + 1}. ` : "", passage)));
    prompts.forEach((prompt, place) => {
      if (!prompt) return;
      const name = place ? "memory" : "context";
      view.append(el("details", {}, el("summary", {}, `Prompt of the ${name} stream, as the case fixes it`),
        el("pre", { dir: "auto" }, prompt)));
    });
    view.append(el("div", { class: "ck-answers" }, expected("true", "ck-method", gold),
      expected("the passage says", "ck-context", context),
      expected("memory was expected to say", "ck-memory", memory)));
    const answer = told[method];
    if (answer) {
      const [finish, logprob, forwards, options, tokens] = answer;
      const said = answers[method];
      view.append(label(`The answer under ${run.methods[method]}`), el("p", { class: "said" },
        el("b", {}, own(run.answers[said[0]] || "(nothing)")), " ", judged(said),
        ` · comes from: ${SOURCES[said[2]]}`));
      if (options.length) view.append(choices(options));
      if (tokens.length) view.append(strip(run, tokens), ...steps(run, tokens));
      else view.append(el("p", {}, run.traces ? "The answer is empty." :
        "This report was made without token traces."));
      const foot = [`ended by ${finish}`, `${number(forwards, 1)} forwards`];
      if (logprob !== null) foot.push(`log-probability under the context alone ${number(logprob, 2)} nats`);
      foot.push(...facts.map(([name, value]) => `${name} ${value}`));
      view.append(el("p", { class: "ck-foot" }, foot.join(" · "),
        ". Divergences in nats; a dot before a token is a space."));
    }
    view.append(label("What each method answered"));
    const rows = run.methods.map((name, place) => {
      const answer = answers[place];
      if (!answer) return null;
      const link = el("a", { href: address(run, id, name) }, name);
      return el("tr", place === method ? { class: "chosen", "aria-current": "true" } : {},
        el("th", { scope: "row" }, link),
        el("td", {}, own(run.answers[answer[0]] || "(nothing)")), el("td", {}, judged(answer)),
        el("td", {}, SOURCES[answer[2]]));
    });
    view.append(el("div", { class: "ck-scroll answered" }, el("table", {}, el("thead", {}, el("tr", {},
      ["method", "answer", "", "comes from"].map((text) => el("th", { scope: "col" }, text)))),
      el("tbody", {}, rows))));
    return view;
  }

  function address(run, id, method) {
    const parts = new URLSearchParams({ run: String(run.number), case: id, method });
    return `#${parts}`;
  }

  async function open(run, id, method) {
    const at = run.cases.findIndex((entry) => entry[0] === id);
    const place = Math.max(run.methods.indexOf(method), 0);
    run.view.replaceChildren();
    if (at < 0) {
      run.view.hidden = false;
      run.view.append(el("p", {}, `There is no case "${id}" in this run.`));
      return;
    }
    const shown = run.found.indexOf(at);
    const step = (to, text) => to === undefined ? null :
      el("a", { href: address(run, run.cases[to][0], run.methods[place]), class: "button" }, text);
    const close = el("button", { type: "button" }, "Close");
    close.addEventListener("click", () => shut(run));
    const drawn = await draw(run, at, place);
    run.view.replaceChildren(el("div", { class: "bar" },
      step(shown > 0 ? run.found[shown - 1] : undefined, "‹ Previous"),
      step(shown >= 0 ? run.found[shown + 1] : undefined, "Next ›"), close), drawn);
    run.view.hidden = false;
    run.opened = at;
    document.body.classList.add("case-open");
    run.view.scrollIntoView({ block: "start" });
    drawn.querySelector("h3").focus({ preventScroll: true });
  }

  function shut(run) {
    const opened = run.opened;
    run.view.hidden = true;
    run.view.replaceChildren();
    run.opened = null;
    document.body.classList.remove("case-open");
    history.replaceState(null, "", "#cases-" + run.number);
    const link = run.list.querySelector(`[data-at="${opened}"] a`);
    (link || run.list).focus();
  }

  // ---------------------------------------------------------------- the list of cases

  function find(run) {
    const { state, method, verdict, text } = run.controls;
    const place = Number(method.value);
    const wanted = text.value.trim().toLowerCase();
    run.found = [];
    run.cases.forEach((entry, at) => {
      if (state.value && entry[1] !== state.value) return;
      const answer = entry[6][place];
      if (!answer) return;
      if (verdict.value === "right" ? !answer[1] : verdict.value === "wrong" && answer[1]) return;
      if (verdict.value.length === 1 && answer[2] !== verdict.value) return;
      if (wanted && !run.haystacks[at].includes(wanted)) return;
      run.found.push(at);
    });
    run.shown = PAGE;
    fill(run);
  }

  function fill(run) {
    const place = Number(run.controls.method.value);
    const rows = run.found.slice(0, run.shown).map((at) => {
      const [id, state, question, gold, context, memory, answers] = run.cases[at];
      const answer = answers[place];
      const row = el("tr", { "data-at": at },
        el("th", { scope: "row" }, el("a", { href: address(run, id, run.methods[place]) }, own(id))),
        el("td", {}, state), el("td", { class: "question" }, own(question)),
        el("td", {}, listed(gold)), el("td", {}, listed(context)), el("td", {}, listed(memory)),
        el("td", {}, own(run.answers[answer[0]] || "(nothing)")), el("td", {}, judged(answer)),
        el("td", {}, SOURCES[answer[2]]));
      row.addEventListener("click", (event) => {
        if (event.target.closest("a") || String(getSelection())) return;
        location.hash = address(run, id, run.methods[place]);
      });
      return row;
    });
    run.list.replaceChildren(...rows);
    const right = run.found.filter((at) => run.cases[at][6][place][1]).length;
    run.count.textContent = `${run.found.length.toLocaleString("en")} cases, ` +
      `${right.toLocaleString("en")} answered right by ${run.methods[place]}` +
      (run.found.length > run.shown ? `; the first ${run.shown} are listed` : "");
    run.more.hidden = run.found.length <= run.shown;
  }

  async function start(number) {
    const run = { number, opened: null, ...(await unpack(`run-${number}-index`)) };
    const box = document.getElementById(`cases-${number}`);
    const part = (name) => box.querySelector(`[data-part="${name}"]`);
    run.controls = Object.fromEntries(["state", "method", "verdict", "text"]
      .map((name) => [name, part(name)]));
    [run.list, run.count, run.more, run.view] = ["list", "count", "more", "view"].map(part);
    for (const state of new Set(run.cases.map((entry) => entry[1]))) {
      run.controls.state.append(el("option", { value: state }, state));
    }
    run.methods.forEach((name, at) =>
      run.controls.method.append(el("option", { value: at }, name)));
    run.haystacks = run.cases.map(([id, , question, gold, context, memory, answers]) => [
      id, question, ...gold, ...context, ...memory,
      ...answers.filter(Boolean).map((answer) => run.answers[answer[0]]),
    ].join("\n").toLowerCase());
    for (const name of ["state", "method", "verdict"]) {
      run.controls[name].addEventListener("change", () => find(run));
    }
    run.controls.text.addEventListener("input", () => find(run));
    run.more.addEventListener("click", () => { run.shown += PAGE * 4; fill(run); });
    run.view.addEventListener("keydown", (event) => {
      if (event.key === "Escape") shut(run);
    });
    find(run);
    part("tools").hidden = false;
    runs.push(run);
  }

  // `#run=0&case=ID&method=M` opens a case, `#run=0&state=S&method=M` lists some.
  async function follow() {
    const asked = new URLSearchParams(location.hash.slice(1));
    const run = runs[Number(asked.get("run") || 0)];
    if (!run) return;
    if (asked.has("case")) {
      await open(run, asked.get("case"), asked.get("method"));
    } else if (asked.has("state")) {
      run.controls.state.value = asked.get("state");
      run.controls.method.value = String(Math.max(run.methods.indexOf(asked.get("method")), 0));
      run.controls.verdict.value = asked.get("verdict") || "";
      run.controls.text.value = "";
      find(run);
      document.getElementById(`cases-${run.number}`).scrollIntoView();
    }
  }

  async function all() {
    for (let number = 0; number < settings.runs; number += 1) await start(number);
    addEventListener("hashchange", follow);
    await follow();
    document.documentElement.dataset.ready = "yes";
  }

  if (typeof DecompressionStream === "undefined") {
    for (const note of document.querySelectorAll("[data-part=old]")) note.hidden = false;
  } else all();
})();
