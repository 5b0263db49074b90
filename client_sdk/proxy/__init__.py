"""A local endpoint for programs that know nothing of attestation. `passing` is what it does; `docs/proxy.md` is how it is used."""
