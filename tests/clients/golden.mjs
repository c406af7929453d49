// Run graphs in onnxruntime-web: node golden.mjs RUNS.json, a list of {graph, inputs, outputs}, where
// inputs are {name, type, dims, file} and outputs name the file for each.
import {readFileSync, writeFileSync} from 'node:fs';
import * as ort from 'onnxruntime-web';

const arrays = {uint8: Uint8Array, float32: Float32Array};
for (const {graph, inputs, outputs} of JSON.parse(readFileSync(process.argv[2]))) {
  const session = await ort.InferenceSession.create(readFileSync(graph));
  const tensors = inputs.map(({name, type, dims, file}) =>
    [name, new ort.Tensor(type, new arrays[type](new Uint8Array(readFileSync(file)).buffer), dims)]);
  const found = await session.run(Object.fromEntries(tensors));
  for (const [name, file] of Object.entries(outputs)) {
    const {buffer, byteOffset, byteLength} = found[name].data;
    writeFileSync(file, new Uint8Array(buffer, byteOffset, byteLength));
  }
}
