// Sample, reconstruct and score over the Open Inference Protocol, with binary tensors:
// node rest.mjs URL SEED ROWS.bin DATATYPE SHAPE OUT, where SHAPE is that of the rows, "9,28,28".
import {readFileSync, writeFileSync} from 'node:fs';

const [url, seed, file, datatype, shape, out] = process.argv.slice(2);
const length = 'Inference-Header-Content-Length';

async function infer(model, inputs, parameters, rows) {
  const content = {inputs, parameters: {...parameters, binary_data_output: true}};
  const json = Buffer.from(JSON.stringify(content)), body = Buffer.concat([json, rows]);
  const options = {method: 'POST', headers: {[length]: `${json.length}`}, body};
  const answer = await fetch(`${url}/v2/models/${model}/infer`, options);
  if (!answer.ok) throw new Error(`${answer.status}: ${await answer.text()}`);
  const tensors = Buffer.from(await answer.arrayBuffer()).subarray(answer.headers.get(length));
  writeFileSync(`${out}/${model}.bin`, tensors); // the outputs, one after another
}

const rows = readFileSync(file), parameters = {binary_data_size: rows.length};
const x = [{name: 'x', datatype, shape: shape.split(',').map(Number), parameters}];
await infer('sample', [], {seed: Number(seed), num_samples: 5}, Buffer.alloc(0));
await infer('reconstruct', x, {}, rows);
await infer('score', x, {seed: Number(seed), num_samples: 2}, rows);
