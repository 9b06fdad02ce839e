// Samples of a report: filters, pages and details. Knows nothing of how numbers are made.
//
// Whatever a model said reaches the page through textContent only, so it stays text. Details are built
// when they are opened and rows a page at a time, so that tens of thousands of samples stay quick.
"use strict";
(() => {
  const PAGE_ROWS = 100;
  const CELL_CHARS = 280;
  const SELECT_OPTIONS = 100;
  const TYPING_MS = 120;

  const data = JSON.parse(document.getElementById("data").textContent);
  const text = (position) => (position === null ? null : data.texts[position]);
  const byId = (id) => document.getElementById(id);
  const shown = { matches: [], page: 0 };
  const filters = [];
  let lowered = null;

  function el(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === true) node.setAttribute(name, "");
      else if (value !== false && value !== null) node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child !== null));
    return node;
  }

  const orDash = (value) => (value === null || value === undefined || value === "" ? "–" : String(value));

  function duration(ms) {
    if (ms === null || ms === undefined) return "–";
    if (ms === 0) return "0 ms";
    if (ms < 0.9995) return `${(ms * 1000).toFixed(0)} µs`;
    if (ms < 9.995) return `${ms.toFixed(2)} ms`;
    if (ms < 99.95) return `${ms.toFixed(1)} ms`;
    if (ms < 999.5) return `${ms.toFixed(0)} ms`;
    if (ms < 59995) return `${(ms / 1000).toFixed(2)} s`;
    const seconds = Math.round(ms / 1000);
    const pad = (n) => String(n).padStart(2, "0");
    if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${pad(seconds % 60)} s`;
    return `${Math.floor(seconds / 3600)} h ${pad(Math.floor(seconds / 60) % 60)} min`;
  }

  const number = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en"));

  // What a sample came to, in one word.
  function result(row) {
    if (row.outcome !== "answered") return row.outcome;
    if (row.right === null) return "not scored";
    return row.right ? "right" : "wrong";
  }

  function resultMark(row) {
    const word = result(row);
    return el("span", { class: `result ${word.replace(/[ _]/g, "-")}` }, word);
  }

  // Search. Each distinct text is looked at once, however many samples it stands in.

  function found(query) {
    lowered ??= data.texts.map((one) => one.toLowerCase());
    const hits = new Uint8Array(lowered.length);
    lowered.forEach((one, position) => { hits[position] = one.includes(query) ? 1 : 0; });
    const hit = (position) => position !== null && hits[position] === 1;
    return (row) =>
      hit(row.flow) || hit(row.answer) || row.targets.some(hit) ||
      row.steps.some((step) => step.transcript.some(([, position]) => hit(position)));
  }

  // Filters. Each is an input and a function from its value to a test of a row.

  function addFilter(label, input, test, kind) {
    filters.push({ input, test });
    byId("filters").append(el("label", { class: kind ?? null }, label, input));
  }

  function addSelect(label, values, test) {
    if (values.length < 2) return;
    const options = values.map(([value, name]) => el("option", { value }, name));
    addFilter(label, el("select", {}, el("option", { value: "" }, "any"), ...options), test);
  }

  function distinct(of) {
    const values = new Set();
    for (const row of data.rows) values.add(of(row));
    values.delete(null);
    return [...values];
  }

  function buildFilters() {
    const search = el("input", {
      type: "search",
      placeholder: "flow, question, answer, target, transcript",
      autocomplete: "off",
      spellcheck: "false",
    });
    addFilter("Search", search, (value) => found(value.toLowerCase()), "search");
    const cells = data.cells.map((name, i) => [i, name]);
    addSelect("Workflow", cells, (value) => (row) => row.cell === Number(value));
    const named = (of) => distinct(of).sort().map((name) => [name, name]);
    addSelect("Outcome", named((row) => row.outcome), (value) => (row) => row.outcome === value);
    const judged = (row) => (row.right === null ? "not scored" : row.right ? "right" : "wrong");
    addSelect("Right or wrong", named(judged), (value) => (row) => judged(row) === value);
    addSelect("Served from", named((row) => row.served_from), (value) => (row) => row.served_from === value);
    data.tags.forEach((tag, i) => {
      const values = distinct((row) => row.tags[i]);
      if (values.length <= SELECT_OPTIONS) {
        const options = values.map((position) => [position, text(position)]);
        options.sort(([, a], [, b]) => a.localeCompare(b, "en", { numeric: true }));
        addSelect(tag, options, (value) => (row) => row.tags[i] === Number(value));
      } else {
        // A tag that differs from row to row is searched: nobody reads a list of it.
        const contains = (value) => {
          const query = value.toLowerCase();
          return (row) => row.tags[i] !== null && text(row.tags[i]).toLowerCase().includes(query);
        };
        addFilter(tag, el("input", { type: "search", placeholder: "contains" }), contains);
      }
    });
    let typing = 0;
    byId("filters").addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(filter, TYPING_MS);
    });
  }

  function filter() {
    const used = filters.filter(({ input }) => input.value !== "");
    const tests = used.map(({ input, test }) => test(input.value));
    shown.matches = data.rows.filter((row) => tests.every((test) => test(row)));
    shown.page = 0;
    showPage();
  }

  // The list, a page at a time.

  function showPage() {
    const { matches, page } = shown;
    const first = page * PAGE_ROWS;
    const rows = matches.slice(first, first + PAGE_ROWS);
    byId("rows").replaceChildren(...rows.map(listRow));
    const span = `, showing ${number(first + 1)} to ${number(first + rows.length)}`;
    const all = `${number(matches.length)} of ${number(data.rows.length)}`;
    byId("count").textContent = matches.length > PAGE_ROWS ? all + span : all;
    const pages = Math.ceil(matches.length / PAGE_ROWS);
    byId("pages").hidden = pages < 2;
    byId("previous").disabled = page === 0;
    byId("next").disabled = page >= pages - 1;
    byId("page").textContent = `page ${number(page + 1)} of ${number(pages)}`;
  }

  function turnPage(by) {
    shown.page += by;
    showPage();
    byId("samples").scrollIntoView();
  }

  function buildPages() {
    const previous = el("button", { type: "button", id: "previous" }, "Previous");
    const next = el("button", { type: "button", id: "next" }, "Next");
    previous.addEventListener("click", () => turnPage(-1));
    next.addEventListener("click", () => turnPage(1));
    byId("pages").append(previous, el("span", { id: "page" }), next);
  }

  function clip(value) {
    const whole = orDash(value);
    const start = whole.length > CELL_CHARS ? `${whole.slice(0, CELL_CHARS)}…` : whole;
    return el("div", { class: "clip" }, start);
  }

  function listRow(row, i) {
    const id = `details-${i}`;
    const name = row.epoch > 0 ? `${text(row.flow)} #${row.epoch + 1}` : text(row.flow);
    const state = { "aria-expanded": "false", "aria-controls": id };
    const button = el("button", { type: "button", class: "flow", ...state }, name);
    const line = el(
      "tr", { class: "row" },
      el("td", { class: "name" }, data.cells[row.cell]),
      el("td", { class: "name" }, button),
      el("td", { class: "long" }, clip(text(row.question))),
      el("td", {}, clip(text(row.answer))),
      el("td", {}, clip(row.targets.map(text).join(" | "))),
      el("td", { class: "fixed" }, resultMark(row)),
      el("td", { class: row.served_from === "live" ? "fixed" : "fixed quiet" }, duration(row.latency_ms)),
      el("td", { class: "fixed" }, row.served_from),
    );
    line.addEventListener("click", (event) => {
      // Marking a text to copy it is no wish to open or close its row.
      const marking = event.target !== button && String(window.getSelection()) !== "";
      if (!marking) toggle(row, line, button, id);
    });
    return line;
  }

  function toggle(row, line, button, id) {
    const open = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!open));
    line.classList.toggle("open", !open);
    if (open) byId(id).remove();
    else line.after(el("tr", { class: "details", id }, el("td", { colspan: "8" }, sheet(row))));
  }

  // Details of a sample.

  function sheet(row) {
    const facts = [
      ["outcome", row.detail === null ? row.outcome : `${row.outcome}: ${row.detail}`],
      ["answer", orDash(text(row.answer))],
      ["targets", orDash(row.targets.map(text).join(" | "))],
      ["latency", `${duration(row.latency_ms)}, served from ${row.served_from}`],
      ["wall time", `${duration(row.wall_ms)}, with the wait for a permit`],
      ["scoring", duration(row.metrics_ms)],
      ["epoch", row.epoch],
      ...data.tags.map((tag, i) => [tag, text(row.tags[i])]).filter(([, value]) => value !== null),
      ["key", row.key],
      ["flow digest", row.flow_digest],
    ];
    return el(
      "div", { class: "sheet" },
      factList(facts),
      section("Scores", row.scores, scoreTable),
      section("Extractors", row.readings, readingTable),
      ...row.steps.flatMap((step) => [
        el("h4", {}, `Step ${step.id}`),
        ...step.transcript.map(turn),
        row.steps.length > 1 ? el("p", { class: "note" }, `answer: ${orDash(step.answer)}`) : null,
        step.trace === null ? null : trace(step.trace),
      ]),
      section("Requests", row.requests, requestTable),
    );
  }

  function section(title, items, show) {
    return items.length === 0 ? null : el("div", {}, el("h4", {}, title), show(items));
  }

  function factList(facts) {
    const line = ([name, value]) =>
      el("div", {}, el("dt", {}, name), el("dd", {}, el("pre", {}, String(value))));
    return el("dl", { class: "facts" }, ...facts.map(line));
  }

  function grid(head, rows) {
    const heads = head.map((name) => el("th", { scope: "col" }, name));
    const lines = rows.map((row) => el("tr", {}, ...row.map((value) => el("td", {}, value))));
    return el(
      "div", { class: "scroll" },
      el("table", {}, el("thead", {}, el("tr", {}, ...heads)), el("tbody", {}, ...lines)),
    );
  }

  function turn([role, position]) {
    return el(
      "div", { class: `turn ${role}` },
      el("div", { class: "role" }, role),
      el("pre", {}, text(position)),
    );
  }

  function scoreTable(scores) {
    return grid(
      ["scorer", "value", "best target", "compared", "detail"],
      scores.map((score) => [
        score.scorer, scoreValue(score), orDash(score.matched), orDash(score.parsed), orDash(score.detail),
      ]),
    );
  }

  function scoreValue(score) {
    if (score.value === null) return `no verdict: ${orDash(score.unscored).replace(/_/g, " ")}`;
    return Number.isInteger(score.value) ? String(score.value) : score.value.toFixed(3);
  }

  function readingTable(readings) {
    const values = (scores) => scores.map((score) => `${score.scorer} ${scoreValue(score)}`).join(", ");
    return grid(
      ["extractor", "answer", "scores"],
      readings.map((reading) => [reading.extractor, orDash(reading.answer), orDash(values(reading.scores))]),
    );
  }

  function trace(agent) {
    const done = (step) => (step.succeeded === false ? " (failed)" : "");
    return el(
      "div", {},
      el("h4", {}, "Agent trace"),
      grid(
        ["turn", "thought", "action", "input", "observation"],
        agent.steps.map((step) => [
          String(step.step),
          orDash(step.thought),
          orDash(step.action),
          orDash(step.action_input),
          orDash(step.observation) + done(step),
        ]),
      ),
      el("p", { class: "note" }, `ended: ${agent.termination_reason.replace(/_/g, " ")}`),
    );
  }

  function requestTable(requests) {
    const phases = (request) =>
      Object.entries(request.phases_ms).map(([phase, ms]) => `${phase} ${duration(ms)}`).join(", ");
    return grid(
      ["served from", "phases", "engine time", "tokens in", "tokens out", "attempts", "key"],
      requests.map((request) => [
        request.served_from,
        orDash(phases(request)),
        duration(request.live_ms),
        number(request.usage.input_tokens),
        number(request.usage.output_tokens),
        String(request.attempts),
        el("code", {}, request.key),
      ]),
    );
  }

  // Paper has nothing to click on.
  function openForPrint() {
    const closed = [...document.querySelectorAll("details:not([open])")];
    const open = (now) => closed.forEach((one) => { one.open = now; });
    open(true);
    window.addEventListener("afterprint", () => open(false), { once: true });
  }

  window.addEventListener("beforeprint", openForPrint);
  byId("list").hidden = data.rows.length === 0;
  buildFilters();
  buildPages();
  filter();
})();
