// Upload: files and folders that are chosen or dropped, progress for each, and a report in plain words.

import { base, count, headers, root, size, value, values } from "./api.js";
import { $, element, icon } from "./page.js";

const AT_ONCE = 3;
const SHOWN = 400; // rows of the list; of more files those that went well leave it
const OTHER_VERSION = 0x0111;
const REASONS = { // of Failure Reason (0008,1197)
  0x0110: "The server could not process it",
  0x0111: "Another version of this image is stored already",
  0x0122: "This kind of object is not accepted",
  0xa700: "The server has no room left",
  0xa900: "It does not belong to this study",
  0xc000: "It is damaged or no DICOM file",
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
  return { skip: "no DICOM file" };
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
    this.studies = new Set();
    this.stopped = false;
    this.running = new Set();
    $("#upload-title").textContent = `Uploading ${count(files.length, "file")}`;
    $("#upload-files").replaceChildren();
    $("#upload-report").hidden = true;
    $("#upload-report").replaceChildren();
    $("#upload-cancel").hidden = false;
    $("#upload-close").hidden = true;
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
    if (outcome.why) line.append(element("span", { class: "why" }, outcome.why));
    this.outcomes[outcome.what].push({ path: item.path, why: outcome.why ?? "" });
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
      transfer.onload = () => end(this.judge(transfer));
      transfer.onerror = () => end({ what: "failed", why: "The server could not be reached" });
      transfer.onabort = () => end({ what: "failed", why: "Stopped" });
      this.running.add(transfer);
      transfer.send(item.file);
    });
  }

  judge(transfer) {
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
    if (!failed.length && stored.length) return { what: "stored", why: stored.length > 1 ? count(stored.length, "image") : "" };
    if (stored.length) return { what: "stored", why: `${count(stored.length, "image")}; ${failed.length} not: ${told}` };
    const code = Number(value(failed[0] ?? {}, "00081197"));
    const details = code === OTHER_VERSION ? "" : told || answer.message;
    return { what: "failed", why: [REASONS[code], details].filter(Boolean).join(": ") || `The server answered ${transfer.status}` };
  }

  show() {
    $("#upload-progress").value = this.bytes ? this.sent / this.bytes : this.done / this.files.length;
    $("#upload-status").textContent = `${this.done.toLocaleString()} of ${count(this.files.length, "file")} · ${size(this.sent)} of ${size(this.bytes)}`;
  }

  report() {
    const { stored, skipped, failed } = this.outcomes;
    const left = this.files.length - this.done;
    const notes = [];
    if (this.instances) {
      const few = this.studies.size <= 3 ? [...this.studies] : []; // of more the list behind is the better one
      const studies = few.map((uid, at) =>
        element("li", {}, element("a", { href: `${base}/study/${uid}` }, this.studies.size === 1 ? "Open the study" : `Open study ${at + 1}`)));
      notes.push(this.note("good", "check", `${count(this.instances, "image")} of ${count(this.studies.size, "study", "studies")} ${this.instances === 1 ? "is" : "are"} safely stored.`, studies));
    } else if (!failed.length) notes.push(this.note("caution", "warning", "Nothing was stored: there was no DICOM file among what you chose."));
    if (skipped.length) notes.push(this.note("", "file", `${count(skipped.length, "file")} left out, as ${skipped.length === 1 ? "it is" : "they are"} no images.`, this.grouped(skipped)));
    if (failed.length) notes.push(this.note("bad", "warning", `${count(failed.length, "file")} could not be stored:`, this.grouped(failed)));
    if (left) notes.push(this.note("caution", "warning", `Stopped; ${count(left, "file")} not sent. Upload the same again to go on: what is stored already is not stored twice.`));
    $("#upload-report").replaceChildren(...notes);
    $("#upload-report").hidden = false;
    $("#upload-title").textContent = failed.length || left ? "Upload finished, not everything stored" : "Upload finished";
    $("#upload-status").textContent = `${stored.length.toLocaleString()} of ${count(this.files.length, "file")} stored`;
    $("#upload-progress").value = 1;
    $("#upload-cancel").hidden = true;
    $("#upload-close").hidden = false;
    $("#upload-close").focus({ preventScroll: true });
    $("#upload-dialog").scrollTop = 0;
  }

  note(kind, name, text, list = []) {
    return element("div", { class: kind }, icon(name), element("div", {}, element("span", {}, text), list.length ? element("ul", {}, ...list) : ""));
  }

  grouped(items) {
    const reasons = Map.groupBy ? Map.groupBy(items, (each) => each.why) : group(items);
    return [...reasons].slice(0, 8).map(([why, some]) => {
      const names = some.slice(0, 3).map((each) => each.path.split("/").pop()).join(", ");
      return element("li", {}, `${names}${some.length > 3 ? ` and ${some.length - 3} more` : ""}: ${why}`);
    });
  }
}

function group(items) {
  const found = new Map();
  for (const each of items) found.set(each.why, [...(found.get(each.why) ?? []), each]);
  return found;
}
