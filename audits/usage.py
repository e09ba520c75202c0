"""The error that means: what was asked cannot be done as it was asked."""

from __future__ import annotations


class BadUsage(ValueError):  # noqa: N818 - it is a complaint to the caller, and reads as one where it is raised
    """Bad usage or configuration, exit status 2; the message says what is wrong, where, and what is possible."""
