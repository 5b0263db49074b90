"""`attested report`: a page that loads nothing, tells no more than it must, and checks its signatures again in a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from attestation.binding import report_data
from attestation.bundle import SavedExchange, dump_bundle
from attestation.evidence import TdxEvidence, dump_evidence
from client_sdk.commands import report as report_command
from client_sdk.exits import ExitCode
from tests.client_sdk.browser import Browser, opened
from tests.client_sdk.pretend import ANSWER, NOW, POLICY, SIMULATOR
from tests.client_sdk.test_audit_cli import ENCLAVE, EXCHANGE, GOOD
from tests.client_sdk.test_cli import Done, attested


@pytest.fixture(autouse=True)
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A policy that accepts the pretended enclave; its simulator's root is known to this process alone."""
    monkeypatch.setattr(report_command, "load_policy", lambda _: POLICY)
    return tmp_path / "policy.toml"


def page(tmp_path: Path, *options: str, bundle: bytes = dump_bundle(GOOD)) -> tuple[Done, str]:
    file, out = tmp_path / "b.json", tmp_path / "report.html"
    file.write_bytes(bundle)
    done = attested("report", str(file), "--policy", "p", "-o", str(out), *options)
    return done, out.read_text() if out.exists() else ""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with opened(tmp_path_factory.mktemp("browser")) as running:
        yield running


def shown(browser: Browser, tmp_path: Path, html: str, seconds: float = 120) -> str:
    """The page's DOM after its script has said what it found, or has had its time."""
    file = tmp_path / "opened.html"
    file.write_text(html)
    return browser.dom(file, "document.documentElement.dataset.checked !== undefined", seconds)


def rows(dom: str) -> dict[str, str]:
    """The page's own checks, by name."""
    table = re.search(r'<table id="checks">(.*?)</table>', dom, re.DOTALL)
    assert table is not None
    return dict(re.findall(r"<td>([a-z_.]+)</td><td class=\"\w+\">(.*?)</td>", table[1]))


@pytest.mark.parametrize("options", [(), ("--content",)])
def test_it_holds_in_a_browser(browser: Browser, tmp_path: Path, options: tuple[str, ...]) -> None:
    """Chromium runs the page's script under the page's own policy, and finds what the program found."""
    done, html = page(tmp_path, *options)
    assert done.returncode == 0
    dom = shown(browser, tmp_path, html)
    assert 'data-checked="accepted"' in dom
    found = rows(dom)
    assert list(found) == [
        "binding.report_data",
        "receipt.signature",
        "receipt.statement",
        "receipt.response",
    ]
    said = "checked: " if options else "not here: "
    assert found.pop("receipt.response").startswith(said)
    assert all(text.startswith("checked: ") for text in found.values())


def test_it_holds_where_a_service_vouched_for_gpus(browser: Browser, tmp_path: Path) -> None:
    """What the hardware signed covers the service's token too: the browser computes the same."""
    token, nonce = b'["a token that this policy does not need"]', GOOD.nonce
    bound = report_data(nonce, ENCLAVE.statement, b"", token)
    vouched = replace(ENCLAVE.evidence(nonce), cpu=TdxEvidence(SIMULATOR.quote(bound)), gpu_token=token)
    good = replace(GOOD, evidence=dump_evidence(vouched))
    done, html = page(tmp_path, bundle=dump_bundle(good))
    assert done.returncode == 0, done.stderr
    dom = shown(browser, tmp_path, html)
    assert rows(dom)["binding.report_data"].startswith("checked: ")
    assert 'data-checked="accepted"' in dom


@pytest.mark.parametrize(
    ("find", "put", "check"),
    [
        (r'"receipt": "([^."]+\.[^."]{30})(.)', "x", "receipt.signature"),
        (r'(\\"source\\":\\")(.)', "Z", "binding.report_data"),
        (r'"response": "(.{3})(.)', "Z", "receipt.response"),
        (r'"nonce": "(.{5})(.)', "", "binding.report_data"),
    ],
    ids=["receipt", "statement", "answer", "nonce"],
)
def test_an_altered_page_says_so(browser: Browser, tmp_path: Path, find: str, put: str, check: str) -> None:
    """Whoever alters the page's data and not its script is caught by the script, by the check's name."""
    _, html = page(tmp_path, "--content")
    data = re.search(r"id=data>(.*?)</script>", html, re.DOTALL)
    assert data is not None
    where = re.search(find, data[1])
    assert where is not None
    start = data.start(1) + where.start(2)
    other = put if put and html[start] != put else ("0" if html[start] != "0" else "1")
    dom = shown(browser, tmp_path, html[:start] + other + html[start + 1 :])
    assert 'data-checked="refused"' in dom
    assert rows(dom)[check].startswith("REFUSED: ")


def test_another_script_does_not_run(browser: Browser, tmp_path: Path) -> None:
    """The page's policy names its script by digest: an altered one leaves the page at `not checked yet`."""
    _, html = page(tmp_path)
    other = html.replace("await checkAgain();", "document.documentElement.dataset.checked = 'accepted';")
    dom = shown(browser, tmp_path, other, seconds=2)
    assert "data-checked=" not in dom
    assert "Not checked yet" in dom


class _Loads(HTMLParser):
    """Whatever in a page could load something or lead elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        wanted = {"src", "href", "action", "data", "poster", "srcset", "style"}
        self.found += [f"{tag} {name}" for name, _ in attrs if name in wanted or name.startswith("on")]


def test_it_loads_nothing(tmp_path: Path) -> None:
    """No address, no handler and no inline style in the page, and a policy that would forbid them."""
    _, html = page(tmp_path, "--content")
    loads = _Loads()
    loads.feed(html)
    assert loads.found == []
    assert "default-src 'none'" in html


def test_without_content_nothing_of_it_is_told(tmp_path: Path) -> None:
    """Neither request nor answer, nor the nonce that would let somebody try guesses."""
    _, html = page(tmp_path)
    exchange = GOOD.exchanges[0]
    assert exchange.request is not None
    for secret in (exchange.request.decode(), ANSWER.decode(), exchange.nonce.hex()):
        assert secret not in html
        assert json.dumps(secret)[1:-1] not in html


def test_text_from_strangers_stays_text(browser: Browser, tmp_path: Path) -> None:
    """Markup in an answer is shown, not obeyed: not by the page, nor by the script that reads its data."""
    answer = b'</script><script>document.title = "taken"</script><img src=x>'
    time = int(NOW.timestamp())
    exchange = SavedExchange(
        receipt=ENCLAVE.receipt(EXCHANGE, answer, time=time),
        nonce=EXCHANGE.nonce,
        request=EXCHANGE.body,
        response=answer,
    )
    _, html = page(tmp_path, "--content", bundle=dump_bundle(replace(GOOD, exchanges=(exchange,))))
    dom = shown(browser, tmp_path, html)
    assert 'data-checked="accepted"' in dom
    assert "<title>taken" not in dom
    assert "<img" not in html


def test_what_does_not_hold_makes_no_page(tmp_path: Path) -> None:
    """A bundle that is refused leaves its check on standard error, and no file."""
    exchange = replace(GOOD.exchanges[0], response=b"{}")
    done, html = page(tmp_path, bundle=dump_bundle(replace(GOOD, exchanges=(exchange,))))
    assert done.returncode == ExitCode.NOT_AUTHENTIC
    assert "[receipt.response]" in done.stderr
    assert html == ""


def test_digests_alone_have_no_content(tmp_path: Path) -> None:
    """--content asks for bytes that must be there."""
    exchange = replace(GOOD.exchanges[0], response=None)
    done, html = page(tmp_path, "--content", bundle=dump_bundle(replace(GOOD, exchanges=(exchange,))))
    assert done.returncode == ExitCode.MALFORMED
    assert "without --content" in done.stderr
    assert html == ""


def test_a_report_for_programs(tmp_path: Path) -> None:
    """--json prints one object; a page that cannot be written leaves the question open."""
    done, _ = page(tmp_path, "--json")
    assert json.loads(done.stdout) == {
        "file": str(tmp_path / "report.html"),
        "receipt": "r-0",
        "content": False,
    }
    done, _ = page(tmp_path, "-o", str(tmp_path))
    assert done.returncode == ExitCode.UNDECIDED


def test_no_such_exchange(tmp_path: Path) -> None:
    """A number beyond the bundle's exchanges is wrong usage."""
    done, _ = page(tmp_path, "--exchange", "7")
    assert done.returncode == ExitCode.USAGE
