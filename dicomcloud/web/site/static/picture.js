// The picture of an instance, as the server renders it: window, frames, zoom; films, documents and reports in their own way.

import { number, value, values } from "./api.js";
import { $, element, settled } from "./page.js";

const CT_WINDOWS = [
  ["Soft tissue", 40, 400], ["Lung", -600, 1500], ["Bone", 480, 2500], ["Brain", 40, 80], ["Mediastinum", 50, 350],
  ["Liver", 60, 160], ["Angiography", 300, 600],
];
const VIDEO = /^1\.2\.840\.10008\.1\.2\.4\.10[0-8](\.1)?$/;
const DOCUMENT = /^1\.2\.840\.10008\.5\.1\.4\.1\.1\.104\./;
const WAVEFORM = "54000100";
const REPORT = "0040A730";

export class Picture {
  /** `move(by)` is asked for when the wheel turns. */
  constructor(move) {
    this.frames = 1;
    this.frame = 1;
    this.window = null; // {center, width}; null: as the file says
    this.image = $("#image");
    this.image.addEventListener("load", () => this.loaded());
    this.image.addEventListener("error", () => this.failed());
    $("#preset").addEventListener("change", () => this.preset($("#preset").selectedIndex));
    const typed = settled(() => {
      const center = Number($("#center").value), width = Number($("#width").value);
      if (width >= 1) this.setWindow({ center, width });
    }, 250);
    for (const input of ["#center", "#width"]) $(input).addEventListener("input", typed);
    $("#frame").addEventListener("input", () => this.goTo(Number($("#frame").value)));
    $("#play").addEventListener("click", () => this.play());
    $("#zoom").addEventListener("click", () => this.zoom());
    const stage = $("#stage");
    let turned = 0;
    stage.addEventListener("wheel", (event) => {
      if (event.ctrlKey || stage.classList.contains("real-size")) return;
      event.preventDefault();
      turned += event.deltaY;
      if (Math.abs(turned) >= 40) {
        move(Math.sign(turned));
        turned = 0;
      }
    }, { passive: false });
    this.dragging(stage);
    this.swiping(stage, move);
  }

  /** Another series: its window and zoom begin anew. */
  newSeries() {
    this.window = null;
    this.halt();
    this.presets = null;
  }

  show(url, attributes, label) {
    const sameKind = this.attributes && value(this.attributes, "0020000E") === value(attributes, "0020000E");
    Object.assign(this, { url, attributes, label, frames: number(attributes, "00280008") ?? 1, frame: 1 });
    this.frame = sameKind && this.frames === 1 ? 1 : Math.min(this.frame, this.frames);
    const kind = kindOf(attributes);
    for (const other of $("#stage").querySelectorAll("iframe, video")) other.remove();
    $("#stage-note").hidden = true;
    $("#image").hidden = kind !== "image";
    const grey = kind === "image" && /^MONOCHROME/.test(value(attributes, "00280004"));
    for (const label of document.querySelectorAll("#toolbar .field-inline")) label.hidden = !grey;
    $("#toolbar").hidden = kind !== "image";
    $("#corner-window").hidden = !grey;
    $("#frame-slider").hidden = kind !== "image" || this.frames < 2;
    $("#play").hidden = $("#frame-slider").hidden;
    $("#frame").max = this.frames;
    $("#stage").classList.toggle("windowing", grey);
    for (const corner of document.querySelectorAll(".corner")) corner.classList.toggle("visually-hidden", kind === "page");
    if (kind === "image") {
      if (grey) this.listPresets();
      this.draw();
      return;
    }
    this.halt();
    $("#spinner").hidden = true;
    const source = `${url}/rendered`;
    if (kind === "video") $("#stage").append(element("video", { src: source, controls: true, loop: true, "aria-label": label }));
    else $("#stage").append(element("iframe", { src: source, title: label }));
  }

  /** The file's own windows, then those for the modality. */
  listPresets() {
    const centers = values(this.attributes, "00281050"), widths = values(this.attributes, "00281051"), names = values(this.attributes, "00281055");
    const presets = [["As stored", null]];
    centers.forEach((center, at) => {
      if (widths[at] >= 1 && (at > 0 || centers.length > 1)) presets.push([names[at] || `Window ${at + 1}`, Number(center), Number(widths[at])]);
    });
    if (value(this.attributes, "00080060") === "CT") presets.push(...CT_WINDOWS);
    else if (widths[0] >= 1) {
      const [center, width] = [Number(centers[0]), Number(widths[0])];
      presets.push(["More contrast", center, width / 2], ["Less contrast", center, width * 2], ["Brighter", center - width / 4, width], ["Darker", center + width / 4, width]);
    }
    if (String(presets) === String(this.presets)) return this.showWindow();
    this.presets = presets;
    $("#preset").replaceChildren(...presets.map(([name], at) => element("option", { value: at }, at < 10 ? `${at}  ${name}` : name)), element("option", { value: "own", disabled: true }, "Own window"));
    this.showWindow();
  }

  preset(at) {
    const chosen = this.presets?.[at];
    if (!chosen) return;
    this.setWindow(chosen[1] === null ? null : { center: chosen[1], width: chosen[2] });
  }

  setWindow(window) {
    this.window = window;
    this.showWindow();
    this.draw();
  }

  showWindow() {
    const own = this.ownWindow();
    const { center, width } = this.window ?? own ?? {};
    for (const [input, shown] of [["#center", center], ["#width", width]]) {
      if (document.activeElement !== $(input)) $(input).value = shown === undefined ? "" : Math.round(shown * 100) / 100;
    }
    const at = (this.presets ?? []).findIndex(([, one, other]) => (this.window ? one === center && other === width : one === null));
    $("#preset").value = at < 0 ? "own" : String(at);
    $("#corner-window").textContent = center === undefined ? "" : `C ${Math.round(center)}  W ${Math.round(width)}`;
  }

  ownWindow() {
    const center = number(this.attributes, "00281050"), width = number(this.attributes, "00281051");
    return center !== null && width >= 1 ? { center, width } : null;
  }

  address(frame = this.frame, url = this.url) {
    const window = this.window ? `?window=${this.window.center},${this.window.width},linear` : "";
    return `${url}${this.frames > 1 ? `/frames/${frame}` : ""}/rendered${window}`;
  }

  draw() {
    $("#frame").value = this.frame;
    $("#frame-place").textContent = `${this.frame} of ${this.frames}`;
    const next = this.address();
    if (this.image.getAttribute("src") === next) return;
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => { $("#spinner").hidden = false; }, 250);
    this.image.alt = this.label;
    this.image.src = next;
  }

  loaded() {
    clearTimeout(this.waiting);
    $("#spinner").hidden = true;
    $("#stage-note").hidden = true;
    performance.mark("picture-shown");
    if (this.playing) this.next = setTimeout(() => this.goTo((this.frame % this.frames) + 1, true), this.pause());
    else if (this.frames > 1 && this.frame < this.frames) new Image().src = this.address(this.frame + 1);
  }

  async failed() {
    clearTimeout(this.waiting);
    this.halt();
    $("#spinner").hidden = true;
    if (!this.image.getAttribute("src")) return;
    let reason = hasPixels(this.attributes) ? "" : "It holds no pixel data.";
    if (!reason) try {
      const answer = await fetch(this.image.src, { headers: { Accept: "image/jpeg, application/json" } });
      reason = answer.ok ? "" : (await answer.json()).message.replace(/^None of the acceptable.*/s, "");
    } catch { /* the note says enough */ }
    this.image.hidden = true;
    $("#stage-note").textContent = `There is no picture of this object. ${reason ?? ""} Its tags can be read, and it can be downloaded.`;
    $("#stage-note").hidden = false;
  }

  prefetch(url) {
    if (this.frames === 1) new Image().src = this.address(1, url);
  }

  step(by) {
    this.goTo(Math.min(Math.max(this.frame + by, 1), this.frames));
  }

  goTo(frame, playing = false) {
    if (!playing) this.halt();
    this.frame = frame;
    this.draw();
  }

  pause() {
    const each = number(this.attributes, "00181063") || 1000 / (number(this.attributes, "00082144") || number(this.attributes, "00180040") || 15);
    return Math.min(Math.max(each, 15), 1000);
  }

  play() {
    if (this.playing) return this.halt();
    this.playing = true;
    $("#play").setAttribute("aria-pressed", "true");
    $("#play").setAttribute("aria-label", "Stop");
    this.goTo((this.frame % this.frames) + 1, true);
  }

  halt() {
    this.playing = false;
    clearTimeout(this.next);
    $("#play").setAttribute("aria-pressed", "false");
    $("#play").setAttribute("aria-label", "Play frames");
  }

  zoom() {
    const real = $("#stage").classList.toggle("real-size");
    $("#zoom").setAttribute("aria-pressed", String(real));
  }

  /** A finger that goes to the left or right turns to the next or previous image or frame. */
  swiping(stage, move) {
    let start = null;
    stage.addEventListener("pointerdown", (event) => {
      start = event.pointerType === "touch" && event.isPrimary && !stage.classList.contains("real-size") ? event : null;
    });
    stage.addEventListener("pointerup", (event) => {
      if (!start || event.pointerId !== start.pointerId) return;
      const across = event.clientX - start.clientX, down = event.clientY - start.clientY;
      if (Math.abs(across) >= 40 && Math.abs(across) > 2 * Math.abs(down)) move(-Math.sign(across));
      start = null;
    });
    stage.addEventListener("pointercancel", () => { start = null; }); // the page scrolls, or two fingers zoom
  }

  /** Drag up and down for the center, left and right for the width, as at every workstation. */
  dragging(stage) {
    let start = null;
    stage.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "touch" || event.button || !stage.classList.contains("windowing") || stage.classList.contains("real-size")) return;
      const window = this.window ?? this.ownWindow();
      if (window) start = { x: event.clientX, y: event.clientY, window };
      if (start) stage.setPointerCapture(event.pointerId);
    });
    stage.addEventListener("pointermove", (event) => {
      if (!start) return;
      const scale = Math.max(start.window.width, 20) / 250;
      const width = Math.max(1, Math.round(start.window.width + (event.clientX - start.x) * scale));
      const center = Math.round(start.window.center + (event.clientY - start.y) * scale);
      if (width === this.window?.width && center === this.window?.center) return;
      this.window = { center, width };
      this.showWindow();
      if (!this.drawing) {
        this.drawing = setTimeout(() => { this.drawing = 0; this.draw(); }, 60);
      }
    });
    for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, () => { start = null; });
  }
}

const hasPixels = (attributes) => ["7FE00010", "7FE00008", "7FE00009"].some((tag) => tag in attributes) || WAVEFORM in attributes;

/** image, video or page. */
export function kindOf(attributes) {
  if (VIDEO.test(value(attributes, "00083002")) || attributes.video) return "video";
  const sopClass = value(attributes, "00080016");
  if (DOCUMENT.test(sopClass) || REPORT in attributes) return "page";
  if (/^1\.2\.840\.10008\.5\.1\.4\.1\.1\.77\.1\.(1|2|4)\.1$/.test(sopClass)) return "video";
  return attributes[WAVEFORM] ? "image" : "image";
}
