// The list of studies: results as you type, sorted and paged; the state is in the address, so that it can be shared.

import { base, count, date, figure, number, personName, request, search, sexes, shortDate, size, studyUrl, time, value, values } from "./api.js";
import { $, $$, alert, confirmed, element, icon, menuButton, settled, shortcuts, thumbnail, toast, WITHOUT_PICTURES } from "./page.js";
import { openUpload } from "./upload.js";

const form = $("#filters");
const state = { orderby: "-StudyDate", offset: 0, limit: 25 };
let running = null; // the search under way, to be given up when another one begins
let total = 0;

// The address

function readAddress() {
  const query = new URLSearchParams(location.search);
  for (const field of form.elements) if (field.name) field.value = query.get(field.name) ?? "";
  state.orderby = query.get("orderby") ?? "-StudyDate";
  state.offset = Number(query.get("offset")) || 0;
  state.limit = [25, 50, 100].find((each) => each === Number(query.get("limit"))) ?? 25;
  $("#size").value = String(state.limit);
}

function writeAddress() {
  const query = new URLSearchParams();
  for (const [name, text] of new FormData(form)) if (text) query.set(name, text);
  if (state.orderby !== "-StudyDate") query.set("orderby", state.orderby);
  if (state.offset) query.set("offset", state.offset);
  if (state.limit !== 25) query.set("limit", state.limit);
  history.replaceState(null, "", query.size ? `?${query}` : location.pathname);
}

// The query

function asked() {
  const fields = Object.fromEntries(new FormData(form));
  const literal = (text) => text.trim();
  const begins = (text) => (literal(text) ? `${literal(text)}*` : "");
  const from = fields.from.replaceAll("-", ""), to = fields.to.replaceAll("-", "");
  return {
    PatientName: literal(fields.PatientName),
    fuzzymatching: literal(fields.PatientName) ? "true" : "",
    PatientID: begins(fields.PatientID),
    AccessionNumber: begins(fields.AccessionNumber),
    StudyDescription: literal(fields.StudyDescription) ? `*${literal(fields.StudyDescription)}*` : "",
    ModalitiesInStudy: fields.ModalitiesInStudy,
    StudyDate: from || to ? `${from}-${to}` : "",
    includefield: "StudyDescription",
    orderby: state.orderby,
    limit: state.limit,
    offset: state.offset,
  };
}

const isFiltered = () => [...new FormData(form).values()].some(Boolean);

async function refresh() {
  running?.abort();
  const mine = (running = new AbortController());
  writeAddress();
  showFilters();
  $("#results").setAttribute("aria-busy", "true");
  try {
    const found = await search("/studies", asked(), { signal: mine.signal });
    if (mine !== running) return;
    total = found.total;
    if (!found.rows.length && state.offset && total) {
      state.offset = Math.max(0, Math.floor((total - 1) / state.limit) * state.limit);
      return refresh();
    }
    show(found.rows);
  } catch (error) {
    if (error.name === "AbortError") return;
    nothing("The studies cannot be listed", error.message);
    $("#count").textContent = "";
  } finally {
    if (mine === running) {
      $("#results").setAttribute("aria-busy", "false");
      performance.mark("studies-shown");
    }
  }
}

function showFilters() {
  $("#reset").hidden = !isFiltered();
  for (const header of $$("th[data-sort]")) {
    const name = header.dataset.sort;
    if (state.orderby.replace("-", "") === name) {
      header.setAttribute("aria-sort", state.orderby.startsWith("-") ? "descending" : "ascending");
    } else header.removeAttribute("aria-sort");
    const arrow = { ascending: "up", descending: "down" }[header.getAttribute("aria-sort")] ?? "sort";
    $("use", header).setAttribute("href", `${base}/site/icons.svg#${arrow}`);
  }
  const today = isoDay(0);
  for (const chip of $$(".chip")) {
    const pressed = form.elements.from.value === isoDay(chip.dataset.days) && [today, ""].includes(form.elements.to.value);
    chip.setAttribute("aria-pressed", String(pressed));
  }
}

function isoDay(back) {
  const day = new Date();
  day.setDate(day.getDate() - Number(back));
  return [day.getFullYear(), day.getMonth() + 1, day.getDate()].map((part) => String(part).padStart(2, "0")).join("-");
}

// The results

function show(rows) {
  $("#count").textContent = isFiltered() ? `${count(total, "study", "studies")} found` : count(total, "study", "studies");
  $("#rows").replaceChildren(...rows.map(row));
  if (!rows.length) {
    if (isFiltered()) nothing("Nothing found", "No study matches. Try fewer letters, another spelling, or clear the search.");
    else nothing("No studies yet", "Drop a folder, a CD or a ZIP archive of DICOM files anywhere on this page, or choose files. Modalities and programs can send to this server by DICOMweb.", true);
  } else $("#empty").hidden = true;
  $(".results table").hidden = !rows.length;
  const last = Math.min(state.offset + rows.length, total);
  $("#pager").hidden = total <= 25;
  $("#page").textContent = `${figure(state.offset + 1)} – ${figure(last)} of ${figure(total)}`;
  $("#previous").disabled = !state.offset;
  $("#next").disabled = last >= total;
}

function nothing(title, text, invite = false) {
  $("#empty h2").textContent = title;
  $("#empty p").textContent = text;
  $("#empty-upload")?.toggleAttribute("hidden", !invite);
  $("#empty-clear").hidden = !isFiltered();
  $("#empty").hidden = false;
  $("#rows").replaceChildren();
  $(".results table").hidden = true;
  $("#pager").hidden = true;
}

function row(study) {
  const uid = value(study, "0020000D");
  const name = personName(study);
  const born = value(study, "00100030"), sex = sexes[value(study, "00100040")];
  const images = number(study, "00201208") ?? 0, series = number(study, "00201206") ?? 0;
  const shown = name.main || "No name";
  const link = element("a", { class: "name", href: `${base}/study/${uid}` }, element("bdi", {}, shown));
  const modalities = values(study, "00080061");
  const pictured = !modalities.length || modalities.some((each) => !WITHOUT_PICTURES[each]);
  const viewer = document.documentElement.dataset.viewer;
  return element(
    "tr",
    {},
    element("td", { class: "col-image" }, thumbnail(pictured && `${studyUrl(uid)}/thumbnail?viewport=128,128`, WITHOUT_PICTURES[modalities[0]])),
    element("td", {}, link, name.other && element("span", { class: "other" }, element("bdi", {}, name.other)), element("small", {}, [born && `born ${date(born)}`, sex].filter(Boolean).join(" · "))),
    element("td", { class: "muted-phone", "data-label": "ID" }, value(study, "00100020")),
    element("td", { class: "nowrap when" }, date(value(study, "00080020")), element("small", {}, time(value(study, "00080030")))),
    element("td", {}, ...modalities.map((each) => element("span", { class: "badge" }, each))),
    element("td", {}, element("bdi", {}, value(study, "00081030"))),
    element("td", { class: "muted-phone", "data-label": "Accession no." }, value(study, "00080050")),
    element("td", { class: "number" }, figure(images), element("span", { class: "phone-only" }, images === 1 ? " image in " : " images in "), element("small", {}, `${figure(series)} series`)),
    element(
      "td",
      { class: "col-actions" },
      viewer && element("a", { class: "button plain row-action", href: `${viewer}${uid}`, "aria-label": `Open ${shown} in the viewer`, title: "Open in viewer" }, icon("viewer")),
      "mayDelete" in $("#results").dataset && element("button", { type: "button", class: "plain row-action", "aria-label": `Delete the study of ${shown}`, title: "Delete", onclick: () => remove(uid, shown, images) }, icon("trash")),
    ),
  );
}

async function remove(uid, name, images) {
  const text = `The study of ${name} with ${count(images, "image")} is removed from the archive. There is no way back but a backup.`;
  if (!(await confirmed("Delete this study?", text, "Delete study"))) return;
  try {
    await request(studyUrl(uid), { method: "DELETE" });
    toast("The study has been deleted.");
  } catch (error) {
    alert(error.message);
  }
  changed();
}

// What the archive holds

async function showSummary() {
  const figures = await (await request(`${base}/site/summary.json`)).json();
  for (const place of $$("[data-figure]")) {
    const amount = figures[place.dataset.figure];
    place.textContent = place.dataset.figure.endsWith("bytes") ? size(amount) : figure(amount);
  }
  $("#storage-meter").value = figures.bytes / (figures.bytes + figures.free_bytes || 1);
  const most = Math.max(1, ...figures.received.map((day) => day.instances));
  const all = figures.received.reduce((sum, day) => sum + day.instances, 0);
  $("#received").textContent = count(all, "image");
  $("#first-day").textContent = shortDate(figures.received[0].day);
  $("#activity").replaceChildren(
    ...figures.received.map(({ day, instances }) => {
      const bar = element("i", { title: `${date(day.replaceAll("-", ""))}: ${count(instances, "image")}`, class: instances ? "" : "none" });
      bar.style.height = `${(100 * instances) / most}%`;
      return bar;
    }),
  );
  $("#activity").setAttribute("aria-label", `${count(all, "image")} in 14 days, ${count(figures.received.at(-1).instances, "image")} today`);
}

function changed() {
  refresh();
  if (!$("#summary").hidden) showSummary().catch((error) => alert(error.message));
}

// Events

const type = settled(() => { state.offset = 0; refresh(); }, 180);
form.addEventListener("input", type);
form.addEventListener("submit", (event) => { event.preventDefault(); state.offset = 0; refresh(); });
form.addEventListener("reset", () => setTimeout(() => { state.offset = 0; refresh(); $("#PatientName").focus(); }));
for (const chip of $$(".chip")) {
  chip.addEventListener("click", () => {
    const pressed = chip.getAttribute("aria-pressed") === "true";
    form.elements.from.value = pressed ? "" : isoDay(chip.dataset.days);
    form.elements.to.value = "";
    state.offset = 0;
    refresh();
  });
}
for (const header of $$("th[data-sort]")) {
  $("button", header).addEventListener("click", () => {
    const name = header.dataset.sort;
    const first = name === "StudyDate" ? "-StudyDate" : name, second = name === "StudyDate" ? name : `-${name}`;
    state.orderby = state.orderby === first ? second : first;
    state.offset = 0;
    refresh();
  });
}
const turn = (pages) => {
  const next = state.offset + pages * state.limit;
  if (next < 0 || next >= total) return;
  state.offset = next;
  refresh().then(() => $("#main").scrollIntoView());
};
$("#previous").addEventListener("click", () => turn(-1));
$("#next").addEventListener("click", () => turn(1));
$("#size").addEventListener("change", () => {
  [state.limit, state.offset] = [Number($("#size").value), 0];
  refresh();
});
$("#show-summary").addEventListener("click", () => {
  const summary = $("#summary");
  summary.hidden = !summary.hidden;
  $("#show-summary").setAttribute("aria-expanded", String(!summary.hidden));
  if (!summary.hidden) showSummary().catch((error) => alert(error.message));
});
$("#more").addEventListener("click", () => {
  const open = form.classList.toggle("open");
  $("#more").setAttribute("aria-expanded", String(open));
});
$("#empty-clear").addEventListener("click", () => $("#reset").click());
if ($("#upload")) {
  menuButton($("#upload"), $("#upload-menu"));
  $("#empty-upload").addEventListener("click", () => $("#file-input").click());
  openUpload(changed);
}
const step = (by) => {
  const links = $$("#rows .name"), at = links.indexOf(document.activeElement);
  links.at(at < 0 && by < 0 ? -1 : Math.min(Math.max(at + by, 0), links.length - 1))?.focus();
};
shortcuts({
  "/": () => $("#PatientName").focus(),
  u: () => $("#upload")?.click(),
  j: () => step(1),
  k: () => step(-1),
  n: () => turn(1),
  p: () => turn(-1),
});
addEventListener("popstate", () => { readAddress(); refresh(); });
addEventListener("pageshow", (event) => event.persisted && refresh());
readAddress();
refresh();
