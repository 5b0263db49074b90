"""Attestation evidence: what both sides speak, and how it is verified. No FastAPI, no OpenAI, no network."""
