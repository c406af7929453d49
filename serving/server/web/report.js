// Errors of one card.

import { h } from "./dom.js";

// Run an action of a card, and say in the card what went wrong, if anything did.
export function reporting(place, action) {
  return async (...given) => {
    try {
      await action(...given);
      place.textContent = "";
    } catch (error) {
      place.textContent = error.message;
    }
  };
}

export const errorPlace = () => h("p", { class: "error", role: "alert" });
