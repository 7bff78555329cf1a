// The page of a link to de-identified copies: a picture of each series of which there is one.

import { $, element } from "./page.js";

const MOST = 24;
const list = $("#previews");
const { series, address } = list.dataset;

for (let number = 1; number <= Math.min(Number(series), MOST); number += 1) {
  const image = element("img", { alt: `Series ${number}`, width: 128, height: 128, decoding: "async" });
  const item = element("li", {}, image);
  image.addEventListener("load", () => { list.hidden = false; });
  image.addEventListener("error", () => item.remove()); // nothing of it may be shown
  image.src = `${address}${number}`;
  list.append(item);
}
