"""Clients that are copied, forked, given other parts, dropped or left open; and what they gave out, kept elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.client_sdk.running import VERSIONS, Run, running
from tests.servers import LiveGateway


@pytest.fixture(scope="module", params=VERSIONS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs cases of `lives.py` under a version of openai."""
    with running(request.param, "lives", tmp_path_factory.mktemp("lives")) as call:
        yield call


SAID = "You said: hello you there"
LIVES = {
    "left_open": SAID,
    "forked": [0, SAID],
    "abandoned": [True, SAID],
    "copies": [SAID, SAID, SAID],
    "hooked": [SAID, ["a", 200]],
    "named_by_environment": SAID,
    "files": ["complete"] * 4,
    "pages": [False, ["fake-model"]],
    "kept_elsewhere": [True] * 4,
    "refused_elsewhere": [True] * 3,
    "helper": SAID,
    "given_up": ["CancelledError", SAID],
}


def test_what_programs_do_with_clients(run: Run, gateway: LiveGateway) -> None:
    """As with OpenAI's classes: no warning, no open file that nobody wants, no hang at the end of the program.

    What would lead around the attested way is refused, also in the middle of a client's life.
    """
    refused = ("another_http_client", "another_address")
    answers = run(gateway.url, gateway.policy_text, *LIVES, *refused)
    assert {answers.pop(case).get("check") for case in refused} == {"channel.unprotected"}
    assert answers == {case: {"result": expected} for case, expected in LIVES.items()}
