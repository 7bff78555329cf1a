// What every page has: theme, menus, messages, the question before something is deleted, keyboard shortcuts.

import { base, figure } from "./api.js";

export const $ = (selector, within = document) => within.querySelector(selector);
export const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];

/** An element: element("td", {class: "name"}, "text", child, …). */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value == null) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== "" && child !== false && child != null));
  return made;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `${base}/site/icons.svg#${name}`);
  svg.append(use);
  return svg;
}

/** Modalities of which there are no thumbnails, and the icon that stands for them. */
export const WITHOUT_PICTURES = {
  SR: "document", DOC: "document", PR: "document", KO: "document", PLAN: "document", RTSTRUCT: "document",
  RTPLAN: "document", RTRECORD: "document", REG: "document", FID: "document", ANN: "document", ECG: "pulse",
  HD: "pulse", EPS: "pulse", RESP: "pulse", EEG: "pulse", AU: "pulse", M3D: "archive",
};

/** A small picture, with an icon in its place while there is none. */
export function thumbnail(url, kind = "image") {
  const frame = element("span", { class: url ? "thumb" : "thumb none" }, icon(kind));
  const image = element("img", { alt: "", loading: "lazy", decoding: "async", width: 128, height: 128 });
  image.addEventListener("load", () => frame.replaceChildren(image));
  image.addEventListener("error", () => {
    image.remove();
    frame.classList.add("none");
  });
  if (url) {
    image.src = url;
    image.hidden = false;
    frame.append(image);
  }
  return frame;
}

export function toast(text) {
  const message = element("div", { class: "toast" }, icon("check"), text);
  $("#toasts").append(message);
  setTimeout(() => message.remove(), 5000);
}

/** A message that stays while something goes on: {step(done, all)} counts in it, {end()} takes it away. */
export function working(text) {
  const counter = element("span", { "aria-hidden": true }); // a voice for each step would be too much
  const message = element("div", { class: "toast" }, element("span", { class: "spinner small" }), element("span", {}, `${text} …`), counter);
  $("#toasts").append(message);
  return {
    step: (done, all) => { counter.textContent = `${figure(done)} of ${figure(all)}`; },
    end: () => message.remove(),
  };
}

/** A fault that the reader has to know of; it stays until it is closed. */
export function alert(text) {
  const message = element("div", { class: "toast" }, icon("warning"), element("span", {}, text));
  const close = element("button", { type: "button", "aria-label": "Close", onclick: () => message.remove() }, icon("close"));
  message.append(close);
  $("#alerts").replaceChildren(message);
}

/** Ask before something is done that cannot be undone. */
export function confirmed(title, text, action) {
  const dialog = $("#confirm");
  $("#confirm-title").textContent = title;
  $("#confirm-text").textContent = text;
  $("#confirm-yes").textContent = action;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

/** A button that opens a menu (the WAI-ARIA menu button). */
export function menuButton(button, menu) {
  const items = () => $$("[role=menuitem]", menu);
  const close = (focus = false) => {
    menu.hidden = true;
    button.setAttribute("aria-expanded", "false");
    if (focus) button.focus();
  };
  button.addEventListener("click", (event) => {
    event.stopPropagation();
    if (!menu.hidden) return close();
    for (const other of $$(".menu")) other.hidden = true;
    menu.hidden = false;
    button.setAttribute("aria-expanded", "true");
    items()[0]?.focus();
  });
  menu.addEventListener("keydown", (event) => {
    const all = items(), at = all.indexOf(document.activeElement);
    const move = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (event.key === "Escape") close(true);
    else if (event.key === "Tab") close();
    else if (move !== undefined) all.at(move % all.length)?.focus();
    else return;
    if (event.key !== "Tab") event.preventDefault();
    event.stopPropagation();
  });
  menu.addEventListener("click", (event) => event.target.closest("[role=menuitem]") && close(true));
  document.addEventListener("click", (event) => !menu.contains(event.target) && close());
}

/** An item of a menu: a link where `action` is a URL. */
export function menuItem(name, text, action, download) {
  const parts = [icon(name), text];
  return typeof action === "string"
    ? element("a", { role: "menuitem", class: "button", href: action, download }, ...parts)
    : element("button", { role: "menuitem", type: "button", onclick: action }, ...parts);
}

/** Keyboard shortcuts of the page: {key: action}; not while something is typed or a dialog is open. */
export function shortcuts(keys) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if ($("dialog[open]") || event.target.closest("input:not([type=range]), select, textarea, [role=menu]")) return;
    const action = keys[event.key] ?? keys[event.key.toLowerCase()];
    if (action && action(event) !== false) event.preventDefault();
  });
}

/** `action`, once nothing more has been asked for `delay` milliseconds. */
export function settled(action, delay) {
  let timer = 0;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...args), delay);
  };
}

/** Let the browser save a Blob. */
export function save(blob, name) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

$("#theme").addEventListener("click", () => {
  const chosen = document.documentElement.dataset.theme;
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", document.documentElement.dataset.theme);
});
$("#help").addEventListener("click", () => $("#shortcuts").showModal());
shortcuts({ "?": () => $("#shortcuts").showModal() });
