// Samples of a seed. Choosing one shows its latents in the next card.

import { latest } from "./api.js";
import { h, rove } from "./dom.js";
import { sample } from "./model.js";
import { latentsOf } from "./noise.js";
import { errorPlace, reporting } from "./report.js";
import { picture, rowTable } from "./rows.js";

const MOST = 64;
const ARROWS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

export function startSamples(place, table) {
  const { model } = table;
  const seed = h("input", {
    type: "number",
    min: 0,
    max: Number.MAX_SAFE_INTEGER,
    step: 1,
    value: 7,
    required: true,
  });
  const count = h("input", {
    type: "number",
    min: 1,
    max: MOST,
    step: 1,
    value: model.isPicture ? 16 : 8,
    required: true,
  });
  const shown = h("div", { class: model.isPicture ? "gallery" : "", "aria-live": "off" });
  const error = errorPlace();
  rove(shown, "button.sample", ARROWS);

  const draw = latest(
    reporting(error, async () => {
      if (!seed.validity.valid || !count.validity.valid)
        throw new Error(`The seed is a whole number from 0, and there are 1 to ${MOST} samples.`);
      const [from, size] = [Number(seed.value), Number(count.value)];
      const rows = await sample(model, from, size);
      show(from, rows);
    }),
  );

  function show(from, rows) {
    const choose = index => event => {
      for (const each of shown.querySelectorAll("button.sample"))
        each.setAttribute("aria-pressed", String(each === event.currentTarget));
      table.useLatents(latentsOf(from, index, model.latents));
    };
    const button = (index, content) =>
      h(
        "button",
        {
          type: "button",
          class: "sample",
          tabindex: index ? -1 : 0,
          "aria-pressed": "false",
          onclick: choose(index),
        },
        content,
      );
    shown.replaceChildren(
      ...(model.isPicture
        ? rows.map((row, index) => button(index, picture(model, row, `sample ${index + 1} of seed ${from}`)))
        : [rowTable(model, rows, index => button(index, `Sample ${index + 1}`))]),
    );
  }

  const another = h(
    "button",
    {
      type: "button",
      onclick: () => {
        seed.value = Number(seed.value) + 1;
        draw();
      },
    },
    "Next seed",
  );
  place.replaceChildren(
    h(
      "form",
      {
        class: "controls",
        onsubmit: event => {
          event.preventDefault();
          draw();
        },
        oninput: draw,
      },
      h("label", {}, "Seed ", seed),
      h("label", {}, "Samples ", count),
      another,
    ),
    error,
    shown,
    h(
      "p",
      { class: "mild small" },
      "The same seed gives the same samples everywhere. Choose one to see and move its latents.",
    ),
  );
  return draw().then(() => shown.querySelector("button.sample")?.click());
}
