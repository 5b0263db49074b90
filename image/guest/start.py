"""Process 1 in the root: network, rules, model, and then the gateway for as long as it runs."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # python -I looks nowhere of its own

from image.guest.linux import power_off, say

if __name__ == "__main__":
    say("REFUSED start: expected the gateway, found nothing that starts it yet")
    power_off()
