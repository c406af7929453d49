// What is served and why, and what the server does: rates, latencies, queue and errors.

import { byId, count, h, list, moment, number, seconds, show, span } from "./dom.js";
import { answered, failed } from "./rates.js";
import { tile } from "./plots.js";

export function showServed(status) {
  const { model, refused } = status;
  byId("name").textContent = model ? model.model : "No model yet";
  byId("version").textContent = model ? versionText(model) : "";
  document.title = model ? `${model.model}, version ${model.version}` : "vae serve";
  showState(status);
  show(
    byId("notices"),
    status.warnings.map(text => notice(text, "warn")),
    refused ? notice(`Version ${refused.version} was refused: ${refused.reason}`, "bad") : null,
  );
  show(
    byId("served"),
    list([
      ["Model", model?.model],
      ["Version", model?.version],
      ["Digest", model && h("code", {}, model.digest)],
      ["Up for", status.started && span(status.time - status.started)],
      ["Workers", `${status.ready_workers} of ${status.workers} ready`],
      ["Reloads", reloads(status)],
    ]),
    why(status.decision),
  );
}

// The version of a bundle folder is the beginning of its digest.
function versionText({ version, digest }) {
  const short = digest.slice(0, 12);
  return short === version ? `version ${version}` : `version ${version} · ${short}`;
}

const notice = (text, kind) => h("p", { class: `notice ${kind}` }, text);

function showState(status) {
  const state = byId("state");
  const [text, kind] = !status.ready
    ? ["not ready", "bad"]
    : status.warnings.length || status.refused
      ? ["needs a look", "warn"]
      : ["ready", "good"];
  if (state.textContent !== text) state.textContent = text;
  state.className = `pill ${kind}`;
}

function reloads(status) {
  const faults = [
    [status.reload_failures, "refused"],
    [status.registry_failures, "without an answer of the registry"],
  ];
  return [
    count(status.reloads),
    ...faults.filter(([found]) => found).map(([found, what]) => `${count(found)} ${what}`),
  ].join(", ");
}

// The decision that made this version the one to serve, as the ledger tells it.
function why(decision) {
  if (!decision)
    return h(
      "p",
      { class: "mild small" },
      "No decision is known: this version was named by hand, and not by a ledger.",
    );
  const { reasons, ...rest } = decision; // the reasons are a sentence, too long for a cell
  const pairs = Object.entries(rest).map(([name, value]) => [name.replaceAll("_", " "), String(value)]);
  return h(
    "div",
    { class: "stack" },
    h("h3", {}, "Why this version"),
    reasons ? h("p", {}, reasons) : null,
    list(pairs),
  );
}

const PLOTS = [
  ["Requests a second", [["requests", "a"]], value => (value === null ? "–" : number(value, 3))],
  [
    "Latency",
    [
      ["p50", "a"],
      ["p99", "b"],
    ],
    seconds,
  ],
  ["Rows in the queue", [["queued", "a"]], value => (value === null ? "–" : count(value))],
  ["Errors a second", [["errors", "bad"]], value => (value === null ? "–" : number(value, 3))],
];

export function showLive(history) {
  const { points } = history;
  const status = history.snapshots.at(-1);
  const known = points.length
    ? `the last ${span(Math.max(1, points.at(-1).time - history.snapshots[0].time))}`
    : "waiting for the next answer";
  show(
    byId("plots"),
    PLOTS.map(([title, series, format]) =>
      tile(
        title,
        series.map(([name, colour]) => ({ name, colour, values: points.map(point => point[name]) })),
        format,
        known,
      ),
    ),
  );
  const head = ["operation", "a second", "p50", "p99", "answers", "errors", "rows"];
  const rows = Object.entries(status.operations).map(([name, operation]) => {
    const recent = history.recent(name);
    const rate = recent.requests === null ? "–" : number(recent.requests, 3);
    return [
      name,
      rate,
      seconds(recent.p50),
      seconds(recent.p99),
      count(answered(operation)),
      count(failed(operation)),
      count(operation.rows),
    ];
  });
  show(
    byId("operations"),
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        head.map(text => h("th", { scope: "col" }, text)),
      ),
    ),
    h(
      "tbody",
      {},
      rows.map(([name, ...cells]) =>
        h(
          "tr",
          {},
          h("th", { scope: "row" }, name),
          cells.map(text => h("td", {}, text)),
        ),
      ),
    ),
  );
}

// What the page says while the server cannot be asked.
export function showFault(error) {
  const state = byId("state");
  state.textContent = "no answer";
  state.className = "pill bad";
  show(byId("notices"), notice(`No news from the server: ${error.message}`, "bad"));
}

export const since = unixTime => h("span", {}, "since ", moment(unixTime));
