// Checks the report again, in this browser, with WebCrypto: what the enclave's hardware and key signed, and over which bytes.

const told = JSON.parse(document.getElementById("data").textContent);
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

/** The checks, in order: a name, the picture's box, what it says in words, and the work. Each throws when it fails. */
const CHECKS = [
  ["binding.report_data", "machine", "the hardware's evidence holds the digest of this statement", async () => {
    const found = hex(bytes(told.cpu).slice(told.reportDataAt, told.reportDataAt + 64));
    const gpus = [bytes(told.gpu), bytes(told.gpuToken)];
    const { report_data: expected } = await bindings(unhex(told.nonce), utf8.encode(told.statement), ...gpus);
    if (found !== expected) refuse("binding.report_data", `expected ${expected}, found ${found}`);
  }],
  ["receipt.signature", "receipt", "the receipt is signed by the key in this statement", async () => {
    await verifyReceipt(told.receipt, statementKey());
  }],
  ["receipt.statement", "statement", "the receipt names this statement, and its model", async () => {
    const claims = await verifyReceipt(told.receipt, statementKey());
    if (claims.statement !== hex(await hash("SHA-256", utf8.encode(told.statement)))) {
      refuse("receipt.statement", "another statement");
    }
    if (claims.model.digest !== JSON.parse(told.statement).model.digest) refuse("receipt.model", "another model");
  }],
  ["receipt.response", "exchange", "request and answer below are, byte for byte, those of the receipt", async () => {
    if (told.exchange === null) return "left out of this report; their digests were compared when it was made";
    const model = JSON.parse(told.statement).model.digest;
    const statement = hex(await hash("SHA-256", utf8.encode(told.statement)));
    const seen = { ...told.exchange, stream: false, receipt: told.receipt };
    await verifyExchange(seen, { key: statementKey(), statement, model });
  }],
];

function statementKey() {
  return unhex(JSON.parse(told.statement).keys.receipt_ed25519);
}

async function checkAgain() {
  let failed = 0;
  for (const [name, box, words, work] of CHECKS) {
    const row = document.getElementById("checks").insertRow();
    const [title, state] = [row.insertCell(), row.insertCell()];
    title.textContent = name;
    try {
      const note = await work();
      state.textContent = note ? `not here: ${words}: ${note}` : `checked: ${words}`;
      state.className = note ? "wait" : "good";
      if (!note) document.getElementById(box).classList.add("again");
    } catch (error) {
      failed += 1;
      state.textContent = `REFUSED: ${words}: ${error.message}`;
      state.className = "bad";
      document.getElementById(box).classList.add("refused");
    }
  }
  const summary = document.getElementById("summary");
  summary.textContent = failed
    ? `${failed} of ${CHECKS.length} checks failed in this browser: do not rely on this page.`
    : "Everything that a browser can check was checked again here, and holds.";
  summary.className = failed ? "bad" : "good";
  document.documentElement.dataset.checked = failed ? "refused" : "accepted";
}

await checkAgain();
