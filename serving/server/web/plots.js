// Small plots in SVG. They stretch with their box; what is written beside them is HTML.

import { h, number, svg } from "./dom.js";

const WIDTH = 300;
const HEIGHT = 80;

const canvas = (label, ...children) =>
  svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    children,
  );

// A tile with the newest value of each series, and their lines over the time that the page knows.
// Each series has a name, a list of values with null for gaps, and the class of its colour.
export function tile(title, series, format, spanText) {
  const values = series.flatMap(each => each.values).filter(value => value !== null);
  const top = Math.max(...values, 0) || 1;
  const now = series.map(each => [each, format(each.values.at(-1) ?? null)]);
  const label = `${title}: ${now.map(([each, text]) => `${each.name} ${text}`).join(", ")}`;
  return h(
    "div",
    { class: "tile" },
    h("h3", {}, title),
    h(
      "p",
      { class: "now" },
      now.map(([each, text]) =>
        h("span", { class: each.colour }, text, series.length > 1 ? h("small", {}, ` ${each.name}`) : null),
      ),
    ),
    h(
      "div",
      { class: "plot" },
      canvas(
        label,
        series.map(each => svg("path", { class: `line ${each.colour}`, d: linePath(each.values, top) })),
      ),
      h("span", { class: "top mild" }, values.some(Boolean) ? format(top) : ""),
    ),
    h("p", { class: "mild small" }, spanText),
  );
}

function linePath(values, top) {
  const step = WIDTH / Math.max(1, values.length - 1);
  let path = "";
  let pen = "M";
  for (const [place, value] of values.entries()) {
    if (value === null) {
      pen = "M";
      continue;
    }
    const y = HEIGHT - 2 - (HEIGHT - 6) * (value / top);
    path += `${pen}${(place * step).toFixed(1)} ${y.toFixed(1)}`;
    if (pen === "M" && (values[place + 1] ?? null) === null) path += "h.1"; // a point alone
    pen = "L";
  }
  return path || "M0 0";
}

// Shares of live rows as bars, and those of held-out rows as a line of steps, for each bin.
export function distribution(edges, heldOut, live) {
  const top = Math.max(...heldOut, ...live) * 1.08 || 1;
  const width = WIDTH / heldOut.length;
  const y = share => HEIGHT - HEIGHT * (share / top);
  const bars = live.map((share, bin) =>
    svg(
      "rect",
      {
        class: "bar-live",
        x: bin * width + width * 0.08,
        y: y(share),
        width: width * 0.84,
        height: HEIGHT - y(share),
      },
      svg(
        "title",
        {},
        `${binName(edges, bin)}: ${percent(share)} of live rows, ${percent(heldOut[bin])} of held-out rows`,
      ),
    ),
  );
  const steps = heldOut
    .map((share, bin) => `${bin ? "L" : "M"}${bin * width} ${y(share)}H${(bin + 1) * width}`)
    .join("");
  const largest = live.indexOf(Math.max(...live));
  const label = `ELBO of live rows against held-out rows; most live rows are in ${binName(edges, largest)}`;
  const marks = [edges[0], edges[Math.floor(edges.length / 2)], edges.at(-1)];
  return h(
    "figure",
    { class: "distribution" },
    canvas(label, bars, svg("path", { class: "line held-out", d: steps })),
    h(
      "div",
      { class: "ticks mild small" },
      h("span", {}, `← below ${number(marks[0])}`),
      h("span", {}, `${number(marks[1])} nats`),
      h("span", {}, `above ${number(marks[2])} →`),
    ),
    h(
      "figcaption",
      { class: "legend small" },
      h("span", { class: "key live" }, "live"),
      h("span", { class: "key held" }, "held out"),
      h(
        "span",
        { class: "mild" },
        "share of rows by ELBO; each bin is a quantile range of the held-out rows",
      ),
    ),
  );
}

export const percent = share => `${number(100 * share, 3)} %`;

function binName(edges, bin) {
  if (bin === 0) return `below ${number(edges[0])} nats`;
  if (bin === edges.length) return `above ${number(edges.at(-1))} nats`;
  return `${number(edges[bin - 1])} to ${number(edges[bin])} nats`;
}

// A mean with an interval on a line through 0.
export function interval(mean, error, label) {
  const reach = Math.max(Math.abs(mean) + 3 * error, 1e-9) * 1.15;
  const x = value => WIDTH / 2 + (WIDTH / 2) * (value / reach);
  const middle = HEIGHT / 2;
  return h(
    "div",
    { class: "interval" },
    canvas(
      label,
      svg("path", { class: "line zero", d: `M${WIDTH / 2} 8V${HEIGHT - 8}` }),
      svg("path", {
        class: "line wide",
        d: `M${x(mean - 1.96 * error)} ${middle}H${x(mean + 1.96 * error)}`,
      }),
      svg("path", { class: "line spot", d: `M${x(mean)} ${middle - 12}v24` }),
    ),
    h(
      "div",
      { class: "ticks mild small" },
      h("span", {}, "worse"),
      h("span", {}, "0"),
      h("span", {}, "better"),
    ),
  );
}

// A share of a track, as of evidence collected or of a likelihood lost.
export const meter = (share, colour = "") =>
  svg(
    "svg",
    { class: `meter ${colour}`, viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { class: "track", width: 100, height: 8 }),
    svg("rect", { class: "part", width: 100 * Math.min(1, Math.max(0, share)), height: 8 }),
  );
