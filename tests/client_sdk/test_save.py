"""An answer of the SDK can be saved, and what was saved holds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from attestation.audit import audit
from attestation.bundle import parse_bundle
from attestation.receipt import verify_receipt
from client_sdk.receipts import Attestation, PlainCheck, check_answer
from client_sdk.streams import StreamCheck
from tests.client_sdk.pretend import ANSWER, EVENTS, NOW, POLICY, PretendEnclave, stream_headers
from tests.client_sdk.test_cli import attested
from tests.servers import LiveGateway

ENCLAVE = PretendEnclave()


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("with_bytes", [False, True])
def test_an_answer_of_the_sdk_can_be_saved(tmp_path: Path, streamed: bool, with_bytes: bool) -> None:
    """What `Attestation.save` writes holds."""
    exchange = ENCLAVE.exchange()
    check: PlainCheck | StreamCheck
    events = b"".join(EVENTS)
    if streamed:
        check = check_answer(exchange, 200, stream_headers(exchange))
        assert isinstance(check, StreamCheck)
        list(check.feed(events + ENCLAVE.comment(exchange, events), NOW))
    else:
        check = check_answer(exchange, 200, ENCLAVE.headers(exchange, ANSWER))
        assert isinstance(check, PlainCheck)
        check.feed(ANSWER)
    answer = Attestation(exchange.verdict, check)
    with pytest.raises(ValueError, match="to its end"):
        answer.save(tmp_path / "too-early")
    check.finish(NOW)
    before = os.umask(0)
    try:
        answer.save(tmp_path / "bundle.json", with_bytes=with_bytes)
    finally:
        os.umask(before)
    assert (tmp_path / "bundle.json").stat().st_mode & 0o777 == 0o600
    bundle = parse_bundle((tmp_path / "bundle.json").read_bytes())
    (audited,) = audit(bundle, POLICY).exchanges
    assert audited.response_compared is with_bytes
    assert (bundle.exchanges[0].response or b"") == (events if streamed else ANSWER) * with_bytes
    key = exchange.verdict.statement.keys.receipt_ed25519
    assert verify_receipt(bundle.exchanges[0].receipt, key) == answer.receipt


def test_a_chat_is_saved_and_audited(tmp_path: Path, gateway: LiveGateway) -> None:
    """From the real gateway, through the command line, to a file that holds."""
    file, bundle = tmp_path / "policy.toml", tmp_path / "bundle.json"
    file.write_text(gateway.policy_text)
    done = attested("chat", gateway.origin, "--policy", str(file), "hello you", "--save", str(bundle))
    assert done.returncode == 0, done.stderr
    done = attested("audit", str(bundle), "--policy", str(file))
    assert done.returncode == 0, done.stdout
    assert "complete: 1" in done.stdout
    (exchange,) = parse_bundle(bundle.read_bytes()).exchanges
    assert exchange.response is not None
    assert exchange.response.endswith(b"data: [DONE]\n\n")


def test_one_message_of_a_chat_is_shown(tmp_path: Path, gateway: LiveGateway) -> None:
    """From the real gateway to a file that shows the question, hides the answer, and holds."""
    policy, bundle, shown = (tmp_path / name for name in ("policy.toml", "bundle.json", "shown.json"))
    policy.write_text(gateway.policy_text)
    saved = ("--save", str(bundle))
    done = attested("chat", gateway.origin, "--policy", str(policy), "hello you", *saved)
    assert done.returncode == 0, done.stderr
    done = attested("disclose", str(bundle), "--message", "0", "-o", str(shown))
    assert done.returncode == 0, done.stderr
    assert "1 message(s) and 0 choice(s) shown, 0 and 1 hidden" in done.stdout
    done = attested("audit", str(shown), "--policy", str(policy))
    assert done.returncode == 0, done.stdout
    assert 'message 0: {"role":"user","content":"hello you"}' in done.stdout.replace('": "', '":"')
    assert "hidden: choice 0" in done.stdout
    assert "You said" not in done.stdout
    assert parse_bundle(bundle.read_bytes()).exchanges[0].nonce not in shown.read_bytes()
