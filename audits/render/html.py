"""The report as one HTML file that needs nothing else: no network, no scripts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from assay.audits.render import tables
from assay.audits.terms import Report

_TEMPLATE = Path(__file__).with_name("report.html.jinja")


def render(report: Report, pages: Mapping[str, str] | None = None) -> str:
    """The report as HTML. ``pages`` are manual pages by rule, shown in their findings."""
    report = tables.legible(report)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        report=report,
        groups=tables.groups(report),
        findings=tables.worst_first(report.findings),
        checks=sorted(report.checks, key=tables.check_key),
        environment=dict(sorted(report.environment.items())),
        pages=pages or {},
        tables=tables,
    )
