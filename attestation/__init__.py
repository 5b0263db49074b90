"""Attestation evidence: what both sides speak, and how it is verified. No FastAPI, no OpenAI; `fetch` and `collect` are its edges to the world."""
