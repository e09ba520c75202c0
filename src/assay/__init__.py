"""Correctness audits for the components that train vision-language models."""

from __future__ import annotations

__version__ = "0.1.0"
