// Start the page: two views by the hash, and a question to /status every two seconds.

import { ask } from "./api.js";
import { byId } from "./dom.js";
import { showObserved } from "./drift.js";
import { startPlayground } from "./playground.js";
import { History } from "./rates.js";
import { showFault, showLive, showServed } from "./watch.js";

const POLL_MS = 2000;
const history = new History();
let timer = null;
let busy = false;
let playsDigest = null; // of the version that the playground was built for

async function poll() {
  clearTimeout(timer);
  if (document.hidden || busy) return;
  busy = true;
  try {
    history.add(await ask("status"));
    showWatch();
    await showPlay();
  } catch (error) {
    showFault(error);
  } finally {
    busy = false;
    timer = setTimeout(poll, POLL_MS);
  }
}

function showWatch() {
  const status = history.snapshots.at(-1);
  if (!status) return;
  showServed(status);
  showLive(history);
  showObserved(status);
}

async function showPlay() {
  const digest = history.snapshots.at(-1)?.model?.digest ?? null;
  if (byId("play").hidden || digest === null || digest === playsDigest) return;
  playsDigest = digest;
  await startPlayground();
}

function chooseView() {
  const name = location.hash === "#play" ? "play" : "watch";
  for (const view of ["watch", "play"]) byId(view).hidden = view !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  showPlay().catch(showFault);
}

addEventListener("hashchange", () => {
  chooseView();
  scrollTo(0, 0);
});
document.addEventListener("visibilitychange", poll);
document.addEventListener("watch-again", showWatch);
chooseView();
poll();
