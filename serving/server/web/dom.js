// Elements, and the words for numbers, sizes and times. Text always becomes a text node, so that
// names of models and columns are never read as HTML.

export const byId = id => document.getElementById(id);

export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && typeof value === "boolean") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter(child => child !== null && child !== undefined));
  return element;
}

// Replace what an element holds only if it shows something else, so that focus and selection stay.
export function show(element, ...children) {
  const next = children.flat(Infinity).filter(child => child !== null && child !== undefined);
  const wrapper = document.createElement("div");
  wrapper.append(...next);
  if (wrapper.innerHTML === element.innerHTML) return;
  const focused = element.contains(document.activeElement) ? document.activeElement : null;
  element.replaceChildren(...wrapper.childNodes);
  if (focused?.name) element.querySelector(`[name="${focused.name}"][value="${focused.value}"]`)?.focus();
}

export function list(pairs) {
  const rows = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return h(
    "dl",
    {},
    rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
  );
}

export function number(value, digits = 4) {
  if (typeof value !== "number") return value === null || value === undefined ? "" : String(value);
  const rounded = Number(value.toPrecision(digits));
  const size = Math.abs(rounded);
  if (size >= 1e7 || (size && size < 1e-4)) return minus(rounded.toExponential());
  return minus(rounded.toLocaleString("en", { maximumFractionDigits: 8 }));
}

export const count = value => Math.round(value).toLocaleString("en");

// A number with two decimals, so that those in a column stand below each other.
export const fixed = value => minus(value.toFixed(2));

const minus = text => text.replace("-", "−");

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 9.95e-4) return `${number(value * 1e6, 2)} µs`;
  return value < 0.9995 ? `${number(value * 1e3, 3)} ms` : `${number(value, 3)} s`;
}

export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = value ? Math.min(units.length - 1, Math.floor(Math.log2(value) / 10)) : 0;
  return `${number(value / 1024 ** power, 3)} ${units[power]}`;
}

export function span(value) {
  const units = [
    ["d", 86400],
    ["h", 3600],
    ["min", 60],
    ["s", 1],
  ];
  const first = units.findIndex(([, size]) => value >= size);
  if (first < 0) return "0 s";
  const [unit, size] = units[first];
  const whole = Math.floor(value / size);
  const rest = units[first + 1];
  const more = rest ? Math.floor((value - whole * size) / rest[1]) : 0;
  return more && whole < 10 ? `${whole} ${unit} ${more} ${rest[0]}` : `${whole} ${unit}`;
}

export function moment(unixTime) {
  const date = new Date(unixTime * 1000);
  return h(
    "time",
    { datetime: date.toISOString() },
    date.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" }),
  );
}

// 1 / level and e-values are far apart: they are written by their natural logarithm.
export function eValue(log) {
  const power = log / Math.LN10;
  if (Math.abs(power) < 4) return number(10 ** power, 3);
  const raised = [...String(Math.floor(power))].map(digit => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit] ?? "⁻").join("");
  return `${number(10 ** (power - Math.floor(power)), 2)} × 10${raised}`;
}

// One tab stop for a group of controls: arrows move between them, as in a toolbar.
export function rove(container, selector, keys = { ArrowDown: 1, ArrowUp: -1 }) {
  const controls = () => [...container.querySelectorAll(selector)];
  const choose = chosen =>
    controls().forEach(each => {
      each.tabIndex = each === chosen ? 0 : -1;
    });
  container.addEventListener("focusin", event => {
    if (event.target.matches(selector)) choose(event.target);
  });
  container.addEventListener("keydown", event => {
    if (!(event.key in keys) || !event.target.matches(selector)) return;
    const all = controls();
    const next = all[all.indexOf(event.target) + keys[event.key]];
    event.preventDefault();
    next?.focus();
  });
  return () => choose(controls().find(each => each.tabIndex === 0) ?? controls()[0]);
}
