// A form for a row of a table. An empty field is a gap, where the model knows gaps.

import { h } from "./dom.js";

const SHOWN = 64;

export function startForm(model, changed) {
  const fields = model.isMixed
    ? model.columns.map(columnField)
    : model.names.slice(0, SHOWN).map(numberField);
  let rest = null; // the values of columns that are not shown
  const controls = h("div", { class: "controls" });
  const element = h(
    "form",
    { class: "row-form", onsubmit: event => event.preventDefault(), oninput: changed },
    controls,
    h(
      "div",
      { class: "fields" },
      fields.map(each => h("label", {}, h("span", {}, each.name), each.input)),
    ),
    model.isMixed
      ? h("p", { class: "mild small" }, "An empty field is a gap, which takes no part in the score.")
      : null,
    model.names.length > SHOWN && !model.isMixed
      ? h(
          "p",
          { class: "mild small" },
          `${model.names.length - SHOWN} more columns keep the values of the sample.`,
        )
      : null,
  );

  function use(row) {
    rest = row;
    fields.forEach((each, place) => each.put(model.isMixed ? row[each.name] : row[place]));
  }

  function current() {
    for (const { name, input } of fields) {
      if (!input.validity.valid) throw new Error(`${name}: ${input.validationMessage}`);
    }
    if (model.isMixed) return Object.fromEntries(fields.map(each => [each.name, each.read()]));
    return rest === null
      ? fields.map(each => each.read())
      : rest.map((value, place) => fields[place]?.read() ?? value);
  }

  if (model.example) use(model.example);
  return { element, controls, use, current };
}

const numberField = name => field(name, { step: "any", required: true });

// A field shows a number shortened, and gives it back as it was unless it is edited: the noise of a
// row is drawn by all its bits.
function field(name, attributes) {
  const input = h("input", { type: "number", inputmode: "decimal", ...attributes });
  let whole = { text: "", value: null };
  const put = value => {
    const text = typeof value === "number" ? String(Number(value.toPrecision(7))) : "";
    whole = { text, value: value ?? null };
    input.value = text;
  };
  const read = () => {
    if (input.value === whole.text) return whole.value;
    return input.value === "" ? null : Number(input.value);
  };
  return { name, input, put, read };
}

function columnField(column) {
  const { name, datatype, kind, type, words } = column;
  if (datatype === "BOOL")
    return choice(name, [
      ["false", false],
      ["true", true],
    ]);
  if (words)
    return choice(name, [...words.map(word => [word, valueOf(column, word)]), ["other", otherThan(column)]]);
  if (kind === "date") return dateField(name, type);
  return field(name, { step: datatype.startsWith("FP") ? "any" : 1 });
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
  const input = h(
    "select",
    {},
    h("option", { value: "" }, "(gap)"),
    values.map(([text], place) => h("option", { value: place }, text)),
  );
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
  const put = value => {
    input.value = value ? String(value).slice(0, isTime ? 19 : 10) : "";
  };
  return { name, input, put, read: () => input.value || null };
}
