// What the page has to know of a model, and its rows. A row is a flat list of values in the data's
// units, or for a mixed table an object with a cell for each column of the table, null for a gap.

import { ask, infer, tensor } from "./api.js";

const BY_COLUMNS = { content_type: "pd" };

export async function loadModel() {
  const described = await ask("openapi.json");
  const operations = described["x-operations"];
  const input = operations.encode.inputs.find(each => each.name === "x");
  const shape = input.shape.slice(1);
  const size = shape.reduce((a, b) => a * b, 1);
  const isMixed = Boolean(described["x-row-by-columns"]);
  const table = isMixed ? (await ask("v2/models/score")).parameters : null;
  const names = table?.x_columns ?? described["x-columns"] ?? [];
  return {
    shape,
    size,
    isMixed,
    isPicture: shape.length === 2 || (shape.length === 3 && shape[2] === 3),
    datatype: input.datatype,
    latents: operations.decode.inputs[0].shape[1],
    range: described["x-picture-range"], // of a black and of a white pixel
    names: Array.from({ length: size }, (_, place) => names[place] ?? `x[${place}]`),
    columns: table?.columns ?? null,
    example: isMixed ? cellsOf(described["x-row-by-columns"].inputs, 0) : null,
  };
}

export const columnNames = model => (model.isMixed ? model.columns.map(column => column.name) : model.names);

export const cellAt = (model, row, place) => (model.isMixed ? row[model.columns[place].name] : row[place]);

// The inputs of a request with these rows.
export function inputsOf(model, rows) {
  if (model.isMixed) {
    return model.columns.map(({ name, datatype }) =>
      tensor(
        name,
        datatype,
        [rows.length],
        rows.map(row => row[name] ?? null),
      ),
    );
  }
  const fit =
    model.datatype === "UINT8" ? value => Math.min(255, Math.max(0, Math.round(value))) : value => value;
  return [
    tensor(
      "x",
      model.datatype,
      [rows.length, ...model.shape],
      rows.flatMap(row => Array.from(row, fit)),
    ),
  ];
}

export async function decode(model, latents) {
  const z = tensor("z", "FP32", [latents.length, model.latents], latents.flat());
  const { outputs } = await infer("decode", [z], model.isMixed ? BY_COLUMNS : {});
  return rowsOf(model, outputs, latents.length);
}

export async function sample(model, seed, count) {
  const parameters = { seed, num_samples: count, ...(model.isMixed ? BY_COLUMNS : {}) };
  const { outputs } = await infer("sample", [], parameters);
  return rowsOf(model, outputs, count);
}

export async function reconstruct(model, row) {
  const { outputs } = await infer("reconstruct", inputsOf(model, [row]));
  return rowsOf(model, outputs, 1)[0];
}

// The mean and the scale of q(z given x) of one row.
export async function encode(model, row) {
  const { outputs } = await infer("encode", inputsOf(model, [row]));
  return { loc: outputs.z_loc.data, scale: outputs.z_scale.data };
}

// The scores of one row, each a list: of one value, or of one for each column of x.
export async function score(model, row, seed, draws) {
  const { outputs, parameters } = await infer("score", inputsOf(model, [row]), { seed, num_samples: draws });
  return {
    values: Object.fromEntries(Object.values(outputs).map(each => [each.name, each.data])),
    parameters,
  };
}

function rowsOf(model, outputs, count) {
  const all = Object.values(outputs);
  if (model.isMixed) return Array.from({ length: count }, (_, row) => cellsOf(all, row));
  const { data } = outputs.x_loc;
  const size = data.length / count;
  return Array.from({ length: count }, (_, row) => data.slice(row * size, (row + 1) * size));
}

const cellsOf = (tensors, row) => Object.fromEntries(tensors.map(each => [each.name, each.data[row]]));
