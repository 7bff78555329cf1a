// The attributes of an instance as a table, sequences indented.

import { base } from "./api.js";
import { $, $$, element, settled } from "./page.js";

const LONGEST = 400; // characters of a value that are shown
let names = null;
let shown = null;

/** Fill the table with the data set (DICOM JSON). */
export async function showTags(dataset) {
  names ??= await (await fetch(`${base}/site/dictionary.json`)).json();
  if (shown !== dataset) {
    shown = dataset;
    $("#tags").replaceChildren(...rows(dataset, 0));
  }
  filter();
}

function* rows(dataset, depth) {
  for (const key of Object.keys(dataset).sort()) {
    const { vr, Value, InlineBinary, BulkDataURI } = dataset[key];
    const tag = `(${key.slice(0, 4)},${key.slice(4)})`;
    const odd = parseInt(key[3], 16) % 2;
    const name = names[key] ?? (key.endsWith("0000") ? "Group Length" : odd ? "Private" : "");
    let text = "";
    if (vr === "SQ") text = `${(Value ?? []).length} item${(Value ?? []).length === 1 ? "" : "s"}`;
    else if (Value) text = Value.map(plain).join(" \\ ");
    else if (InlineBinary) text = `${Math.floor((InlineBinary.length * 3) / 4)} bytes`;
    let cell = text.length > LONGEST ? `${text.slice(0, LONGEST)} … (${text.length} characters)` : text;
    if (BulkDataURI) cell = element("a", { href: BulkDataURI, download: `${key}.bin` }, "Bulk data");
    yield element("tr", { class: `nested-${Math.min(depth, 3)}` }, element("td", {}, tag), element("td", {}, vr), element("td", {}, name), element("td", {}, cell === "" ? "" : element("bdi", {}, cell)));
    if (vr !== "SQ") continue;
    for (const [at, item] of (Value ?? []).entries()) {
      yield element("tr", { class: `item nested-${Math.min(depth + 1, 3)}` }, element("td", { colspan: 4 }, `Item ${at + 1}`));
      yield* rows(item, depth + 1);
    }
  }
}

function plain(value) {
  if (value === null) return "";
  if (typeof value === "object") return [value.Alphabetic, value.Ideographic, value.Phonetic].filter(Boolean).join(" = ");
  return String(value);
}

function filter() {
  const wanted = $("#tag-filter").value.trim().toLowerCase();
  for (const row of $$("#tags tr")) row.hidden = Boolean(wanted) && !row.textContent.toLowerCase().includes(wanted);
}
$("#tag-filter").addEventListener("input", settled(filter, 80));
