"""A verifying client for the gateway under test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.caller import Caller
from tests.servers import LiveGateway


@pytest.fixture
def caller(gateway: LiveGateway) -> Iterator[Caller]:
    """A client that has verified `gateway`."""
    with Caller(gateway.origin, gateway.policy_text) as verified:
        yield verified
