// Live progress of an experiment. Everything is put in as text, never as markup.
"use strict";
(() => {
  const live = document.getElementById("live");
  if (!live || !window.EventSource) return;
  const bar = document.getElementById("bar");
  const words = document.getElementById("words");
  const warning = document.getElementById("warning");
  const latest = document.getElementById("latest");
  const SHOWN = 12;
  const source = new EventSource(live.dataset.events);
  let right = 0;
  let judged = 0;

  source.addEventListener("progress", (event) => {
    const now = JSON.parse(event.data);
    if (now.status === "queued") {
      words.textContent = "Waiting for its turn.";
      return;
    }
    if (warning) warning.textContent = now.warning ?? "";
    if (now.finished === undefined) return;
    if (now.total !== null) {
      bar.max = now.total;
      bar.value = now.finished;
    }
    const accuracy = judged ? `, ${((100 * right) / judged).toFixed(1)} % right so far` : "";
    const seconds = (now.elapsed_ms / 1000).toFixed(1);
    words.textContent =
      `${now.finished}${now.total === null ? "" : ` of ${now.total}`} samples in ${seconds} s; ${now.requests_live} requests live, ` +
      `${now.requests_remembered} remembered${accuracy}`;
  });
  source.addEventListener("sample", (event) => {
    const sample = JSON.parse(event.data);
    if (sample.is_correct !== null) {
      judged += 1;
      right += sample.is_correct ? 1 : 0;
    }
    const row = document.createElement("tr");
    const verdict = sample.is_correct === null ? "–" : sample.is_correct ? "yes" : "no";
    const cells = [sample.example_id, sample.outcome, verdict, sample.served_from, `${sample.latency_ms.toFixed(1)} ms`];
    for (const text of cells) {
      const cell = document.createElement("td");
      cell.textContent = text;
      row.append(cell);
    }
    row.lastChild.className = "n";
    latest.prepend(row);
    while (latest.children.length > SHOWN) latest.lastChild.remove();
  });
  source.addEventListener("done", () => {
    source.close();
    location.reload();
  });
  source.addEventListener("error", () => {
    words.textContent = "The server does not answer; trying again …";
  });
})();
