// Print the SHA-256 of the noise of some rows: node noise.mjs BUNDLE SEED ROWS.
import {createHash} from 'node:crypto';
import {readFileSync} from 'node:fs';
import * as ort from 'onnxruntime-web';

const [bundle, seed, rows] = process.argv.slice(2);
const whole = value => new ort.Tensor('int64', BigInt64Array.of(BigInt(value)), [1]);
const session = await ort.InferenceSession.create(readFileSync(`${bundle}/noise.onnx`));
const {eps} = await session.run({seed: whole(seed), start: whole(0), rows: whole(rows)});
const {buffer, byteOffset, byteLength} = eps.data;
console.log(createHash('sha256').update(new Uint8Array(buffer, byteOffset, byteLength)).digest('hex'));
