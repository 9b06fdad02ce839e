// Samples of a report: filters, the list and details. Knows nothing of how numbers are made.
//
// Of each workflow there is an index (see index.rs), which is read at once: by it the list is filtered and ordered. All
// else comes in blocks (see samples.rs), compressed, and is unpacked when one of its rows is looked at; what is looked
// at before its block has arrived waits for it. Of the list only the rows in view exist. Whatever a model said reaches
// the page through textContent only, so it stays text.
"use strict";
(() => {
  const CELL_CHARS = 280;
  const SELECT_OPTIONS = 100;
  const TYPING_MS = 120;
  // Rows that exist above and below those in view.
  const SPARE_ROWS = 8;
  // Unpacked blocks that are kept.
  const BLOCKS_KEPT = 64;
  // Browsers end an element at some height between 17 and 33 million pixels.
  const HEIGHT_MAX = 12_000_000;
  const COLUMNS = ["cell", "flow", "question", "answer", "target", "result", "latency", "served"];
  const HEADS = ["workflow", "flow", "question", "answer", "target", "result", "latency", "served from"];

  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const list = byId("list");
  const canvas = el("div", { class: "rows", role: "rowgroup" });
  const filters = [];
  let order = "";

  function el(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === true) node.setAttribute(name, "");
      else if (value !== false && value !== null) node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child !== null));
    return node;
  }

  const isAbsent = (value) => value === null || value === undefined || value === "";
  const orDash = (value) => (isAbsent(value) ? "–" : String(value));

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

  const number = (value) => (isAbsent(value) ? "–" : value.toLocaleString("en"));

  // Rows: a number for each, and columns by it. Texts of columns stand once in `names`.

  const column = () => ({ names: [], places: new Map(), at: [] });
  const rows = {
    count: 0,
    cell: [],
    epoch: [],
    latency: [],
    outcome: column(),
    verdict: column(),
    served: column(),
    tags: data.tags.map(column),
  };

  // Of a column with one value, no places are written.
  function extend(own, part, count) {
    const places = part.values.map((value) => {
      if (!own.places.has(value)) {
        own.places.set(value, own.names.length);
        own.names.push(value);
      }
      return own.places.get(value);
    });
    if (part.at.length === 0) for (let i = 0; i < count; i += 1) own.at.push(places[0]);
    else for (const place of part.at) own.at.push(places[place]);
  }

  function addIndex(index) {
    for (let i = 0; i < index.rows; i += 1) {
      rows.cell.push(index.cell);
      rows.epoch.push(index.epoch.length === 0 ? 0 : index.epoch[i]);
      rows.latency.push(index.latency[i]);
    }
    for (const name of ["outcome", "verdict", "served"]) extend(rows[name], index[name], index.rows);
    index.tags.forEach((part, i) => extend(rows.tags[i], part, index.rows));
    rows.count += index.rows;
  }

  // Blocks, in the order of the rows.

  const blocks = [];
  const arrival = { rows: 0, whole: false, next: null, tell: null };

  // Resolved when there are more blocks, or the page has ended.
  function moreBlocks() {
    arrival.next ??= new Promise((resolve) => { arrival.tell = resolve; });
    return arrival.next;
  }

  // Takes the blocks that are there by now; one that has something after it is whole.
  function takeBlocks(ended) {
    const bodies = document.getElementsByClassName("block");
    const before = blocks.length;
    while (blocks.length < bodies.length) {
      const element = bodies[blocks.length];
      if (!ended && element.nextElementSibling === null) break;
      const count = Number(element.dataset.rows);
      blocks.push({ element, first: arrival.rows, count, rows: null, promise: null });
      arrival.rows += count;
    }
    arrival.whole = ended;
    if ((blocks.length > before || ended) && arrival.next !== null) {
      const tell = arrival.tell;
      arrival.next = null;
      tell();
    }
  }

  // The block of a row; nothing before it has arrived.
  function blockOf(row) {
    let [low, high] = [0, blocks.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (row < blocks[middle].first + blocks[middle].count) high = middle;
      else low = middle + 1;
    }
    return blocks[low];
  }

  const of = (own, row) => own.names[own.at[row]];

  // What a sample came to, in one word.
  const result = (row) =>
    of(rows.outcome, row) === "answered" ? of(rows.verdict, row) : of(rows.outcome, row);

  async function inflate(text) {
    const bytes = Uint8Array.fromBase64
      ? Uint8Array.fromBase64(text)
      : Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
    return new Response(stream).text();
  }

  const kept = new Set();

  // The rows of a block: at once where it is unpacked, else a promise of them.
  function unpack(block) {
    kept.delete(block);
    kept.add(block);
    if (kept.size > BLOCKS_KEPT) {
      const [oldest] = kept;
      kept.delete(oldest);
      oldest.rows = null;
      oldest.promise = null;
    }
    if (block.rows !== null) return block.rows;
    block.promise ??= inflate(block.element.textContent).then((json) => {
      block.rows = JSON.parse(json);
      return block.rows;
    });
    return block.promise;
  }

  // The whole of a sample, or a promise of it.
  function whole(row) {
    const block = blockOf(row);
    if (block === undefined) return moreBlocks().then(() => whole(row));
    const found = unpack(block);
    const pick = (all) => all[row - block.first];
    return Array.isArray(found) ? pick(found) : found.then(pick);
  }

  // Search. It unpacks everything once, block by block, and shows what it has found so far.

  const search = { hits: null, share: 1, run: 0 };

  function holds(sample, query) {
    const has = (text) => !isAbsent(text) && text.toLowerCase().includes(query);
    return (
      has(sample.flow) || has(sample.answer) || sample.targets.some(has) ||
      sample.steps.some((step) => step.transcript.some(([, said]) => has(said)))
    );
  }

  async function find(text) {
    const query = text.toLowerCase();
    search.run += 1;
    const run = search.run;
    search.share = 0;
    search.hits = query === "" ? null : new Set();
    if (query === "") return filter();
    const escaped = JSON.stringify(query).slice(1, -1);
    let shownAt = performance.now();
    for (let i = 0; i < blocks.length || !arrival.whole; i += 1) {
      while (i >= blocks.length && !arrival.whole) await moreBlocks();
      if (i >= blocks.length) break;
      const block = blocks[i];
      const json = await inflate(block.element.textContent);
      if (search.run !== run) return undefined;
      if (json.toLowerCase().includes(escaped)) {
        JSON.parse(json).forEach((sample, place) => {
          if (holds(sample, query)) search.hits.add(block.first + place);
        });
      }
      search.share = (block.first + block.count) / rows.count;
      if (performance.now() - shownAt > 250) {
        filter(true);
        shownAt = performance.now();
      }
    }
    search.share = 1;
    return filter();
  }

  // Filters. Each is an input and a function from its value to a test of a row.

  function addFilter(label, input, test) {
    filters.push({ input, test });
    byId("filters").append(el("label", {}, label, input));
  }

  function addSelect(label, values, test) {
    if (values.length < 2) return;
    const options = values.map(([value, name]) => el("option", { value }, name));
    addFilter(label, el("select", {}, el("option", { value: "" }, "any"), ...options), test);
  }

  function addColumn(label, own) {
    const known = own.names.map((name, place) => [place, name]).filter(([, name]) => name !== null);
    known.sort(([, a], [, b]) => a.localeCompare(b, "en", { numeric: true }));
    addSelect(label, known, (value) => (row) => own.at[row] === Number(value));
  }

  // What is typed counts once the typing stops.
  function onInput(input, act) {
    let typing = 0;
    input.addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(act, TYPING_MS);
    });
  }

  function buildFilters() {
    const input = el("input", {
      id: "search",
      type: "search",
      placeholder: "flow, question, answer, target, transcript",
      autocomplete: "off",
      spellcheck: "false",
    });
    onInput(input, () => find(input.value));
    byId("filters").append(el("label", { class: "search" }, "Search", input));
    addSelect("Workflow", data.cells.map((name, i) => [i, name]), (value) => (row) => rows.cell[row] === Number(value));
    addColumn("Outcome", rows.outcome);
    addColumn("Right or wrong", rows.verdict);
    addColumn("Served from", rows.served);
    data.tags.forEach((tag, i) => {
      const own = rows.tags[i];
      if (own.names.length <= SELECT_OPTIONS) return addColumn(tag, own);
      // A tag that differs from row to row is searched: nobody reads a list of it.
      const contains = (value) => {
        const query = value.toLowerCase();
        const hits = own.names.map((name) => name !== null && name.toLowerCase().includes(query));
        return (row) => hits[own.at[row]];
      };
      return addFilter(tag, el("input", { type: "search", placeholder: "contains" }), contains);
    });
    for (const { input: one } of filters) onInput(one, () => filter());
    const orders = [["", "as run"], ["slow", "slowest first"], ["fast", "fastest first"], ["result", "result"]];
    const select = el("select", { id: "order" }, ...orders.map(([value, name]) => el("option", { value }, name)));
    select.addEventListener("input", () => { order = select.value; filter(); });
    byId("filters").append(el("label", {}, "Order", select));
  }

  const compare = {
    slow: (a, b) => rows.latency[b] - rows.latency[a],
    fast: (a, b) => rows.latency[a] - rows.latency[b],
    result: (a, b) => result(a).localeCompare(result(b), "en"),
  };

  // `more` of the same search keeps the place in the list.
  function filter(more = false) {
    const used = filters.filter(({ input }) => input.value !== "");
    const tests = used.map(({ input, test }) => test(input.value));
    if (search.hits !== null) tests.push((row) => search.hits.has(row));
    const matches = [];
    for (let row = 0; row < rows.count; row += 1) {
      if (tests.every((test) => test(row))) matches.push(row);
    }
    if (order !== "") matches.sort((a, b) => compare[order](a, b) || a - b);
    const before = shown.matches[shown.active];
    shown.matches = matches;
    shown.active = Math.max(0, matches.indexOf(before));
    const unfinished = search.hits !== null && search.share < 1;
    const searching = unfinished ? `, searching: ${Math.round(search.share * 100)} %` : "";
    byId("count").textContent = `${number(matches.length)} of ${number(rows.count)}${searching}`;
    list.setAttribute("aria-rowcount", matches.length + 1);
    list.setAttribute("aria-busy", String(unfinished));
    for (const line of lines.values()) line.remove();
    lines.clear();
    measure();
    if (!more) list.scrollTop = 0;
    paint();
  }

  // The list. A place is a position among the matches; a line is the element of one.

  const shown = { matches: [], active: 0, rowHeight: 1, view: 1, height: 1, all: 1 };
  const lines = new Map();

  function measure() {
    shown.rowHeight = parseFloat(getComputedStyle(list).getPropertyValue("--row")) * parseFloat(getComputedStyle(document.documentElement).fontSize);
    shown.view = Math.max(1, list.clientHeight - list.firstChild.offsetHeight);
    shown.all = shown.matches.length * shown.rowHeight;
    shown.height = Math.min(shown.all, HEIGHT_MAX);
    canvas.style.height = `${shown.height}px`;
  }

  // Pixels of all rows above the view. Beyond the greatest height, a pixel of scrolling is more than one of rows.
  function offset() {
    const room = shown.height - shown.view;
    return room > 0 ? (list.scrollTop / room) * (shown.all - shown.view) : 0;
  }

  function scrollToOffset(pixels) {
    const room = shown.all - shown.view;
    list.scrollTop = room > 0 ? (pixels / room) * (shown.height - shown.view) : 0;
  }

  function paint() {
    const { matches, rowHeight, view } = shown;
    const above = offset();
    const first = Math.max(0, Math.floor(above / rowHeight) - SPARE_ROWS);
    const last = Math.min(matches.length, Math.ceil((above + view) / rowHeight) + SPARE_ROWS);
    const wanted = new Set();
    for (let place = first; place < last; place += 1) wanted.add(place);
    // The line with the focus stays, or the focus would be lost.
    if (shown.active < matches.length) wanted.add(shown.active);
    for (const [place, line] of lines) {
      if (!wanted.has(place)) {
        line.remove();
        lines.delete(place);
      }
    }
    // In the order of the list, for those who hear it.
    let before = null;
    for (const place of [...wanted].sort((a, b) => a - b)) {
      let line = lines.get(place);
      if (line === undefined) {
        line = makeLine(place);
        lines.set(place, line);
        if (before === null) canvas.prepend(line);
        else before.after(line);
      }
      before = line;
      const y = Math.min(Math.max(place * rowHeight - above + list.scrollTop, 0), Math.max(0, shown.height - rowHeight));
      line.style.transform = `translateY(${y}px)`;
      line.tabIndex = place === shown.active ? 0 : -1;
    }
  }

  function clip(value) {
    const text = orDash(value);
    return el("div", { class: "clip" }, text.length > CELL_CHARS ? `${text.slice(0, CELL_CHARS)}…` : text);
  }

  function makeLine(place) {
    const row = shown.matches[place];
    const word = result(row);
    const cells = COLUMNS.map((name, i) => el("div", { class: `of-${name}`, role: "gridcell", "aria-colindex": i + 1 }));
    const [cell, flow, question, answer, target, mark, latency, served] = cells;
    cell.append(clip(data.short[rows.cell[row]]));
    mark.append(el("span", { class: `result ${word.replace(/[ _]/g, "-")}` }, word));
    latency.classList.add("number");
    latency.append(duration(rows.latency[row]));
    served.append(of(rows.served, row));
    const fill = (sample) => {
      flow.append(el("div", { class: "clip name" }, nameOf(sample, row)));
      question.append(clip(sample.question));
      answer.append(clip(sample.answer));
      target.append(clip(sample.targets.join(" | ")));
    };
    const line = el("div", { class: "row", role: "row", "aria-rowindex": place + 2 }, ...cells);
    line.dataset.place = place;
    const sample = whole(row);
    if (sample instanceof Promise) sample.then(fill);
    else fill(sample);
    return line;
  }

  const nameOf = (sample, row) => (rows.epoch[row] > 0 ? `${sample.flow} #${rows.epoch[row] + 1}` : sample.flow);

  function moveTo(place) {
    const last = shown.matches.length - 1;
    if (last < 0) return;
    shown.active = Math.min(Math.max(place, 0), last);
    const top = shown.active * shown.rowHeight;
    const above = offset();
    if (top < above) scrollToOffset(top);
    else if (top + shown.rowHeight > above + shown.view) scrollToOffset(top + shown.rowHeight - shown.view);
    paint();
    lines.get(shown.active).focus({ preventScroll: true });
  }

  function listKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const page = Math.max(1, Math.floor(shown.view / shown.rowHeight) - 1);
    const moves = {
      ArrowDown: () => moveTo(shown.active + 1),
      ArrowUp: () => moveTo(shown.active - 1),
      PageDown: () => moveTo(shown.active + page),
      PageUp: () => moveTo(shown.active - page),
      Home: () => moveTo(0),
      End: () => moveTo(shown.matches.length - 1),
      Enter: () => open(shown.active),
      " ": () => open(shown.active),
    };
    if (moves[event.key] === undefined) return;
    event.preventDefault();
    moves[event.key]();
  }

  function buildList() {
    const heads = HEADS.map((name, i) => el("div", { class: i === 6 ? "number" : null, role: "columnheader", "aria-colindex": i + 1 }, name));
    list.append(el("div", { class: "head", role: "row", "aria-rowindex": 1 }, ...heads), canvas);
    list.addEventListener("scroll", () => paint(), { passive: true });
    list.addEventListener("keydown", listKey);
    canvas.addEventListener("click", (event) => {
      const line = event.target.closest(".row");
      // Marking a text to copy it is no wish to open its row.
      if (line !== null && String(window.getSelection()) === "") open(Number(line.dataset.place));
    });
    new ResizeObserver(() => { measure(); paint(); }).observe(list);
    document.addEventListener("keydown", (event) => {
      const writing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
      if (event.key !== "/" || writing || sheet.open) return;
      event.preventDefault();
      byId("search").focus();
    });
  }

  // Details of a sample.

  const sheet = byId("sheet");

  async function open(place) {
    if (place < 0 || place >= shown.matches.length) return;
    moveTo(place);
    const row = shown.matches[place];
    const sample = await whole(row);
    const button = (name, act, more) => {
      const made = el("button", { type: "button", ...more }, name);
      made.addEventListener("click", act);
      return made;
    };
    const title = `${nameOf(sample, row)} · ${data.cells[rows.cell[row]]} · ${result(row)}`;
    sheet.replaceChildren(
      el("header", {},
        el("h2", { id: "sheet-name" }, title),
        button("Previous", () => open(place - 1), { disabled: place === 0 }),
        button("Next", () => open(place + 1), { disabled: place === shown.matches.length - 1 }),
        button("Close", () => sheet.close(), { id: "close", autofocus: true }),
      ),
      details(row, sample),
    );
    if (!sheet.open) sheet.showModal();
    sheet.scrollTop = 0;
    sheet.querySelector("#close").focus();
  }

  sheet.addEventListener("close", () => moveTo(shown.active));
  sheet.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    open(shown.active + by);
  });

  function details(row, sample) {
    const outcome = of(rows.outcome, row);
    const facts = [
      ["outcome", isAbsent(sample.detail) ? outcome : `${outcome}: ${sample.detail}`],
      ["answer", orDash(sample.answer)],
      ["targets", orDash(sample.targets.join(" | "))],
      ["latency", `${duration(rows.latency[row])}, served from ${of(rows.served, row)}`],
      ["wall time", `${duration(sample.wall_ms)}, with the wait for a permit`],
      ["scoring", duration(sample.metrics_ms)],
      ["epoch", rows.epoch[row] + 1],
      ...data.tags.map((tag, i) => [tag, of(rows.tags[i], row)]).filter(([, value]) => !isAbsent(value)),
      ["key", sample.key],
      ["flow digest", sample.flow_digest],
    ];
    return el(
      "div", { class: "body" },
      factList(facts),
      section("Scores", sample.scores, scoreTable),
      section("Extractors", sample.readings ?? [], readingTable),
      ...sample.steps.flatMap((step) => [
        el("h3", {}, `Step ${step.id}`),
        isAbsent(step.retrieval) ? null : retrieval(step.retrieval),
        ...step.transcript.map(turn),
        sample.steps.length > 1 ? el("p", { class: "note" }, `answer: ${orDash(step.answer)}`) : null,
        isAbsent(step.trace) ? null : trace(step.trace),
      ]),
      section("Requests", sample.requests, requestTable),
    );
  }

  function section(title, items, show) {
    return items.length === 0 ? null : el("div", {}, el("h3", {}, title), show(items));
  }

  function factList(facts) {
    const line = ([name, value]) =>
      el("div", {}, el("dt", {}, name), el("dd", {}, el("pre", {}, String(value))));
    return el("dl", { class: "facts" }, ...facts.map(line));
  }

  function grid(head, body) {
    const heads = head.map((name) => el("th", { scope: "col" }, name));
    const all = body.map((values) => el("tr", {}, ...values.map((value) => el("td", {}, value))));
    return el(
      "div", { class: "scroll" },
      el("table", {}, el("thead", {}, el("tr", {}, ...heads)), el("tbody", {}, ...all)),
    );
  }

  function turn([role, said]) {
    return el(
      "div", { class: `turn ${role}` },
      el("div", { class: "role" }, role),
      el("pre", {}, said),
    );
  }

  function scoreTable(scores) {
    return grid(
      ["scorer", "value", "best target", "compared, or verdict", "detail"],
      scores.map((score) => [
        score.scorer, scoreValue(score), orDash(score.matched), orDash(score.parsed ?? score.verdict), orDash(score.detail),
      ]),
    );
  }

  function scoreValue(score) {
    if (isAbsent(score.value)) return `no verdict: ${orDash(score.unscored).replace(/_/g, " ")}`;
    return Number.isInteger(score.value) ? String(score.value) : score.value.toFixed(3);
  }

  function readingTable(readings) {
    const values = (scores) => scores.map((score) => `${score.scorer} ${scoreValue(score)}`).join(", ");
    return grid(
      ["extractor", "answer", "scores"],
      readings.map((reading) => [reading.extractor, orDash(reading.answer), orDash(values(reading.scores))]),
    );
  }

  // What was put before the question, and how well each ranking says that it fits.
  function retrieval(info) {
    return el(
      "details", {},
      el("summary", {}, `Retrieved (${info.method}): ${info.passages.length}`),
      grid(
        ["", "document", "part", "score", "passage"],
        info.passages.map((passage, i) => [
          String(i + 1), passage.source, String(passage.number + 1), String(passage.score), passage.text,
        ]),
      ),
    );
  }

  function trace(agent) {
    const done = (step) => (step.succeeded === false ? " (failed)" : "");
    return el(
      "div", {},
      el("h3", {}, "Agent trace"),
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
        number(request.tokens_in),
        number(request.tokens_out),
        String(request.attempts),
        el("code", {}, request.key),
      ]),
    );
  }

  // Paper has nothing to click on.
  function openForPrint() {
    const closed = [...document.querySelectorAll("details:not([open])")];
    const set = (now) => closed.forEach((one) => { one.open = now; });
    set(true);
    const count = byId("count");
    const words = count.textContent;
    count.textContent = `${words}; on paper those that were in view`;
    window.addEventListener("afterprint", () => { set(false); count.textContent = words; }, { once: true });
  }

  window.addEventListener("beforeprint", openForPrint);

  // Indexes stand before this script and blocks after it: everything works while they are on their way.

  for (const element of document.getElementsByClassName("index")) addIndex(JSON.parse(element.textContent));
  buildList();
  buildFilters();
  if (rows.count > 0) {
    list.hidden = false;
    byId("keys").hidden = false;
  }
  filter();
  performance.mark("samples-ready");
  if (rows.count > 0) Promise.resolve(whole(0)).then(() => performance.mark("samples-shown"));
  const watch = new MutationObserver(() => takeBlocks(false));
  watch.observe(document.body, { childList: true });
  document.addEventListener("DOMContentLoaded", () => {
    watch.disconnect();
    takeBlocks(true);
    performance.mark("samples-whole");
  });
})();
