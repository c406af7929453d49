// A slider for each latent, and what it decodes to.

import { latest } from "./api.js";
import { fixed, h, rove } from "./dom.js";
import { decode } from "./model.js";
import { latentsOf } from "./noise.js";
import { errorPlace, reporting } from "./report.js";
import { columnTable, paint, picture } from "./rows.js";

const REACH = 4;
const SHOWN = 32;

export function startLatents(place, table) {
  const { model } = table;
  let z = new Array(model.latents).fill(0);
  let row = null;
  const error = errorPlace();
  const canvas = model.isPicture
    ? picture(model, new Array(model.size).fill(model.range[0]), "what the latents decode to")
    : null;
  const shown = h("div", { class: "decoded" }, canvas);
  const sliders = z.slice(0, SHOWN).map((_, index) => slider(index));
  const board = h(
    "div",
    { class: "sliders", role: "group", "aria-label": "Latents" },
    sliders.map(each => each.line),
  );
  const settle = rove(board, "input");

  function slider(index) {
    const value = h("output", {}, fixed(0));
    const input = h("input", {
      type: "range",
      min: -REACH,
      max: REACH,
      step: 0.05,
      value: 0,
      tabindex: index ? -1 : 0,
      "aria-label": `latent ${index + 1}`,
      oninput: () => {
        z[index] = Number(input.value);
        value.textContent = fixed(z[index]);
        draw();
      },
    });
    const put = to => {
      input.value = to;
      value.textContent = fixed(to);
    };
    return { line: h("label", {}, h("span", {}, `z${index + 1}`), input, value), put };
  }

  const draw = latest(
    reporting(error, async () => {
      [row] = await decode(model, [z]);
      if (canvas) paint(model, row, canvas);
      else shown.replaceChildren(columnTable(model, [["value", row]]));
    }),
  );

  function use(next) {
    z = [...next];
    sliders.forEach((each, index) => each.put(z[index]));
    settle();
    return draw();
  }

  let walk = 0;
  const button = (text, action) => h("button", { type: "button", onclick: reporting(error, action) }, text);
  place.replaceChildren(
    h(
      "div",
      { class: "controls" },
      button("All to 0", () => use(z.map(() => 0))),
      button("Random", () => use(latentsOf(Math.floor(Date.now() / 1000) + walk++, 0, model.latents))),
      button("From your row", async () => use(await table.ownLatents())),
      button("Take as your row", () => row && table.useRow(row)),
    ),
    error,
    h(
      "div",
      { class: "beside" },
      shown,
      h(
        "div",
        {},
        board,
        model.latents > SHOWN
          ? h("p", { class: "mild small" }, `${model.latents - SHOWN} more latents keep their values.`)
          : null,
        h(
          "p",
          { class: "mild small" },
          "Up and down go from slider to slider, left and right move one. Most latents of data are within ±2.",
        ),
      ),
    ),
  );
  return { use, current: () => [...z] };
}
