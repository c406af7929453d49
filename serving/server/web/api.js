// The routes of the server, as any client uses them: JSON of the Open Inference Protocol, version 2.

import { byId } from "./dom.js";

const STORED = "vae-api-key";
let key = stored();
let asking = null;

function stored() {
  try {
    return sessionStorage.getItem(STORED) ?? "";
  } catch {
    return ""; // storage is forbidden: the key is kept in memory
  }
}

function keep(value) {
  key = value;
  try {
    sessionStorage.setItem(STORED, value);
  } catch {
    /* as above */
  }
}

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// Ask a route; ask the person for the key when the server does, and try again.
export async function ask(path, body) {
  for (;;) {
    const used = key;
    const response = await send(path, body, used);
    if (response.status === 401) {
      if (used === key) await (asking ??= askForKey(used !== ""));
      continue;
    }
    const content = await response.json().catch(() => ({}));
    if (!response.ok) throw new Refused(response.status, content.error ?? `status ${response.status}`);
    return content;
  }
}

async function send(path, body, used) {
  const headers = used ? { authorization: `Bearer ${used}` } : {};
  const options = body === undefined ? { headers } : { method: "POST", headers, body: JSON.stringify(body) };
  try {
    return await fetch(path, { cache: "no-store", ...options }); // relative: a prefix of a proxy stays
  } catch {
    throw new Refused(0, "the server cannot be reached");
  }
}

function askForKey(wasWrong) {
  const dialog = byId("key-dialog");
  byId("key-error").textContent = wasWrong ? "The server refused this key." : "";
  dialog.addEventListener("cancel", event => event.preventDefault());
  dialog.showModal();
  byId("key").select();
  return new Promise(resolve => {
    byId("key-form").onsubmit = event => {
      event.preventDefault();
      keep(byId("key").value.trim());
      dialog.close();
      asking = null;
      resolve();
    };
  });
}

export const tensor = (name, datatype, shape, data) => ({ name, datatype, shape, data });

// Run an operation; the outputs are by name, each with its shape and flat data.
export async function infer(operation, inputs, parameters = {}) {
  const answer = await ask(`v2/models/${operation}/infer`, { inputs, parameters });
  const outputs = Object.fromEntries(answer.outputs.map(output => [output.name, output]));
  return { outputs, parameters: answer.parameters ?? {}, version: answer.model_version };
}

// Call `action` with the newest arguments, never twice at a time: whoever drags a slider sends a
// request when the answer to the last one is there, and not one for each step.
export function latest(action) {
  let running = false;
  let next = null;
  return async (...given) => {
    next = given;
    if (running) return;
    running = true;
    try {
      while (next) {
        const now = next;
        next = null;
        await action(...now);
      }
    } finally {
      running = false;
    }
  };
}
