"""What an operator can mend: one line, and an exit status."""

from __future__ import annotations

from dataclasses import dataclass

MISSING = 77  # the exit status where a tool or a package source is not there: a test that was skipped, not one that failed


@dataclass(eq=False)
class ImageError(Exception):
    """An image cannot be built, measured or booted."""

    detail: str
    advice: str = ""
    status: int = 1

    def __str__(self) -> str:
        return f"{self.detail}. {self.advice}" if self.advice else self.detail
