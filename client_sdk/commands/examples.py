"""What `--help` shows below the options: how each command is typed. A test holds every line to the commands there are."""

from __future__ import annotations

EXIT_CODES = (
    "Exit codes: 0 accepted · 2 malformed · 3 not authentic · 4 refused by the policy · "
    "5 could not decide · 64 wrong usage."
)
_DIFFERS = "1 something differs"
OWN_CODES = {"diff": _DIFFERS, "explain": _DIFFERS}  # of commands that compare and decide nothing

EXAMPLES: dict[str, tuple[str, ...]] = {
    "verify": (
        "attested verify https://enclave:8443 --policy policy.toml",
        "attested verify https://balancer --policy policy.toml --channel sealed --json",
        "attested verify https://inference.example --provider tinfoil",
    ),
    "chat": (
        "attested chat https://enclave:8443 --policy policy.toml 'Why is the sky blue?'",
        "attested chat https://enclave:8443 --policy policy.toml --save answer.json < prompt.txt",
    ),
    "proxy": (
        "attested proxy https://enclave:8443 --policy policy.toml",
        "attested proxy https://a:8443 https://b:8443 --policy policy.toml --verify before-use",
    ),
    "env": ('eval "$(attested env)"', "attested env --shell fish | source"),
    "doctor": (
        "attested doctor https://enclave:8443 --policy policy.toml",
        "attested doctor https://enclave:8443 --vendors --json",
    ),
    "provision": (
        "attested provision https://enclave:8443 --policy policy.toml --key owner.pem --secret key_pepper=pepper",
        "attested provision https://enclave:8443 --policy policy.toml --key owner.pem --secret database_url=url --json",
    ),
    "audit": (
        "attested audit answer.json --policy policy.toml",
        "attested audit saved/ --policy policy.toml --json",
    ),
    "log check": (
        "attested log check https://enclave:8443 --policy policy.toml",
        "attested log check https://log.example/receipts --key 'log.example/receipts+<id>+<base64>' --json",
    ),
    "log prove": ("attested log prove answer.json https://enclave:8443 --wait 5",),
    "disclose": ("attested disclose answer.json --message 1 -o shown.json",),
    "replay": ("attested replay answer.json --policy policy.toml --engine https://other:8443",),
    "report": ("attested report answer.json --policy policy.toml -o report.html",),
    "lock": (
        "attested lock https://enclave:8443 -o attest.lock",
        "attested lock https://enclave:8443 --policy policy.toml -o attest.lock --yes",
    ),
    "diff": ("attested diff old.lock attest.lock",),
    "inspect": ("attested inspect quote.bin", "attested inspect evidence.json --json"),
    "explain": (
        "attested explain evidence.json --refs refs.json",
        "attested explain quote.bin --log ccel.bin --policy policy.toml --json",
    ),
    "evidence tdx": (
        "attested evidence tdx quote.bin --collateral pcs.json --at 2026-11-21T00:00:00Z",
        "attested evidence tdx quote.hex --collateral pcs.json --policy policy.toml --json",
    ),
    "evidence snp": (
        "attested evidence snp report.bin --collateral kds.json",
        "attested evidence snp report.bin --vek vcek.der --chain cert_chain.pem --crl crl.der",
    ),
    "evidence nitro": ("attested evidence nitro document.cbor --policy policy.toml",),
    "evidence azure": ("attested evidence azure evidence.json --nonce 00ff --collateral pcs.json",),
    "evidence nvidia": ("attested evidence nvidia gpus.json --nonce 00ff --rim rim.xml --ocsp ocsp.der",),
    "evidence nvidia-token": ("attested evidence nvidia-token token.jwt --jwks keys.json --nonce 00ff",),
    "evidence foreign": (
        "attested evidence foreign report.json --nonce 00ff",
        "attested evidence foreign document.json --tls server.pem --collateral kds.json --offline",
    ),
    "policy explain": ("attested policy explain policy.toml",),
    "policy check": ("attested policy check policy.toml --json",),
    "collateral fetch": (
        "attested collateral fetch quote.bin -o pcs.json",
        "attested collateral fetch report.bin -o kds.json --cache ~/.cache/attested",
    ),
}


def epilog(name: str) -> str:
    """The end of a command's help: its examples, and what its exit code says."""
    lines = EXAMPLES.get(name, ())
    head = [f"Example{'s' if len(lines) > 1 else ''}:"] if lines else []
    codes = EXIT_CODES
    if name in OWN_CODES:
        codes = EXIT_CODES.replace("0 accepted", f"0 nothing differs · {OWN_CODES[name]}")
    return "\n\n".join([*head, *(f"  {line}" for line in lines), codes])
