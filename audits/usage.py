"""The error that means: what was asked cannot be done as it was asked."""

from __future__ import annotations


class BadUsage(ValueError):
    """Bad usage or configuration, exit status 2; the message says what is wrong, where, and what is possible."""
