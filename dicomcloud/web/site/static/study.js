// One study: its series, their instances, the picture with window and frames, the tags, and what can be done with it.

import {
  base, count, date, figure, instanceUrl, metadata, number, personName, request, search, searchAll,
  seriesUrl, sexes, studyUrl, time, value, values,
} from "./api.js";
import { downloads } from "./download.js";
import { $, $$, alert, confirmed, element, icon, menuButton, menuItem, settled, shortcuts, thumbnail, toast, WITHOUT_PICTURES } from "./page.js";
import { Picture } from "./picture.js";
import { showTags } from "./tags.js";

const study = $("#study").dataset.study;
let patient = { name: "", id: "" };
let series = []; // of the study: {uid, number, modality, description, instances}
let current = null; // the series that is shown
let at = 0; // the index of its instance that is shown
let attributes = {}; // of that instance
const picture = new Picture((by) => move(by));

async function open() {
  const [found, all] = await Promise.all([
    search("/studies", { StudyInstanceUID: study, includefield: "StudyDescription,InstitutionName,PatientAge" }),
    searchAll(`/studies/${study}/series`, { includefield: "SeriesDescription,SeriesDate,BodyPartExamined" }),
  ]);
  if (!found.rows.length) throw new Error("It is not in this archive: it may have been deleted, or the link is wrong.");
  describe(found.rows[0]);
  series = all.map((each) => ({
    uid: value(each, "0020000E"),
    number: number(each, "00200011"),
    modality: value(each, "00080060"),
    description: value(each, "0008103E"),
    images: number(each, "00201209") ?? 0,
  }));
  $("#series-title").textContent = `${count(series.length, "series", "series")}`;
  $("#series-list").replaceChildren(...series.map(card));
  $("#workspace").hidden = false;
  const wanted = new URLSearchParams(location.search);
  const first = series.find((each) => each.uid === wanted.get("series")) ?? series.find((each) => !WITHOUT_PICTURES[each.modality]) ?? series[0];
  await choose(first, wanted.get("instance"));
}

function describe(row) {
  const name = personName(row);
  patient = { name: name.main || "No name", id: value(row, "00100020") };
  document.title = `${patient.name} · DICOMcloud`;
  $("#patient").replaceChildren(element("bdi", {}, patient.name), name.other ? element("span", { class: "other" }, element("bdi", {}, name.other)) : "");
  $("#crumb").replaceChildren(element("bdi", {}, patient.name));
  const born = value(row, "00100030");
  $("#patient-details").textContent = [
    patient.id && `ID ${patient.id}`,
    born && `born ${date(born)}${age(born, value(row, "00080020"))}`,
    sexes[value(row, "00100040")],
  ].filter(Boolean).join(" · ");
  const facts = [
    ["Study date", `${date(value(row, "00080020"))} ${time(value(row, "00080030"))}`.trim()],
    ["Description", value(row, "00081030")],
    ["Modality", values(row, "00080061").join(", ")],
    ["Accession no.", value(row, "00080050")],
    ["Study ID", value(row, "00200010")],
    ["Referring physician", personName(row, "00080090").main],
    ["Images", figure(number(row, "00201208") ?? 0)],
  ];
  $("#facts").replaceChildren(
    ...facts.filter(([, text]) => text).map(([term, text]) => element("div", {}, element("dt", {}, term), element("dd", { dir: "auto" }, text))),
  );
}

function age(born, then) {
  if (!/^\d{8}$/.test(born) || !/^\d{8}$/.test(then)) return "";
  const years = Math.floor((Number(then) - Number(born)) / 10000);
  return years >= 0 && years < 130 ? `, ${years} at the time` : "";
}

function card(each) {
  const title = each.description || each.modality || "Series";
  const details = [each.number !== null && `No. ${each.number}`, each.modality, count(each.images, "image")].filter(Boolean).join(" · ");
  return element(
    "li",
    {},
    element(
      "button",
      { type: "button", class: "series-card", "data-series": each.uid, onclick: () => choose(each) },
      thumbnail(!WITHOUT_PICTURES[each.modality] && `${seriesUrl(study, each.uid)}/thumbnail?viewport=128,128`, WITHOUT_PICTURES[each.modality]),
      element("span", {}, element("b", {}, element("bdi", {}, title)), element("small", {}, details)),
    ),
  );
}

// Series and instance

async function choose(each, instance = null) {
  if (!each) return;
  current = each;
  for (const button of $$(".series-card")) button.setAttribute("aria-current", String(button.dataset.series === each.uid));
  $(`[data-series="${CSS.escape(each.uid)}"]`)?.scrollIntoView({ block: "nearest", inline: "nearest" });
  if (!each.instances) {
    const rows = await searchAll(`/studies/${study}/series/${each.uid}/instances`, { includefield: "NumberOfFrames" });
    each.instances = rows.map((row) => ({
      uid: value(row, "00080018"), number: number(row, "00200013"), sopClass: value(row, "00080016"),
      frames: number(row, "00280008") ?? 1, rows: number(row, "00280010"),
    }));
    if (current !== each) return;
  }
  const slider = $("#instance");
  slider.max = each.instances.length;
  $("#instance-slider").hidden = each.instances.length < 2;
  $("#filmstrip").replaceChildren(...each.instances.map((one, index) =>
    element("li", {}, element(
      "button",
      { type: "button", "aria-label": `Image ${one.number ?? index + 1}`, onclick: () => show(index) },
      thumbnail(one.rows ? `${instanceUrl(study, each.uid, one.uid)}/thumbnail?viewport=128,128` : "", WITHOUT_PICTURES[each.modality]),
      element("span", { class: "label", "aria-hidden": "true" }, String(one.number ?? index + 1)),
    ))));
  picture.newSeries();
  const found = each.instances.findIndex((one) => one.uid === instance);
  await show(found < 0 ? 0 : found);
}

let loading = null;

async function show(index) {
  if (!current?.instances.length) return;
  at = Math.min(Math.max(index, 0), current.instances.length - 1);
  const one = current.instances[at];
  $("#instance").value = at + 1;
  $("#instance-place").textContent = `${at + 1} of ${current.instances.length}`;
  $$("#filmstrip button").forEach((button, place) => {
    button.setAttribute("aria-current", String(place === at));
    if (place === at) button.parentElement.parentElement.scrollTo({ left: button.offsetLeft - 200 });
  });
  const query = new URLSearchParams({ series: current.uid, instance: one.uid });
  history.replaceState(null, "", `?${query}`);
  loading?.abort();
  const mine = (loading = new AbortController());
  try {
    one.attributes ??= await metadata(study, current.uid, one.uid, { signal: mine.signal });
  } catch (error) {
    if (error.name === "AbortError") return;
    return alert(error.message);
  }
  if (mine !== loading) return;
  attributes = one.attributes;
  corners();
  picture.show(instanceUrl(study, current.uid, one.uid), attributes, `${patient.name}, ${current.description || current.modality}, image ${at + 1} of ${current.instances.length}`);
  if (!$("#panel-tags").hidden) showTags(attributes);
  if (at + 1 < current.instances.length) picture.prefetch(instanceUrl(study, current.uid, current.instances[at + 1].uid));
}

function corners() {
  $("#corner-patient").textContent = [patient.name, patient.id].filter(Boolean).join("\n");
  $("#corner-series").textContent = [current.description, date(value(attributes, "00080022") || value(attributes, "00080020"))].filter(Boolean).join("\n");
  const place = number(attributes, "00201041");
  $("#corner-place").textContent = [
    current.instances.length > 1 && `Image ${at + 1} / ${current.instances.length}`,
    place !== null && `Slice ${place.toLocaleString(undefined, { maximumFractionDigits: 1 })} mm`,
  ].filter(Boolean).join("\n");
}

/** The next or previous frame of a film, else image of the series. */
function move(by) {
  if (picture.frames > 1) picture.step(by);
  else show(at + by);
}

const turn = (by) => choose(series[series.indexOf(current) + by]);

// Tabs

function tab(name) {
  for (const each of ["image", "tags"]) {
    const chosen = each === name, button = $(`#tab-${each}`);
    button.setAttribute("aria-selected", String(chosen));
    button.tabIndex = chosen ? 0 : -1;
    $(`#panel-${each}`).hidden = !chosen;
  }
  if (name === "tags") showTags(attributes);
}
for (const name of ["image", "tags"]) {
  $(`#tab-${name}`).addEventListener("click", () => tab(name));
  $(`#tab-${name}`).addEventListener("keydown", (event) => {
    if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    const other = name === "image" ? "tags" : "image";
    tab(other);
    $(`#tab-${other}`).focus();
    event.preventDefault();
    event.stopPropagation();
  });
}

// Download, share, delete

menuButton($("#download"), $("#download-menu"));
$("#download").addEventListener("click", () => {
  if (!current?.instances) return;
  const one = current.instances[at];
  $("#download-menu").replaceChildren(...downloads({ study, series: current, instance: one, all: series, attributes, picture }));
}, { capture: true });

if ($("#delete")) {
  menuButton($("#delete"), $("#delete-menu"));
  $("#delete").addEventListener("click", () => $("#delete-menu").replaceChildren(...deletions()), { capture: true });
}

function deletions() {
  const images = series.reduce((sum, each) => sum + each.images, 0);
  const items = [menuItem("trash", "This study …", () => remove(studyUrl(study), "study", `The whole study of ${patient.name} with ${count(images, "image")}`))];
  if (current && series.length > 1) items.push(menuItem("trash", "This series …", () => remove(seriesUrl(study, current.uid), "series", `The series ${current.description || current.number || ""} with ${count(current.images, "image")}`)));
  if (current?.instances?.length > 1) items.push(menuItem("trash", "This image …", () => remove(instanceUrl(study, current.uid, current.instances[at].uid), "image", `Image ${at + 1} of the series ${current.description || ""}`)));
  return items;
}

async function remove(url, what, whole) {
  if (!(await confirmed(`Delete this ${what}?`, `${whole} is removed from the archive. There is no way back but a backup.`, `Delete ${what}`))) return;
  try {
    await request(url, { method: "DELETE" });
  } catch (error) {
    return alert(error.message);
  }
  if (what === "study") location.assign(`${base}/`);
  else {
    toast(`The ${what} has been deleted.`);
    history.replaceState(null, "", location.pathname);
    await open().catch(() => location.assign(`${base}/`));
  }
}

$("#share")?.addEventListener("click", () => {
  const address = new URL(`${base}/study/${study}`, location.href).href;
  $("#share-link").value = address;
  replaced = null;
  const choices = $("#share-dialog .choices");
  if (choices) {
    $("[value='']", choices).checked = true;
    Object.assign($("#share-deidentified"), { checked: false, disabled: true });
  }
  $("#share-dialog").showModal();
});
let replaced = null; // the link that was made for other choices, and that nobody has got
$("#share-dialog .choices")?.addEventListener("change", async () => {
  const forAnybody = $("#share-dialog [value=anybody]").checked;
  $("#share-link").value = "";
  $("#share-deidentified").disabled = !forAnybody;
  const deidentified = $("#share-deidentified").checked;
  try {
    const body = JSON.stringify({ study, hours: Number($("#share-hours").value), deidentified });
    const asked = { method: "POST", headers: { "Content-Type": "application/json" }, body };
    if (replaced) await request(`${base}/shares/${replaced}`, { method: "DELETE" });
    const made = forAnybody ? await (await request(`${base}/shares`, asked)).json() : null;
    replaced = made?.id ?? null;
    $("#share-link").value = made?.url ?? new URL(`${base}/study/${study}`, location.href).href;
  } catch (error) {
    $("#share-dialog").close();
    alert(error.message);
  }
});
$("#share-copy").addEventListener("click", async () => {
  $("#share-link").select();
  try {
    await navigator.clipboard.writeText($("#share-link").value);
  } catch {
    document.execCommand("copy"); // the clipboard API needs https
  }
  replaced = null;
  $("#share-dialog").close();
  toast("The link is in the clipboard.");
});

// Events

$("#instance").addEventListener("input", settled(() => show(Number($("#instance").value) - 1), 30));
shortcuts({
  ArrowDown: () => move(1),
  ArrowUp: () => move(-1),
  PageDown: () => move(10),
  PageUp: () => move(-10),
  ArrowRight: (event) => event.target.type === "range" ? false : turn(1),
  ArrowLeft: (event) => event.target.type === "range" ? false : turn(-1),
  t: () => { tab($("#panel-tags").hidden ? "tags" : "image"); },
  z: () => $("#zoom").click(),
  " ": (event) => (event.target.closest("button, a") ? false : $("#play").click()),
  v: () => $("#open-viewer")?.click(),
  ...Object.fromEntries([..."0123456789"].map((digit) => [digit, () => picture.preset(Number(digit))])),
});

open().catch((error) => {
  $("#workspace").hidden = true;
  $("#facts").hidden = true;
  $("#patient").textContent = "Study";
  $("#empty h2").textContent = "This study cannot be shown";
  $("#empty p").textContent = error.message;
  $("#empty").hidden = false;
  for (const button of $$(".study-head .actions > *")) button.hidden = true;
});
