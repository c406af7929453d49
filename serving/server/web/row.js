// A row of one's own, drawn, dropped or typed, and what the model makes of it.

import { latest } from "./api.js";
import { h } from "./dom.js";
import { encode, reconstruct, sample, score } from "./model.js";
import { startForm } from "./row_form.js";
import { startDrawing } from "./row_picture.js";
import { errorPlace, reporting } from "./report.js";
import { showResult } from "./row_result.js";

const SEED = 0;
const DRAWS = 16;

export function startRow(place, table) {
  const { model } = table;
  const error = errorPlace();
  const result = h("div", {
    class: "result",
    "aria-live": "polite",
    "aria-label": "What the model makes of it",
    role: "region",
  });
  const judge = latest(
    reporting(error, async () => {
      const row = editor.current();
      const [made, latents, scored] = await Promise.all([
        reconstruct(model, row),
        encode(model, row),
        score(model, row, SEED, DRAWS),
      ]);
      showResult(result, model, { row, made, latents, scored, draws: DRAWS, seed: SEED });
    }),
  );
  const editor = (model.isPicture ? startDrawing : startForm)(model, judge);
  let seed = 0;
  const fromSample = h(
    "button",
    {
      type: "button",
      onclick: reporting(error, async () => {
        const [row] = await sample(model, seed++, 1);
        editor.use(row);
        await judge();
      }),
    },
    "Another sample",
  );
  editor.controls.append(fromSample);
  place.replaceChildren(h("div", {}, editor.element, error), result);
  if (model.example) judge();
  else fromSample.click();
  return {
    current: editor.current,
    use(row) {
      editor.use(row);
      return judge();
    },
  };
}
