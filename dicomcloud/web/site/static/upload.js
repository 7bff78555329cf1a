// Upload: files and folders that are chosen or dropped, progress for each, and a report in plain words.

import { base, count, date, figure, headers, personName, root, search, size, value, values } from "./api.js";
import { $, $$, element, icon, save } from "./page.js";

const AT_ONCE = 3;
const SHOWN = 400; // rows of the list; of more files those that went well leave it
const NAMED = 5; // studies that are named in the report; of more the list behind it is the better one
const REASONS = { // of Failure Reason (0008,1197)
  0x0110: "The server could not process it",
  0x0111: "Another version of this image is stored already, and was kept",
  0x0122: "This kind of object is not accepted here",
  0xa700: "The server has no room left",
  0xa900: "It does not belong to this study",
  0xc000: "Damaged, or not a proper DICOM file",
};
const CUT_OFF = "Cut off before its end: copy it again from where it came";
const STATUSES = {
  401: "The session has ended: log in again",
  403: "You are not allowed to store here",
  413: "Larger than this server takes",
  503: "The server was busy: upload it again later",
  507: "The server has no room left",
};

let changed = () => {};

/** Make the page's controls work; `whenChanged` is called after something was stored. */
export function openUpload(whenChanged) {
  changed = whenChanged;
  for (const [button, input] of [["#choose-files", "#file-input"], ["#choose-folder", "#folder-input"]]) {
    $(button)?.addEventListener("click", () => $(input).click());
    $(input).addEventListener("change", () => {
      const files = [...$(input).files].map((file) => ({ file, path: file.webkitRelativePath || file.name }));
      $(input).value = "";
      begin(files);
    });
  }
  let inside = 0;
  const over = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  addEventListener("dragenter", (event) => {
    if (over(event)) $("#drop").hidden = !++inside;
  });
  addEventListener("dragleave", (event) => {
    if (over(event)) $("#drop").hidden = !(inside = Math.max(0, inside - 1));
  });
  addEventListener("dragover", (event) => over(event) && event.preventDefault());
  addEventListener("drop", async (event) => {
    if (!over(event)) return;
    event.preventDefault();
    inside = 0;
    $("#drop").hidden = true;
    begin(await dropped(event.dataTransfer));
  });
}

/** The files of a drop, those of folders with their paths. */
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => ({ file, path: file.name }));
  const found = [];
  const walk = async (entry) => {
    if (entry.isFile) {
      found.push({ file: await new Promise((resolve, reject) => entry.file(resolve, reject)), path: entry.fullPath.slice(1) });
      return;
    }
    const reader = entry.createReader();
    for (;;) { // a reader gives at most 100 entries at a time
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!some.length) return;
      for (const each of some) await walk(each);
    }
  };
  for (const entry of entries) await walk(entry);
  return found;
}

/** What a file is by its first bytes: a media type, or {skip: why it is not sent}. */
async function kindOf({ file, path }) {
  const name = path.split("/").pop();
  if (!file.size) return { skip: "empty" };
  const head = new Uint8Array(await file.slice(0, 132).arrayBuffer());
  const text = (from, to) => String.fromCharCode(...head.slice(from, to));
  if (/^DICOMDIR$/i.test(name)) return { skip: "the CD's table of contents, which is not needed" };
  if (text(128, 132) === "DICM") return { type: "application/dicom" };
  if (text(0, 4) === "PK\x03\x04") return { type: "application/zip" };
  const group = head[0] | (head[1] << 8);
  if ((group === 2 || group === 8) && head[3] === 0) return { type: "application/dicom" }; // without a preamble
  return { skip: "not DICOM" };
}

async function begin(files) {
  if (!files.length) return;
  files.sort((one, other) => one.path.localeCompare(other.path, undefined, { numeric: true }));
  const run = new Run(files);
  const dialog = $("#upload-dialog");
  if (!dialog.open) dialog.showModal();
  const stop = () => run.stop();
  const hold = (event) => { event.preventDefault(); };
  dialog.addEventListener("cancel", hold);
  $("#upload-cancel").addEventListener("click", stop);
  addEventListener("beforeunload", hold);
  await run.all();
  removeEventListener("beforeunload", hold);
  dialog.removeEventListener("cancel", hold);
  $("#upload-cancel").removeEventListener("click", stop);
  changed();
}
$("#upload-close")?.addEventListener("click", () => $("#upload-dialog").close());

class Run {
  constructor(files) {
    this.files = files;
    this.bytes = files.reduce((sum, { file }) => sum + file.size, 0);
    this.sent = this.done = this.instances = 0;
    this.outcomes = { stored: [], skipped: [], failed: [] };
    this.missing = []; // archives of which some files were not stored
    this.studies = new Set();
    this.stopped = false;
    this.running = new Set();
    $("#upload-title").textContent = `Uploading ${count(files.length, "file")}`;
    $("#upload-files").replaceChildren();
    $("#upload-report").hidden = true;
    $("#upload-report").replaceChildren();
    $("#upload-cancel").hidden = false;
    $("#upload-close").hidden = $("#upload-save").hidden = true;
    this.show();
  }

  stop() {
    this.stopped = true;
    for (const transfer of this.running) transfer.abort();
  }

  async all() {
    const waiting = this.files.values();
    await Promise.all(
      Array.from({ length: AT_ONCE }, async () => {
        for (const file of waiting) {
          if (this.stopped) return;
          await this.one(file);
        }
      }),
    );
    this.report();
  }

  async one(item) {
    const line = element("li", {}, element("span", { class: "path", title: item.path }, element("bdi", {}, item.path)));
    const state = element("span", { class: "state" }, "waiting");
    line.append(state);
    $("#upload-files").append(line);
    let outcome;
    try {
      const kind = await kindOf(item);
      outcome = kind.skip ? { what: "skipped", why: kind.skip } : await this.send(item, kind.type, state);
    } catch {
      outcome = { what: "failed", why: "It cannot be read from the disk" };
    }
    line.classList.add(outcome.what);
    state.textContent = outcome.what === "failed" ? "not stored" : outcome.what;
    const why = [outcome.why, outcome.details].filter(Boolean).join(": ");
    if (why) line.append(element("span", { class: "why" }, why));
    this.outcomes[outcome.what].push({ path: item.path, why: outcome.why ?? "", details: outcome.details ?? "" });
    if (outcome.missing) this.missing.push({ path: item.path, why: `${count(outcome.missing, "file")} in it not stored`, details: outcome.details });
    this.done += 1;
    this.sent += item.file.size - (item.progress ?? 0);
    this.show();
    const list = $("#upload-files");
    if (list.childElementCount > SHOWN) list.querySelector("li.stored, li.skipped")?.remove();
    else line.scrollIntoView({ block: "nearest" });
  }

  /** POST one file (STOW-RS). */
  send(item, type, state) {
    return new Promise((resolve) => {
      const transfer = new XMLHttpRequest();
      const bar = element("progress", { max: 1, value: 0, "aria-label": item.path });
      state.replaceChildren(bar);
      transfer.open("POST", `${root}/studies`);
      for (const [name, text] of Object.entries(headers({ "Content-Type": type, Accept: "application/dicom+json" }))) {
        transfer.setRequestHeader(name, text);
      }
      transfer.upload.onprogress = (event) => {
        bar.value = event.loaded / event.total;
        this.sent += event.loaded - (item.progress ?? 0);
        item.progress = event.loaded;
        this.show();
      };
      const end = (outcome) => {
        this.running.delete(transfer);
        resolve(outcome);
      };
      transfer.onload = () => end(this.judge(transfer, type));
      transfer.onerror = () => end({ what: "failed", why: "The server could not be reached" });
      transfer.onabort = () => end({ what: "failed", why: "Stopped" });
      this.running.add(transfer);
      transfer.send(item.file);
    });
  }

  judge(transfer, type) {
    let answer = {};
    try { answer = JSON.parse(transfer.responseText); } catch { /* no JSON: the status has to do */ }
    const stored = values(answer, "00081199");
    const failed = [...values(answer, "00081198"), ...values(answer, "0008119A")];
    for (const each of stored) {
      const url = value(each, "00081190");
      const study = /\/studies\/([0-9.]+)/.exec(url)?.[1];
      if (study) this.studies.add(study);
    }
    this.instances += stored.length;
    const told = (transfer.getResponseHeader("Warning") ?? "").replace(/299 \S+: /g, "");
    if (stored.length) {
      const why = stored.length > 1 || failed.length ? count(stored.length, "image") : "";
      return { what: "stored", why, missing: failed.length, details: failed.length ? told : "" };
    }
    const code = Number(value(failed[0] ?? {}, "00081197"));
    const details = told || answer.message || `The server answered ${transfer.status} ${transfer.statusText}`.trim();
    let why = REASONS[code] ?? STATUSES[transfer.status] ?? "The server did not take it";
    if (/^truncated\b/.test(details)) why = CUT_OFF;
    else if (!failed.length && transfer.status === 400 && type === "application/zip") why = "A damaged ZIP archive, or one without DICOM files";
    return { what: "failed", why, details: code === 0x0111 ? "" : details };
  }

  show() {
    $("#upload-progress").value = this.bytes ? this.sent / this.bytes : this.done / this.files.length;
    $("#upload-status").textContent = `${this.done.toLocaleString()} of ${count(this.files.length, "file")} · ${size(this.sent)} of ${size(this.bytes)}`;
  }

  report() {
    const { stored, skipped, failed } = this.outcomes, { missing } = this;
    const left = this.files.length - this.done;
    const notes = [];
    if (this.instances) {
      const links = element("ul", {});
      this.name(links);
      notes.push(this.note("good", "check", `${count(this.instances, "image")} of ${count(this.studies.size, "study", "studies")} ${this.instances === 1 ? "is" : "are"} safely stored.`, links));
    } else if (!failed.length) notes.push(this.note("caution", "warning", "Nothing was stored: there was no DICOM file among what you chose."));
    if (failed.length) notes.push(this.note("bad", "warning", `${count(failed.length, "file")} could not be stored:`, grouped(failed)));
    if (missing.length) notes.push(this.note("caution", "warning", `${count(missing.length, "ZIP archive")} could be stored in part only:`, grouped(missing)));
    if (left) notes.push(this.note("caution", "warning", `Stopped; ${count(left, "file")} not sent. Upload the same again to go on: what is stored already is not stored twice.`));
    if (skipped.length) notes.push(this.note("", "file", `${count(skipped.length, "file")} left out, as ${skipped.length === 1 ? "it is" : "they are"} no images:`, grouped(skipped)));
    $("#upload-report").replaceChildren(...notes);
    $("#upload-report").hidden = false;
    $("#upload-title").textContent = failed.length || missing.length || left ? "Upload finished, not everything stored" : "Upload finished";
    $("#upload-status").textContent = `${figure(stored.length)} of ${count(this.files.length, "file")} stored`;
    $("#upload-progress").value = 1;
    $("#upload-cancel").hidden = true;
    $("#upload-close").hidden = false;
    $("#upload-save").hidden = !(failed.length || missing.length || left);
    $("#upload-save").onclick = () => this.save();
    $("#upload-files").prepend(...$$("#upload-files .failed")); // what needs looking at comes first
    $("#upload-files").scrollTop = 0;
    $("#upload-close").focus({ preventScroll: true });
    $("#upload-dialog").scrollTop = 0;
  }

  note(kind, name, text, more = "") {
    return element("div", { class: kind }, icon(name), element("div", {}, element("span", {}, text), more));
  }

  /** Links to the studies, which get their patients' names as soon as the server has told them. */
  async name(list) {
    const uids = [...this.studies];
    if (uids.length > NAMED) return;
    const links = new Map(uids.map((uid, at) => [uid, element("a", { href: `${base}/study/${uid}` }, uids.length === 1 ? "Open the study" : `Open study ${at + 1}`)]));
    list.append(...[...links.values()].map((link) => element("li", {}, link)));
    try {
      for (const row of (await search("/studies", { StudyInstanceUID: uids.join(",") })).rows) {
        const who = [personName(row).main || "No name", date(value(row, "00080020"))].filter(Boolean).join(", ");
        links.get(value(row, "0020000D"))?.after(" – ", element("bdi", {}, who));
      }
    } catch { /* the links do without names */ }
  }

  /** The whole report as a text file: one line for each file that needs looking at. */
  save() {
    const lines = [$("#upload-title").textContent, $("#upload-status").textContent, ""];
    for (const each of [...this.outcomes.failed, ...this.missing, ...this.outcomes.skipped]) {
      lines.push(`${each.path}\t${[each.why, each.details].filter(Boolean).join(": ")}`);
    }
    save(new Blob([lines.join("\r\n")], { type: "text/plain;charset=utf-8" }), "upload report.txt");
  }
}

/** A list of the reasons, the most frequent first, each with its files. */
function grouped(items) {
  const reasons = [...group(items)].sort(([, some], [, others]) => others.length - some.length);
  return element("ul", {}, ...reasons.map(([why, some]) => {
    const lines = some.slice(0, SHOWN).map((each) => element("li", {}, element("bdi", {}, each.path), each.details && ` – ${each.details}`));
    if (some.length > SHOWN) lines.push(element("li", {}, `and ${figure(some.length - SHOWN)} more`));
    const summary = some.length === 1 ? [element("bdi", {}, some[0].path.split("/").pop())] : [count(some.length, "file")];
    return element("li", {}, element("details", {}, element("summary", {}, ...summary, `: ${why}`), element("ul", { tabindex: 0, "aria-label": why }, ...lines)));
  }));
}

function group(items) {
  const found = new Map();
  for (const each of items) {
    if (found.has(each.why)) found.get(each.why).push(each);
    else found.set(each.why, [each]);
  }
  return found;
}
