// The DICOMweb services of this server, and the DICOM JSON Model. No page is touched here.

const { base, root, wado, login } = document.documentElement.dataset;
export { base, root, wado };

/** What went wrong, in words that can be shown. */
export class Fault extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Headers that every request carries: those of the session, where there is one. */
export function headers(more = {}) {
  const token = document.querySelector("meta[name=csrf-token]")?.content;
  const asked = { "X-Requested-With": "XMLHttpRequest", ...more }; // else a 401 opens the browser's own window
  return token ? { "X-CSRF-Token": token, ...asked } : asked;
}

/** fetch(), with faults as Fault. */
export async function request(url, options = {}) {
  let response;
  try {
    response = await fetch(url, { ...options, headers: headers(options.headers) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Fault(0, "The server cannot be reached. Is it running, and is the network up?");
  }
  if (!response.ok) throw await fault(response);
  return response;
}

async function fault(response) {
  if (response.status === 401) {
    if (login) location.assign(`${login}?next=${encodeURIComponent(location.pathname.slice(base.length) + location.search)}`);
    return new Fault(401, "Your session has ended. Please log in again.");
  }
  let message = "";
  try {
    message = (await response.json()).message ?? "";
  } catch { /* no JSON: the status has to do */ }
  return new Fault(response.status, message || `The server answered ${response.status} ${response.statusText}`);
}

/** QIDO-RS: {rows, total}. `parameters` with empty values are left out. */
export async function search(path, parameters = {}, options = {}) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== "" && value != null));
  const response = await request(`${root}${path}?${query}`, {
    headers: { Accept: "application/dicom+json" },
    ...options,
  });
  const rows = response.status === 204 ? [] : await response.json();
  return { rows, total: Number(response.headers.get("X-Total-Count") ?? rows.length) };
}

/** All results of a search, however many pages the server makes of them. */
export async function searchAll(path, parameters = {}) {
  const found = [];
  for (;;) {
    const { rows, total } = await search(path, { ...parameters, offset: found.length });
    found.push(...rows);
    if (!rows.length || found.length >= total) return found;
  }
}

/** The data set of one instance. */
export async function metadata(study, series, instance, options = {}) {
  const url = instanceUrl(study, series, instance) + "/metadata";
  return (await (await request(url, { headers: { Accept: "application/dicom+json" }, ...options })).json())[0];
}

export const studyUrl = (study) => `${root}/studies/${study}`;
export const seriesUrl = (study, series) => `${studyUrl(study)}/series/${series}`;
export const instanceUrl = (study, series, instance) => `${seriesUrl(study, series)}/instances/${instance}`;

/** WADO-URI address of a de-identified copy. */
export function deidentifiedUrl(study, series, instance) {
  const query = new URLSearchParams({
    requestType: "WADO", studyUID: study, seriesUID: series, objectUID: instance,
    contentType: "application/dicom", anonymize: "yes",
  });
  return `${wado}?${query}`;
}

// The DICOM JSON Model

export const values = (dataset, tag) => dataset[tag]?.Value ?? [];
export const value = (dataset, tag) => values(dataset, tag)[0] ?? "";
export const number = (dataset, tag) => {
  const found = Number(value(dataset, tag) || NaN);
  return Number.isFinite(found) ? found : null;
};

/** A person name for people: {main, other}; `other` has the ideographic and phonetic groups, if main is alphabetic. */
export function personName(dataset, tag = "00100010") {
  const name = value(dataset, tag) || {};
  const alphabetic = arranged(name.Alphabetic ?? "", ", ");
  const others = [name.Ideographic, name.Phonetic].filter(Boolean).map((group) => arranged(group, " "));
  const main = alphabetic || others.shift() || "";
  return { main, other: others.join(" · ") };
}

function arranged(group, separator) {
  const [family = "", given = "", middle = "", prefix = "", suffix = ""] = group.split("^").map((part) => part.trim());
  const first = [prefix, given, middle].filter(Boolean).join(" ");
  return [[family, first].filter(Boolean).join(separator), suffix].filter(Boolean).join(" ");
}

const dates = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeZone: "UTC" });

/** A DA value in the reader's own form; what is no date stays as it is. */
export function date(text) {
  const found = /^(\d{4})\.?(\d{2})\.?(\d{2})$/.exec(text ?? "");
  if (!found) return text ?? "";
  const moment = new Date(Date.UTC(+found[1], +found[2] - 1, +found[3]));
  return Number.isNaN(moment.getTime()) || moment.getUTCDate() !== +found[3] ? text : dates.format(moment);
}

const days = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", timeZone: "UTC" });

/** `2026-01-10` without its year. */
export const shortDate = (day) => days.format(new Date(`${day}T00:00:00Z`));

/** A TM value as HH:MM. */
export const time = (text) => /^\d{4}/.test(text ?? "") ? `${text.slice(0, 2)}:${text.slice(2, 4)}` : "";

export const sexes = { F: "female", M: "male", O: "other" };

const counts = new Intl.NumberFormat();
export const count = (amount, noun, plural = `${noun}s`) => `${counts.format(amount)} ${amount === 1 ? noun : plural}`;
export const figure = (amount) => counts.format(amount);

export function size(bytes) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (bytes >= 1000 && unit < units.length - 1) [bytes, unit] = [bytes / 1000, unit + 1];
  return `${bytes.toLocaleString(undefined, { maximumFractionDigits: bytes < 10 && unit ? 1 : 0 })} ${units[unit]}`;
}
