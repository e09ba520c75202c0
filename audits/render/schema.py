"""The JSON report: its schema, and the way from a report to JSON and back."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from assay.audits.render import tables
from assay.audits.terms import Check, Finding, Report, Verdict
from assay.audits.usage import BadUsage

VerdictName = Literal["PASS", "WAIVED", "UNKNOWN", "FAIL"]


class ReportError(BadUsage):
    """A report file that cannot be read; the message names the file and the place in it."""


Amount = Annotated[
    float | str, Field(description="A number at three significant digits, or text; nan, inf and -inf are text.")
]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FindingModel(_Model):
    """One law broken, with what shows it and one command that shows it again."""

    rule: str
    candidate: str
    operation: str
    case: str
    dtype: str
    where: str
    index: list[int] | None
    measured: Amount
    limit: Amount
    message: str
    repro: str
    fingerprint: str
    verdict: VerdictName
    cases_broken: int = Field(ge=1)
    waiver: str


class CheckModel(_Model):
    """How often one law was exercised on one candidate, and why it was not where it did not apply."""

    rule: str
    candidate: str
    exercised: int = Field(ge=0)
    inapplicable: dict[str, int]
    verdict: VerdictName


class CountsModel(_Model):
    """Findings by verdict, and checks by what became of them."""

    failed: int
    unknown: int
    waived: int
    checked: int
    exercised: int
    inapplicable: int


class ReportModel(_Model):
    """The truth of one run; every other output is a function of it."""

    schema_version: Literal[1]
    verdict: VerdictName
    counts: CountsModel
    filtered: bool
    request: dict[str, Any]
    environment: dict[str, str]
    checks: list[CheckModel]
    findings: list[FindingModel]

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> ReportModel:
        told = _to_report(self)
        if told.verdict.name != self.verdict:
            message = f"verdict says {self.verdict}, but its checks and findings come to {told.verdict.name}"
            raise ValueError(message)
        if tables.counts(told) != self.counts.model_dump():
            message = f"counts do not match the checks and findings, which come to {tables.counts(told)}"
            raise ValueError(message)
        return self


def canonical(report: Report) -> Report:
    """The same report as it is written: sorted, numbers at three significant digits where that tells them apart."""
    report = tables.legible(report)
    findings = (_rounded(finding) for finding in report.findings)
    return replace(
        report,
        findings=tuple(sorted(findings, key=tables.finding_key)),
        checks=tuple(sorted(report.checks, key=tables.check_key)),
        environment=dict(sorted(report.environment.items())),
        request=dict(sorted(report.request.items())),
    )


def _rounded(finding: Finding) -> Finding:
    if tables.digits(finding.measured, finding.limit) > tables.DIGITS:
        return finding  # rounding makes them one number
    return replace(finding, measured=_round(finding.measured), limit=_round(finding.limit))


def _round(value: float | str) -> float | str:
    """Numbers that JSON cannot write become their names."""
    if isinstance(value, str):
        return value
    return tables.rounded(value) if math.isfinite(value) else str(value)


def dump(report: Report) -> str:
    """The report as JSON: the same text for the same report, findings sorted, newline at the end."""
    told = canonical(report)
    fields = {
        "schema_version": 1,
        "verdict": told.verdict.name,
        "counts": tables.counts(told),
        "filtered": told.filtered,
        "request": dict(told.request),
        "environment": dict(told.environment),
        "checks": [_fields(check) for check in told.checks],
        "findings": [_fields(finding) for finding in told.findings],
    }
    model = ReportModel.model_validate(fields)
    return json.dumps(model.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _fields(item: Check | Finding) -> dict[str, Any]:
    fields = asdict(item) | {"verdict": item.verdict.name}
    if isinstance(item, Check):
        return fields | {"inapplicable": dict(sorted(item.inapplicable.items()))}
    return fields | {"index": None if item.index is None else list(item.index)}


def load(text: str, source: str = "report") -> Report:
    """Read a report from JSON. :class:`ReportError` names the place where it is broken."""
    try:
        return _to_report(ReportModel.model_validate(json.loads(text)))
    except json.JSONDecodeError as error:
        message = f"{source}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        raise ReportError(message) from error
    except ValidationError as error:
        raise ReportError("\n".join(f"{source}: {_problem(item)}" for item in error.errors())) from error


def _problem(error: Any) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"])
    place = "".join(parts).lstrip(".")
    return f"{place}: {error['msg']}" if place else str(error["msg"])


def _to_report(model: ReportModel) -> Report:
    return Report(
        findings=tuple(Finding(**_values(item)) for item in model.findings),
        checks=tuple(Check(**_values(item)) for item in model.checks),
        environment=model.environment,
        request=model.request,
        filtered=model.filtered,
    )


def _values(item: FindingModel | CheckModel) -> dict[str, Any]:
    fields = {name: getattr(item, name) for name in type(item).model_fields} | {"verdict": Verdict[item.verdict]}
    if isinstance(item, FindingModel):
        fields["index"] = None if item.index is None else tuple(item.index)
    return fields


def json_schema() -> str:
    """The JSON schema of the report, as kept in ``docs/report.schema.json``."""
    return json.dumps(ReportModel.model_json_schema(mode="serialization"), indent=2) + "\n"
