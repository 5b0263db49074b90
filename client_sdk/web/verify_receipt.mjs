// Verifies receipts (docs/protocol.md, section 4) with nothing but WebCrypto: Node 20 or later, and browsers with Ed25519.
//
//     node client_sdk/web/verify_receipt.mjs docs/vectors/receipt.json docs/vectors/binding.json
//
// The key, the statement's digest and the model's digest that it takes must come from a *verified* evidence document. This
// file does not verify evidence, and compares no clock. `verifyExchange` throws a Refused that names the check, or returns the
// receipt's claims; of these, only the outcome `complete` says that the answer is whole.

const utf8 = new TextEncoder();
const COMMENT = ": attested ";
const MAX_RECEIPT = 16 * 1024;
const HEX64 = /^[0-9a-f]{64}$/;

export class Refused extends Error {
  constructor(check, detail) {
    super(`[${check}] ${detail}`);
    this.check = check;
  }
}

const refuse = (check, detail) => {
  throw new Refused(check, detail);
};
const hex = (bytes) => Array.from(new Uint8Array(bytes), (b) => b.toString(16).padStart(2, "0")).join("");
const unhex = (text) => Uint8Array.from(text.match(/../g) ?? [], (pair) => parseInt(pair, 16));
const hash = async (name, ...parts) => new Uint8Array(await crypto.subtle.digest(name, await new Blob(parts).arrayBuffer()));

function base64url(text) {
  let bytes;
  try {
    bytes = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
  } catch {
    refuse("receipt.format", "not base64url");
  }
  const again = btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
  return again === text ? bytes : refuse("receipt.format", "not base64url without padding, in its one spelling");
}

function json(bytes) {
  try {
    const value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
    if (value !== null && typeof value === "object" && !Array.isArray(value)) return value;
  } catch {
    // refused below
  }
  return refuse("receipt.format", "not a JSON object");
}

const isCount = (value) => Number.isSafeInteger(value) && value >= 0;

/** The claims in `token`, signed by the raw Ed25519 `key`. */
export async function verifyReceipt(token, key) {
  const parts = token.split(".");
  if (token.length > MAX_RECEIPT || parts.length !== 3) refuse("receipt.format", "not a compact JWS of at most 16 KiB");
  const [header, payload, signature] = parts.map(base64url);
  const { alg, typ, ...more } = json(header);
  if (alg !== "EdDSA" || typ !== "attested-receipt+jwt" || Object.keys(more).length) {
    refuse("receipt.format", "another header");
  }
  const signer = await crypto.subtle.importKey("raw", key, { name: "Ed25519" }, false, ["verify"]);
  const signed = utf8.encode(`${parts[0]}.${parts[1]}`);
  if (!(await crypto.subtle.verify("Ed25519", signer, signature, signed))) {
    refuse("receipt.signature", "not signed by the receipt key of the verified statement");
  }
  const claims = json(payload);
  const { request, response, model } = claims;
  const digests = [request?.digest, response?.digest, model?.digest, claims.statement];
  const counts = [request?.length, response?.length, response?.status, claims.time];
  if (!digests.every((d) => typeof d === "string" && HEX64.test(d)) || !counts.every(isCount)) {
    refuse("receipt.format", "claims are missing or of another type");
  }
  return claims;
}

/** A stream's body, taken apart: the bytes before each receipt, and the receipts; a stream ends with one. */
function* receiptsOf(body) {
  let covered = "";
  let ended = true;
  for (const block of body.split(/(?<=\n\n)/)) {
    const text = block.replace(/^\n+/, "");
    ended = text.startsWith(COMMENT) && text.endsWith("\n\n");
    covered += ended ? block.slice(0, block.length - text.length) : block;
    if (ended) yield [covered, text.slice(COMMENT.length, -2)];
  }
  if (!ended) yield [covered, null];
}

/** The claims about this exchange. `seen`: method, path, nonce (hex), request, status, stream, response, receipt. */
export async function verifyExchange(seen, { key, statement, model }) {
  if (!seen.stream) {
    return checked(seen, seen.response, await verifyReceipt(seen.receipt, key), statement, model);
  }
  const found = [...receiptsOf(seen.response)];
  let last = null;
  let checkpoints = 0;
  for (const [covered, token] of found) {
    if (token === null) {
      refuse(last && last.outcome !== "checkpoint" ? "receipt.response" : "stream.truncated", "no receipt at the end");
    }
    if (last && last.outcome !== "checkpoint") refuse("receipt.response", "bytes follow the receipt");
    const claims = await verifyReceipt(token, key);
    const number = claims.outcome === "checkpoint" ? ++checkpoints : checkpoints;
    if ((claims.checkpoints ?? 0) !== number || (last && claims.id !== last.id)) {
      refuse("stream.checkpoint", "a checkpoint was dropped, moved or repeated");
    }
    last = await checked(seen, covered, claims, statement, model);
  }
  return last.outcome === "checkpoint" ? refuse("stream.truncated", "a checkpoint is not the end") : last;
}

async function checked(seen, body, claims, statement, model) {
  if (claims.statement !== statement) refuse("receipt.statement", "another statement");
  const nonce = unhex(seen.nonce);
  const { request, response } = claims;
  const sent = utf8.encode(seen.request);
  const asked = claims.outcome === "error" ? sent.slice(0, request.length) : sent; // a refusal covers what was read
  const askedDigest = hex(await hash("SHA-256", nonce, asked));
  const same = request.method === seen.method && request.path === seen.path && request.length === asked.length;
  if (!same || request.digest !== askedDigest) refuse("receipt.request", "another request");
  if (response.status !== seen.status) refuse("receipt.status", "another status");
  const told = utf8.encode(body);
  const toldDigest = hex(await hash("SHA-256", nonce, told));
  if (response.length !== told.length || response.digest !== toldDigest) refuse("receipt.response", "another answer");
  if (claims.model.digest !== model) refuse("receipt.model", "another model");
  if ((claims.outcome === "error") !== seen.status >= 400) refuse("receipt.outcome", "the outcome is not the status's");
  return claims;
}

/** The 64 bytes that the hardware must have signed, and the nonce that the GPUs must have been asked with (section 2). */
export async function bindings(nonce, statement, gpuEvidence, gpuToken = new Uint8Array()) {
  const digest = await hash("SHA-256", statement);
  const evidence = await hash("SHA-256", gpuEvidence);
  const gpu = gpuToken.length ? await hash("SHA-256", evidence, await hash("SHA-256", gpuToken)) : evidence;
  return {
    statement_digest: hex(digest),
    report_data: hex(await hash("SHA-512", utf8.encode("attested-inference/report-data/v1\0"), nonce, digest, gpu)),
    gpu_nonce: hex(await hash("SHA-256", utf8.encode("attested-inference/gpu-nonce/v1\0"), nonce, digest)),
  };
}

/** The claim `tokens`: a digest over the token ids of an answer. `choices`: for each, the ids of its prompt and of its output. */
export async function tokenDigest(nonce, choices) {
  const packed = (ids) => {
    const view = new DataView(new ArrayBuffer(4 * ids.length));
    ids.forEach((id, at) => view.setUint32(4 * at, id));
    return view;
  };
  const parts = await Promise.all(choices.flat().map((ids) => hash("SHA-256", packed(ids))));
  return hex(await hash("SHA-256", utf8.encode("attested-inference/tokens/v1\0"), nonce, ...parts));
}

async function outcome(seen, trusted) {
  try {
    await verifyExchange(seen, trusted);
    return "accepted";
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    return error.check;
  }
}

async function main([receiptFile, bindingFile]) {
  const { readFile } = await import("node:fs/promises");
  const read = async (file) => JSON.parse(await readFile(file, "utf-8"));
  const results = [];
  const vectors = await read(receiptFile);
  const trusted = { key: unhex(vectors.key), statement: vectors.statement, model: vectors.model };
  for (const seen of vectors.accepted) results.push([seen.name, "accepted", await outcome(seen, trusted)]);
  for (const seen of vectors.refused) results.push([seen.name, seen.check, await outcome(seen, trusted)]);
  for (const one of bindingFile ? (await read(bindingFile)).cases : []) {
    const found = await bindings(unhex(one.nonce), utf8.encode(one.statement), utf8.encode(one.gpu_evidence));
    for (const [name, value] of Object.entries(found)) results.push([`${one.name}: ${name}`, one[name], value]);
  }
  for (const one of vectors.tokens) {
    results.push([`token ids, ${one.name}`, one.digest, await tokenDigest(unhex(one.nonce), one.choices)]);
  }
  for (const [name, expected, found] of results) {
    console.log(`${expected === found ? "ok  " : "FAIL"} ${name}: ${found}${expected === found ? "" : `, expected ${expected}`}`);
  }
  process.exitCode = results.every(([, expected, found]) => expected === found) ? 0 : 1;
}

if (typeof process !== "undefined" && process.argv[1]?.endsWith("verify_receipt.mjs")) await main(process.argv.slice(2));
