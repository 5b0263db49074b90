"""Evidence as other providers publish it: `formats` recognises it, `judge` decides; `docs/other-providers.md` says what each proves."""
