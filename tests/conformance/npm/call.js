// One call of dicomweb-client: node call.js <service root> <method> < options as JSON
//
// `files` among the options become the `datasets` to store. Prints {result, sent}: what the call gave, binary values as
// {"base64": …}, or the failure; and the headers of each request as they went out. Run it in the folder of node_modules.
'use strict';

const { readFileSync } = require('node:fs');
const { createRequire } = require('node:module');
const { subscribe } = require('node:diagnostics_channel');

const installed = createRequire(`${process.cwd()}/`);
globalThis.XMLHttpRequest = installed('xhr2');
const { api } = installed('dicomweb-client');

const sent = [];
subscribe('http.client.request.start', ({ request }) => sent.push(request.getHeaders()));

const [root, method] = process.argv.slice(2);
const { files, client: settings, ...options } = JSON.parse(readFileSync(0, 'utf8'));
if (files) {
  options.datasets = files.map((path) => new Uint8Array(readFileSync(path)).buffer);
}

function plain(value) {
  if (value instanceof ArrayBuffer || ArrayBuffer.isView(value)) {
    return { base64: Buffer.from(value).toString('base64') };
  }
  return Array.isArray(value) ? value.map(plain) : value;
}

console.debug = () => {}; // the client's, which would go to the standard output
const client = new api.DICOMwebClient({ url: root, verbose: false, ...settings });
Promise.resolve()
  .then(() => client[method](options))
  .then((result) => ({ result: plain(result) }), (error) => ({ status: error.status, error: String(error) }))
  .then((outcome) => process.stdout.write(JSON.stringify({ ...outcome, sent })));
