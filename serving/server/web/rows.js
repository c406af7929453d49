// Rows as one sees them: pictures on a canvas, or the cells of a table.

import { h, number } from "./dom.js";
import { cellAt, columnNames } from "./model.js";

const SHOWN_COLUMNS = 64;

// A canvas with one picture, as large in CSS as its style sheet says.
export function picture(model, row, label) {
  const [height, width] = model.shape;
  const canvas = h("canvas", { width, height, role: "img", "aria-label": label });
  paint(model, row, canvas);
  return canvas;
}

export function paint(model, row, canvas) {
  const [height, width, channels = 1] = model.shape;
  const [black, white] = model.range;
  const image = new ImageData(width, height);
  for (let pixel = 0; pixel < width * height; pixel++) {
    for (let c = 0; c < 3; c++) {
      image.data[4 * pixel + c] = (255 * (row[pixel * channels + (c % channels)] - black)) / (white - black);
    }
    image.data[4 * pixel + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// A text for a cell: gaps are dashes.
export const cellText = value =>
  value === null || value === undefined ? "–" : typeof value === "number" ? number(value) : String(value);

// A table with a line for each row; `lead` makes the first cell of a line, such as a button.
export function rowTable(model, rows, lead) {
  const names = columnNames(model).slice(0, SHOWN_COLUMNS);
  const hidden = columnNames(model).length - names.length;
  const head = h(
    "tr",
    {},
    h("th", { scope: "col" }, h("span", { class: "hidden" }, "row")),
    names.map(name => h("th", { scope: "col" }, name)),
  );
  const body = rows.map((row, place) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, lead(place)),
      names.map((_, column) => h("td", {}, cellText(cellAt(model, row, column)))),
    ),
  );
  return h(
    "div",
    {},
    h(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": "Rows" },
      h("table", { class: "numbers rows" }, h("thead", {}, head), h("tbody", {}, body)),
    ),
    hidden > 0 ? h("p", { class: "mild small" }, `${number(hidden)} more columns are not shown.`) : null,
  );
}

// One row of a table from top to bottom, beside others: pairs of a heading and a row.
export function columnTable(model, sides, more = []) {
  const names = columnNames(model).slice(0, SHOWN_COLUMNS);
  return h(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": "Columns" },
    h(
      "table",
      { class: "numbers" },
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          ["column", ...sides.map(([title]) => title), ...more.map(([title]) => title)].map(text =>
            h("th", { scope: "col" }, text),
          ),
        ),
      ),
      h(
        "tbody",
        {},
        names.map((name, place) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, name),
            sides.map(([, row]) => h("td", {}, cellText(cellAt(model, row, place)))),
          ),
        ),
      ),
    ),
  );
}
