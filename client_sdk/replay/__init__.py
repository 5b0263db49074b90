"""Asking again, and comparing token by token: `comparing` decides, `engine` asks; `docs/replay.md` has the terms."""
