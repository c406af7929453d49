// A form for a row of a table. An empty field is a gap, where the model knows gaps.

import { h } from "./dom.js";

const SHOWN = 64;

export function startForm(model, changed) {
  const fields = (model.isMixed ? model.columns.map(columnField) : model.names.slice(0, SHOWN).map(numberField));
  let rest = null; // the values of columns that are not shown
  const controls = h("div", { class: "controls" });
  const element = h("form", { class: "row-form", onsubmit: event => event.preventDefault(), oninput: changed },
    controls, h("div", { class: "fields" }, fields.map(field => h("label", {}, h("span", {}, field.name), field.input))),
    model.isMixed ? h("p", { class: "mild small" }, "An empty field is a gap, which takes no part in the score.") : null,
    model.names.length > SHOWN && !model.isMixed ? h("p", { class: "mild small" }, `${model.names.length - SHOWN} more columns keep the values of the sample.`) : null);

  function use(row) {
    rest = row;
    fields.forEach((field, place) => field.put(model.isMixed ? row[field.name] : row[place]));
  }

  function current() {
    for (const { name, input } of fields) {
      if (!input.validity.valid) throw new Error(`${name}: ${input.validationMessage}`);
    }
    if (model.isMixed) return Object.fromEntries(fields.map(field => [field.name, field.read()]));
    return rest === null ? fields.map(field => field.read()) : rest.map((value, place) => fields[place]?.read() ?? value);
  }

  if (model.example) use(model.example);
  return { element, controls, use, current };
}

function numberField(name) {
  const input = h("input", { type: "number", step: "any", required: true, inputmode: "decimal" });
  return { name, input, put: value => { input.value = trim(value); }, read: () => Number(input.value) };
}

const trim = value => (typeof value === "number" ? String(Number(value.toPrecision(7))) : "");

function columnField(column) {
  const { name, datatype, kind, type, words } = column;
  if (datatype === "BOOL") return choice(name, [["false", false], ["true", true]]);
  if (words) return choice(name, [...words.map(word => [word, valueOf(column, word)]), ["other", otherThan(column)]]);
  if (kind === "date") return dateField(name, type);
  const input = h("input", { type: "number", step: datatype.startsWith("FP") ? "any" : 1, inputmode: "decimal" });
  return { name, input, put: value => { input.value = trim(value); }, read: () => (input.value === "" ? null : Number(input.value)) };
}

const valueOf = (column, word) => (column.datatype === "BYTES" ? word : Number(word));

// A value that is none of a column's words, and counts as other.
function otherThan(column) {
  const known = new Set(column.words.map(word => valueOf(column, word)));
  let value = column.datatype === "BYTES" ? "other" : 0;
  while (known.has(value)) value = column.datatype === "BYTES" ? `${value}…` : value + 1;
  return value;
}

function choice(name, values) {
  const input = h("select", {}, h("option", { value: "" }, "(gap)"), values.map(([text], place) => h("option", { value: place }, text)));
  const put = value => {
    if (value === null || value === undefined) input.value = "";
    else {
      const place = values.findIndex(([, each]) => each === value);
      input.value = String(place < 0 ? values.length - 1 : place);
    }
  };
  return { name, input, put, read: () => (input.value === "" ? null : values[Number(input.value)][1]) };
}

function dateField(name, type) {
  const isTime = type === "time";
  const input = h("input", { type: isTime ? "datetime-local" : "date", step: isTime ? 1 : null });
  const put = value => { input.value = value ? String(value).slice(0, isTime ? 19 : 10) : ""; };
  return { name, input, put, read: () => input.value || null };
}
