// Sample, reconstruct and score with a bundle and onnxruntime-web alone:
// node bundle.mjs BUNDLE SEED ROWS.bin OUT, where ROWS.bin holds the bytes of rows of the model.
import {createHash} from 'node:crypto';
import {readFileSync, writeFileSync} from 'node:fs';
import * as ort from 'onnxruntime-web';

const [bundle, seed, file, out] = process.argv.slice(2);
const {x_shape, x_dtype} = JSON.parse(readFileSync(`${bundle}/manifest.json`));
const bytes = new Uint8Array(readFileSync(file));
const x_data = x_dtype === 'uint8' ? bytes : new Float32Array(bytes.buffer);
const size = x_shape.reduce((a, b) => a * b, 1), rows = x_data.length / size;
const x = new ort.Tensor(x_dtype, x_data, [rows, ...x_shape]);
const whole = (...values) => new ort.Tensor('int64', BigInt64Array.from(values, BigInt), [values.length]);
const run = async (graph, inputs) =>
  (await ort.InferenceSession.create(readFileSync(`${bundle}/${graph}`))).run(inputs);
const save = (name, {data: {buffer, byteOffset, byteLength}}) =>
  writeFileSync(`${out}/${name}.bin`, new Uint8Array(buffer, byteOffset, byteLength));

const {eps} = await run('noise.onnx', {seed: whole(seed), start: whole(0), rows: whole(1000)});
const samples = await run('decoder.onnx', {z: eps});
const {x_loc} = await run('reconstruct.onnx', {x});

const plain = new Uint8Array(x_data.map(value => value + 0).buffer); // a zero has no sign
const row = plain.length / rows, hashes = Array.from({length: rows}, (_, i) =>
  createHash('sha256').update(plain.subarray(i * row, (i + 1) * row)).digest().readBigInt64LE());
const draws = {seed: whole(seed), hash: whole(...hashes), num_samples: whole(2)};
const {eps: row_eps} = await run('score_noise.onnx', draws);
const {elbo} = await run('score.onnx', {x, eps: row_eps});
Object.entries({eps, samples: samples.x_loc, x_loc, row_eps, elbo}).forEach(pair => save(...pair));
