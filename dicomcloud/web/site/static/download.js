// Downloads: links to the server's own answers, and a ZIP archive of de-identified instances that is put together here.

import { count, deidentifiedUrl, instanceUrl, request, searchAll, seriesUrl, studyUrl, value } from "./api.js";
import { alert, element, menuItem, save, toast, working } from "./page.js";
import { kindOf } from "./picture.js";
import { Zip } from "./zip.js";

const ZIP = "accept=application/zip";
const AS_STORED = "accept=application/dicom;transfer-syntax=*";

/** The items of the download menu for what is shown. */
export function downloads({ study, series, instance, all, attributes, picture }) {
  const one = instanceUrl(study, series.uid, instance.uid);
  const name = fileName(series, instance);
  const items = [
    element("h3", {}, "This study"),
    menuItem("archive", "DICOM files (ZIP)", `${studyUrl(study)}?${ZIP}`, "study.zip"),
    menuItem("archive", "For a CD, with DICOMDIR (ZIP)", `${studyUrl(study)}?${ZIP}&dicomdir=yes`, "study.zip"),
    menuItem("shield", "De-identified (ZIP)", () => deidentified(study, all)),
  ];
  if (all.length > 1) {
    items.push(
      element("h3", {}, "This series"),
      menuItem("archive", "DICOM files (ZIP)", `${seriesUrl(study, series.uid)}?${ZIP}`, "series.zip"),
      menuItem("shield", "De-identified (ZIP)", () => deidentified(study, [series])),
    );
  }
  items.push(element("h3", {}, "This image"), menuItem("file", "DICOM", `${one}?${AS_STORED}`, `${name}.dcm`));
  if (kindOf(attributes) === "image") {
    const address = picture.address();
    const joint = address.includes("?") ? "&" : "?";
    items.push(
      menuItem("image", "JPEG, as shown", `${address}${joint}accept=image/jpeg`, `${name}.jpg`),
      menuItem("image", "PNG, as shown", `${address}${joint}accept=image/png`, `${name}.png`),
    );
  } else items.push(menuItem("document", "Document or film", `${one}/rendered`, name));
  items.push(menuItem("shield", "De-identified DICOM", deidentifiedUrl(study, series.uid, instance.uid), "deidentified.dcm"));
  return items;
}

/** Numbers only: a file name is no place for a patient's name. */
function fileName(series, instance) {
  return [series.modality || "image", series.number, instance.number].filter((part) => part !== null && part !== "").join("-");
}

/** De-identify one instance after the other. One that cannot be (text may be burned into it) is left out, and told of. */
async function deidentified(study, chosen) {
  const progress = working("De-identifying");
  const zip = new Zip(), reasons = new Set();
  let left = 0;
  try {
    for (const series of chosen) series.copies = await instancesOf(study, series);
    const all = chosen.reduce((sum, series) => sum + series.copies.length, 0);
    for (const [place, series] of chosen.entries()) {
      for (const [at, uid] of series.copies.entries()) {
        try {
          const answer = await request(deidentifiedUrl(study, series.uid, uid));
          const folder = `S${String(place + 1).padStart(6, "0")}`;
          zip.add(`DICOM/${folder}/I${String(at + 1).padStart(6, "0")}`, new Uint8Array(await answer.arrayBuffer()));
        } catch (error) {
          if (error.status !== 406) throw error;
          left += 1;
          reasons.add(error.message);
        }
        progress.step(zip.size + left, all);
      }
    }
    if (zip.size) save(zip.blob(), "deidentified.zip");
    if (zip.size) toast(`${count(zip.size, "image")} de-identified.`);
    if (left) alert(`${count(left, "image")} left out: ${[...reasons].join(" ")}`);
  } catch (error) {
    alert(`The study was not de-identified: ${error.message}`);
  } finally {
    progress.end();
  }
}

async function instancesOf(study, series) {
  if (series.instances) return series.instances.map((instance) => instance.uid);
  const rows = await searchAll(`/studies/${study}/series/${series.uid}/instances`);
  return rows.map((row) => value(row, "00080018"));
}
