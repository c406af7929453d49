// A picture of the model's shape to draw on, by pointer or by keyboard, or to replace by a file.

import { h } from "./dom.js";
import { paint } from "./rows.js";

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const LARGEST = 1024; // pixels of a side that are averaged; larger files are scaled down first
const LUMA = [0.299, 0.587, 0.114]; // ITU-R 601, as images are read for training

export function startDrawing(model, changed) {
  const [height, width, channels = 1] = model.shape;
  const [black, white] = model.range;
  let row = new Array(model.size).fill(black);
  let cursor = [Math.floor(width / 2), Math.floor(height / 2)];
  let last = null; // where the pointer was

  const canvas = h("canvas", { width, height });
  const spot = h("span", { class: "spot", hidden: true });
  const board = h(
    "div",
    {
      class: "board",
      tabindex: "0",
      role: "application",
      "aria-label": "Picture: draw with the pointer, or move with the arrows and paint with the space bar",
    },
    canvas,
    spot,
  );
  board.style.aspectRatio = `${width} / ${height}`;
  const colour = h("input", { type: "color", value: "#ffffff" });
  const thickness = h("input", {
    type: "range",
    min: 0.5,
    max: Math.max(2, width / 8),
    step: 0.25,
    value: Math.max(0.8, width / 22),
    "aria-label": "Thickness",
  });
  const erases = h("input", { type: "checkbox" });

  const show = () => paint(model, row, canvas);
  const repaint = () => {
    show();
    changed();
  };

  // Mix the brush into every pixel that it covers, softly at its edge.
  function dab(x, y) {
    const radius = Number(thickness.value);
    const ink = inkOf(erases.checked ? "#000000" : colour.value, channels);
    for (let v = 0; v < height; v++) {
      for (let u = 0; u < width; u++) {
        const share = Math.min(1, Math.max(0, radius + 0.5 - Math.hypot(u + 0.5 - x, v + 0.5 - y)));
        if (!share) continue;
        for (let c = 0; c < channels; c++) {
          const place = (v * width + u) * channels + c;
          const target = black + (white - black) * ink[c];
          const mixed = row[place] + share * (target - row[place]);
          // a stroke's own soft edge must not lighten what it has covered
          row[place] =
            channels === 1 && !erases.checked
              ? nearer(target, row[place], black + share * (target - black))
              : mixed;
        }
      }
    }
  }

  function stroke(x, y) {
    const [fromX, fromY] = last ?? [x, y];
    const steps = Math.max(1, Math.ceil(2 * Math.hypot(x - fromX, y - fromY)));
    for (let step = 1; step <= steps; step++)
      dab(fromX + ((x - fromX) * step) / steps, fromY + ((y - fromY) * step) / steps);
    last = [x, y];
    repaint();
  }

  const at = event => {
    const box = canvas.getBoundingClientRect();
    return [
      ((event.clientX - box.left) / box.width) * width,
      ((event.clientY - box.top) / box.height) * height,
    ];
  };
  board.addEventListener("pointerdown", event => {
    if (event.button) return;
    board.setPointerCapture(event.pointerId);
    last = null;
    stroke(...at(event));
  });
  board.addEventListener("pointermove", event => {
    if (last && event.buttons) stroke(...at(event));
  });
  for (const name of ["pointerup", "pointercancel"])
    board.addEventListener(name, () => {
      last = null;
    });

  board.addEventListener("keydown", event => {
    if (event.key === " " || event.key === "Enter") {
      dab(cursor[0] + 0.5, cursor[1] + 0.5);
      repaint();
    } else if (event.key in MOVES) {
      const [dx, dy] = MOVES[event.key];
      cursor = [clamp(cursor[0] + dx, width), clamp(cursor[1] + dy, height)];
      if (event.shiftKey) {
        dab(cursor[0] + 0.5, cursor[1] + 0.5);
        repaint();
      }
    } else return;
    event.preventDefault();
    showCursor();
  });
  board.addEventListener("blur", () => {
    spot.hidden = true;
  });

  function showCursor() {
    spot.hidden = false;
    spot.style.left = `${(100 * (cursor[0] + 0.5)) / width}%`;
    spot.style.top = `${(100 * (cursor[1] + 0.5)) / height}%`;
  }

  async function take(file) {
    if (!file) return;
    const shares = await readShares(file, width, height, channels).catch(() => null);
    note.textContent = shares ? "" : `${file.name} is no image that this browser reads.`;
    if (!shares) return;
    row = shares.map(share => black + (white - black) * share);
    repaint();
  }

  const note = h("p", { class: "error", role: "alert" });
  const file = h("input", { type: "file", accept: "image/*", onchange: () => take(file.files[0]) });
  const controls = h(
    "div",
    { class: "controls" },
    h(
      "button",
      {
        type: "button",
        onclick: () => {
          row = row.fill(black);
          repaint();
        },
      },
      "Clear",
    ),
    h(
      "button",
      {
        type: "button",
        onclick: () => {
          row = row.map(value => black + white - value);
          repaint();
        },
      },
      "Invert",
    ),
  );
  const element = h(
    "div",
    {
      class: "drawing",
      ondragover: event => event.preventDefault(),
      ondrop: event => {
        event.preventDefault();
        take(event.dataTransfer.files[0]);
      },
    },
    controls,
    board,
    h(
      "div",
      { class: "controls" },
      channels === 3 ? h("label", {}, "Colour ", colour) : null,
      h("label", {}, "Brush ", thickness),
      h("label", {}, erases, " Erase"),
    ),
    h("label", { class: "file" }, "An image file, or drop one here: ", file),
    note,
    h(
      "p",
      { class: "mild small" },
      `Resized to ${width} × ${height} in this browser. By keyboard, arrows move the brush, `,
      "and the space bar or Shift paints.",
    ),
  );
  show();
  return {
    element,
    controls,
    current: () => row,
    use(next) {
      row = [...next];
      show();
    },
  };
}

const clamp = (value, size) => Math.min(size - 1, Math.max(0, value));

const nearer = (target, a, b) => (Math.abs(target - a) < Math.abs(target - b) ? a : b);

function inkOf(hex, channels) {
  const rgb = [1, 3, 5].map(place => parseInt(hex.slice(place, place + 2), 16) / 255);
  return channels === 3 ? rgb : [rgb[0]];
}

// The shares of black and white of a file's pixels, scaled to fit: each is the mean of its area.
async function readShares(file, width, height, channels) {
  const bitmap = await createImageBitmap(file);
  const fit = Math.min(1, LARGEST / Math.max(bitmap.width, bitmap.height));
  const [w, v] = [bitmap.width, bitmap.height].map(size => Math.max(1, Math.round(size * fit)));
  const context = new OffscreenCanvas(w, v).getContext("2d");
  context.fillRect(0, 0, w, v); // what is transparent is black
  context.drawImage(bitmap, 0, 0, w, v);
  const { data } = context.getImageData(0, 0, w, v);
  const scale = Math.min(width / w, height / v);
  const across = coverage(w, width, scale);
  const down = coverage(v, height, scale);
  const shares = new Array(width * height * channels).fill(0);
  for (const [row, y, tall] of down) {
    for (const [column, x, wide] of across) {
      const source = 4 * (row * w + column);
      for (let c = 0; c < channels; c++) {
        shares[(y * width + x) * channels + c] += tall * wide * shareOf(data, source, c, channels);
      }
    }
  }
  return shares;
}

// Which pixel of one axis covers how much of which pixel of a smaller or larger one, in the middle.
function coverage(from, to, scale) {
  const start = (to - from * scale) / 2;
  const parts = [];
  for (let pixel = 0; pixel < from; pixel++) {
    const [low, high] = [start + pixel * scale, start + (pixel + 1) * scale];
    for (let target = Math.max(0, Math.floor(low)); target < Math.min(to, high); target++) {
      const part = Math.min(high, target + 1) - Math.max(low, target);
      if (part > 1e-9) parts.push([pixel, target, part]);
    }
  }
  return parts;
}

function shareOf(pixels, source, channel, channels) {
  if (channels === 3) return pixels[source + channel] / 255;
  return LUMA.reduce((sum, weight, c) => sum + (weight * pixels[source + c]) / 255, 0);
}
