// What the observer knows of the live rows: drift, shadow and capture.

import { byId, bytes, count, eValue, h, list, number, show, span } from "./dom.js";
import { distribution, interval, meter, percent } from "./plots.js";
import { since } from "./watch.js";

const SHOWN_COLUMNS = 12;
let chosenSpan = null; // seconds of the window that the person chose

export function showObserved(status) {
  const live = status.live;
  show(
    byId("drift"),
    live?.drift ? drift(live.drift, status) : off("No rows are watched", "--watch-share", live),
  );
  show(
    byId("shadow"),
    live?.shadow
      ? shadow(live.shadow, live)
      : off("No challenger scores along", "--shadow models:/NAME@candidate", live),
  );
  show(
    byId("capture"),
    live?.capture ? capture(live.capture, status) : off("No rows are kept", "--capture DIR", live),
  );
}

document.addEventListener("change", event => {
  if (event.target.name === "window") {
    chosenSpan = Number(event.target.value);
    document.dispatchEvent(new Event("watch-again"));
  }
});

const off = (what, option, live) =>
  h(
    "p",
    { class: "mild" },
    `${what}${live ? "" : " yet"}. `,
    h("code", {}, `vae serve ${option}`),
    " does so.",
  );

function drift(found, status) {
  const window =
    found.windows.find(each => each.seconds === chosenSpan) ??
    found.windows.findLast(each => each.rows) ??
    found.windows[0];
  return [
    verdict(found),
    found.windows.length ? windows(found.windows, window) : null,
    window && found.edges.length ? figure(found, window) : null,
    list([
      ["Rows compared", count(found.rows)],
      ["Rows lost on the way", lost(status.unwatched_rows)],
      ["Rows the observer could not use", count(status.live.dropped_rows)],
    ]),
    columns(found),
  ];
}

const REASONS = {
  busy: "the machine was busy",
  size: "the request was too large",
  error: "the observer could not be reached",
};

// Rows that were chosen and did not reach the observer, with the reasons.
function lost(rows) {
  const reasons = Object.entries(rows).filter(([, found]) => found);
  if (!reasons.length) return "0";
  return reasons.map(([reason, found]) => `${count(found)}, since ${REASONS[reason] ?? reason}`).join("; ");
}

function verdict(found) {
  const limit = -Math.log(found.level);
  const isAlarm = found.alarm_time !== null;
  const words = isAlarm
    ? h(
        "p",
        { class: "verdict bad" },
        h("strong", {}, "Alarm"),
        " ",
        since(found.alarm_time),
        found.alarm_rows === null ? "" : `, after ${count(found.alarm_rows)} rows`,
        found.drifted.length ? `: ${found.drifted.map(differing).join(", ")}` : "",
        found.since_time === null ? "" : [". The rows seem to differ ", since(found.since_time)],
      )
    : found.rows
      ? h("p", { class: "verdict good" }, h("strong", {}, "No drift found"))
      : h("p", { class: "verdict" }, "No row compared yet");
  return h(
    "div",
    { class: "stack" },
    words,
    h(
      "p",
      {},
      "e-value ",
      h("b", { id: "e-value" }, eValue(found.log_e_value)),
      ` of the ${eValue(limit)} at which the alarm goes off. `,
      h(
        "span",
        { class: "mild" },
        `The chance of a false alarm is at most ${percent(found.level)}, however long the version is served.`,
      ),
    ),
    meter(found.log_e_value / limit, isAlarm ? "bad" : ""),
  );
}

const differing = name => (name === "elbo" ? "whole rows" : name);

function windows(all, chosen) {
  return h(
    "fieldset",
    { class: "choice" },
    h("legend", {}, "Rows of the last"),
    all.map(each =>
      h(
        "label",
        {},
        h("input", {
          type: "radio",
          name: "window",
          value: each.seconds,
          checked: each === chosen ? "checked" : null,
        }),
        h("span", {}, span(each.seconds)),
      ),
    ),
  );
}

function figure(found, window) {
  if (!window.rows) return h("p", { class: "mild" }, "There was no row in this time.");
  const live = window.counts.map(rows => rows / window.rows);
  return h(
    "div",
    { class: "stack" },
    distribution(found.edges, found.held_out, live),
    h(
      "p",
      {},
      h("b", {}, count(window.rows)),
      " rows, mean ELBO ",
      h("b", {}, number(window.mean, 5)),
      " nats",
    ),
  );
}

// The columns whose own tests have found most.
function columns(found) {
  const sorted = Object.entries(found.columns).sort((a, b) => b[1] - a[1]);
  if (!sorted.length) return null;
  const limit = -Math.log(found.level); // each column's e-value has its share of the level in it
  return h(
    "div",
    { class: "stack" },
    h("h3", {}, "Columns"),
    h(
      "table",
      { class: "bars" },
      h(
        "thead",
        { class: "hidden" },
        h(
          "tr",
          {},
          ["column", "evidence", "e-value"].map(text => h("th", { scope: "col" }, text)),
        ),
      ),
      h(
        "tbody",
        {},
        sorted
          .slice(0, SHOWN_COLUMNS)
          .map(([name, log]) =>
            h(
              "tr",
              {},
              h("th", { scope: "row" }, name),
              h("td", {}, meter(log / limit, log > limit ? "bad" : "")),
              h("td", {}, eValue(log)),
            ),
          ),
      ),
    ),
    sorted.length > SHOWN_COLUMNS
      ? h(
          "p",
          { class: "mild small" },
          `${count(sorted.length - SHOWN_COLUMNS)} more columns have smaller ones.`,
        )
      : null,
  );
}

function shadow(found, { digest: served }) {
  const { mean_difference: mean, difference_se: error } = found;
  const text =
    mean === null
      ? "no rows yet"
      : `${mean > 0 ? "+" : ""}${number(mean)} ± ${error === null ? "?" : number(error, 2)} nats`;
  return [
    found.digest === served
      ? h("p", {}, "The challenger is the version served: nothing is compared until it names another.")
      : found.fault
        ? h("p", { class: "notice bad" }, found.fault)
        : null,
    h("p", { class: "figure" }, text),
    mean !== null && error !== null
      ? interval(mean, error, `ELBO of the challenger minus that of the version served: ${text}`)
      : null,
    h(
      "p",
      { class: "mild small" },
      "Mean ELBO of the challenger minus that of the version served, on the same rows with ",
      "the same noise; the bar is ± 1.96 standard errors.",
    ),
    list([
      ["Challenger", found.name],
      ["Version", found.version],
      ["Digest", h("code", {}, found.digest.slice(0, 12))],
      ["Rows", count(found.rows)],
    ]),
  ];
}

function capture(found, { live, uncaptured_rows: missed }) {
  return [
    found.fault ? h("p", { class: "notice bad" }, found.fault) : null,
    h("p", { class: "figure" }, `${count(found.rows)} rows`),
    list([
      ["Folder", h("code", {}, found.folder)],
      ["Parts", count(found.parts)],
      ["Size", bytes(found.bytes)],
      ["Rows lost on the way", lost(missed)],
      ["Rows the observer could not use", count(live.dropped_rows)],
    ]),
  ];
}
