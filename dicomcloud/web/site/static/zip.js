// A ZIP archive (APPNOTE 6.3) of stored, uncompressed files, up to 4 GB.

const TABLE = Uint32Array.from({ length: 256 }, (_, start) => {
  let word = start;
  for (let bit = 0; bit < 8; bit += 1) word = word & 1 ? (word >>> 1) ^ 0xedb88320 : word >>> 1;
  return word >>> 0;
});

function crc32(bytes) {
  let sum = 0xffffffff;
  for (const byte of bytes) sum = TABLE[(sum ^ byte) & 0xff] ^ (sum >>> 8);
  return (sum ^ 0xffffffff) >>> 0;
}

/** Little endian numbers of 2 or 4 bytes: [[2, value], [4, value], …]. */
function packed(fields) {
  const view = new DataView(new ArrayBuffer(fields.reduce((sum, [width]) => sum + width, 0)));
  let at = 0;
  for (const [width, number] of fields) {
    if (width === 2) view.setUint16(at, number, true);
    else view.setUint32(at, number, true);
    at += width;
  }
  return new Uint8Array(view.buffer);
}

export class Zip {
  #parts = [];
  #directory = [];
  #length = 0;

  get size() {
    return this.#directory.length;
  }

  add(name, bytes) {
    const encoded = new TextEncoder().encode(name);
    if (this.#length + bytes.length > 0xfff00000) throw new Error("more than 4 GB; take series by series");
    const about = [[2, 20], [2, 0x0800], [2, 0], [2, 0], [2, 0x21], [4, crc32(bytes)], [4, bytes.length], [4, bytes.length], [2, encoded.length], [2, 0]];
    const head = packed([[4, 0x04034b50], ...about]);
    this.#directory.push([packed([[4, 0x02014b50], [2, 20], ...about, [2, 0], [2, 0], [2, 0], [4, 0], [4, this.#length]]), encoded]);
    this.#parts.push(head, encoded, new Blob([bytes]));
    this.#length += head.length + encoded.length + bytes.length;
  }

  blob() {
    const entries = this.#directory.flat();
    const size = entries.reduce((sum, part) => sum + part.length, 0);
    const end = packed([[4, 0x06054b50], [2, 0], [2, 0], [2, this.size], [2, this.size], [4, size], [4, this.#length], [2, 0]]);
    return new Blob([...this.#parts, ...entries, end], { type: "application/zip" });
  }
}
