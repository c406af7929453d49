// The playground of the model that is served. Its cards know nothing of each other: what one hands
// to another (latents, or a row) goes through here.

import { startBetween } from "./between.js";
import { byId } from "./dom.js";
import { startLatents } from "./latents.js";
import { encode, loadModel } from "./model.js";
import { startRow } from "./row.js";
import { startSamples } from "./samples.js";

export async function startPlayground() {
  const model = await loadModel();
  const table = {
    model,
    useLatents: z => latents.use(z),
    useRow: row => ownRow.use(row),
    latents: () => latents.current(),
    ownLatents: async () => (await encode(model, ownRow.current())).loc,
  };
  const latents = startLatents(byId("latents"), table);
  const ownRow = startRow(byId("row"), table);
  startBetween(byId("between"), table);
  await startSamples(byId("samples"), table);
}
