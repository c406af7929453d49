// What the model makes of a row: its reconstruction, its scores, its latents, and its columns.

import { h, number, svg } from "./dom.js";
import { meter } from "./plots.js";
import { cellText, columnTable, picture } from "./rows.js";

const SHOWN_LATENTS = 32;
const SHOWN_COLUMNS = 16;
const REACH = 4;
const SCORES = [
  ["elbo", "ELBO"],
  ["log_likelihood", "Log-likelihood"],
  ["kl", "KL"],
  ["iw_elbo", "IW-ELBO"],
];

export function showResult(place, model, found) {
  const { values, parameters } = found.scored;
  const parts = [
    model.isPicture ? compare(model, found) : null,
    h(
      "dl",
      { class: "scores" },
      SCORES.filter(([name]) => values[name]).map(([name, title]) =>
        h(
          "div",
          {},
          h("dt", {}, title),
          h(
            "dd",
            { id: name, "data-value": values[name][0] },
            number(values[name][0], 6),
            h("small", {}, " nats"),
          ),
        ),
      ),
    ),
    h(
      "p",
      { class: "mild small" },
      `Of ${found.draws} draws of seed ${found.seed}; larger is better, but for the KL.`,
    ),
    unknown(parameters),
    values.column_log_likelihood ? columns(model, values.column_log_likelihood) : null,
    model.isPicture
      ? null
      : [
          h("h3", {}, "Reconstruction"),
          columnTable(model, [
            ["yours", found.row],
            ["reconstruction", found.made],
          ]),
        ],
    latents(found.latents),
  ];
  place.replaceChildren(...parts.flat().filter(Boolean));
}

const compare = (model, { row, made }) =>
  h(
    "div",
    { class: "compare" },
    [
      [row, "yours"],
      [made, "reconstruction"],
    ].map(([values, text]) =>
      h("figure", {}, picture(model, values, text), h("figcaption", { class: "mild small" }, text)),
    ),
  );

function unknown(parameters) {
  const texts = [
    ["unseen_words", "words that training did not have"],
    ["new_gaps", "gaps where training had none"],
  ];
  return texts
    .filter(([name]) => parameters[name])
    .map(([name, what]) => h("p", { class: "notice warn" }, `There are ${what}: ${parameters[name]}`));
}

// The columns of x by their log-likelihood, those that cost most first.
function columns(model, values) {
  const sorted = model.names
    .map((name, place) => [name, values[place]])
    .filter(([, value]) => value !== null)
    .sort((a, b) => a[1] - b[1]);
  const worst = Math.min(-1e-9, sorted[0]?.[1] ?? 0);
  return [
    h("h3", {}, "What the columns cost"),
    h(
      "table",
      { class: "bars", id: "column-costs" },
      h(
        "thead",
        { class: "hidden" },
        h(
          "tr",
          {},
          ["column", "share of the worst", "log-likelihood"].map(text => h("th", { scope: "col" }, text)),
        ),
      ),
      h(
        "tbody",
        {},
        sorted
          .slice(0, SHOWN_COLUMNS)
          .map(([name, value]) =>
            h(
              "tr",
              {},
              h("th", { scope: "row" }, name),
              h("td", {}, meter(value / worst)),
              h("td", {}, cellText(value)),
            ),
          ),
      ),
    ),
    h(
      "p",
      { class: "mild small" },
      "Log-likelihood of each column in nats, the least likely first",
      sorted.length > SHOWN_COLUMNS ? `; ${sorted.length - SHOWN_COLUMNS} more are not shown.` : ".",
    ),
  ];
}

// The posterior of each latent: its mean, and one scale to either side.
function latents({ loc, scale }) {
  const shown = loc.slice(0, SHOWN_LATENTS);
  const x = value => 50 + (50 * Math.max(-REACH, Math.min(REACH, value))) / REACH;
  const line = (mean, spread) =>
    svg(
      "svg",
      { class: "posterior", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("path", { class: "line zero", d: "M50 0V8" }),
      svg("path", { class: "line wide", d: `M${x(mean - spread)} 4H${x(mean + spread)}` }),
      svg("path", { class: "line spot", d: `M${x(mean)} 0V8` }),
    );
  return [
    h("h3", {}, "Latents"),
    h(
      "table",
      { class: "bars", id: "posterior" },
      h(
        "thead",
        { class: "hidden" },
        h(
          "tr",
          {},
          ["latent", "interval", "mean ± scale"].map(text => h("th", { scope: "col" }, text)),
        ),
      ),
      h(
        "tbody",
        {},
        shown.map((mean, index) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, `z${index + 1}`),
            h("td", {}, line(mean, scale[index])),
            h("td", {}, `${number(mean, 3)} ± ${number(scale[index], 2)}`),
          ),
        ),
      ),
    ),
    loc.length > SHOWN_LATENTS
      ? h("p", { class: "mild small" }, `${loc.length - SHOWN_LATENTS} more latents are not shown.`)
      : null,
  ];
}
