// Sends JSON in chunks, as fetch does for a stream, and prints the answer.

import { readFileSync } from "node:fs";

const [url, file] = process.argv.slice(2);
const bytes = readFileSync(file);

for (let time = 0; time < 3; time++) {
  const body = new ReadableStream({
    start(controller) {
      for (let start = 0; start < bytes.length; start += 1000)
        controller.enqueue(bytes.subarray(start, start + 1000));
      controller.close();
    },
  });
  const headers = { "Content-Type": "application/json" };
  const answer = await fetch(url, { method: "POST", headers, body, duplex: "half" });
  console.log(answer.status, await answer.text());
}
