// The straight line between the latents of two rows, decoded step by step.

import { latest } from "./api.js";
import { h, rove } from "./dom.js";
import { decode } from "./model.js";
import { latentsOf } from "./noise.js";
import { errorPlace, reporting } from "./report.js";
import { picture, rowTable } from "./rows.js";

const MOST = 15;

export function startBetween(place, table) {
  const { model } = table;
  const error = errorPlace();
  const shown = h("div", { class: model.isPicture ? "strip" : "", "aria-live": "off" });
  const steps = h("input", {
    type: "number",
    min: 2,
    max: MOST,
    value: 9,
    required: true,
    oninput: () => draw(),
  });
  rove(shown, "button.sample", { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 });

  const draw = latest(
    reporting(error, async () => {
      if (!steps.validity.valid) throw new Error(`There are 2 to ${MOST} steps.`);
      const count = Number(steps.value);
      const line = Array.from({ length: count }, (_, step) =>
        between(ends[0].z, ends[1].z, step / (count - 1)),
      );
      const rows = await decode(model, line);
      const button = (step, content) =>
        h(
          "button",
          {
            type: "button",
            class: "sample",
            tabindex: step ? -1 : 0,
            onclick: () => table.useLatents(line[step]),
          },
          content,
        );
      shown.replaceChildren(
        ...(model.isPicture
          ? rows.map((row, step) => button(step, picture(model, row, `step ${step + 1} of ${count}`)))
          : [rowTable(model, rows, step => button(step, `Step ${step + 1}`))]),
      );
    }),
  );

  // One end of the line: the latents of a seed's first sample, of a row, or of the sliders.
  function end(name, firstSeed) {
    const seed = h("input", {
      type: "number",
      min: 0,
      max: Number.MAX_SAFE_INTEGER,
      step: 1,
      value: firstSeed,
      required: true,
    });
    const source = h("output", {}, `seed ${firstSeed}`);
    const self = { z: latentsOf(firstSeed, 0, model.latents), field: null };
    const take = (text, read) =>
      reporting(error, async () => {
        self.z = await read();
        source.textContent = text();
        await draw();
      });
    const useSeed = take(
      () => `seed ${seed.value}`,
      () => {
        if (!seed.validity.valid) throw new Error("A seed is a whole number from 0.");
        return latentsOf(Number(seed.value), 0, model.latents);
      },
    );
    seed.addEventListener("input", useSeed);
    self.field = h(
      "fieldset",
      {},
      h("legend", {}, name, ": ", source),
      h(
        "div",
        { class: "controls" },
        h("label", {}, "Seed ", seed),
        h("button", { type: "button", onclick: take(() => "your row", table.ownLatents) }, "Your row"),
        h(
          "button",
          {
            type: "button",
            onclick: take(
              () => "the sliders",
              () => table.latents(),
            ),
          },
          "Sliders",
        ),
      ),
    );
    return self;
  }

  const ends = [end("From", 1), end("To", 2)];
  place.replaceChildren(
    h(
      "div",
      { class: "ends" },
      ends.map(each => each.field),
      h("label", {}, "Steps ", steps),
    ),
    error,
    shown,
  );
  return draw();
}

const between = (a, b, share) => a.map((value, place) => (1 - share) * value + share * b[place]);
