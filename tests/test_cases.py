"""Cases given as JSON: every field is held to its type and bounds, and what does not fit is bad usage that names it."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from assay.audits import cases, cli, registry
from assay.audits.render import schema
from assay.audits.render.example import FAR, REPORT
from assay.audits.terms import Operation


@pytest.mark.parametrize("operation", registry.operations().values(), ids=lambda operation: operation.name)
def test_every_named_case_fits_the_types_of_its_fields(operation: Operation) -> None:
    for case in operation.cases.values():
        assert cases.parse(operation, json.dumps(asdict(case))) == case
        cases.built(operation, json.dumps(asdict(case)), {}, operation.dtypes[0])


@pytest.mark.parametrize(
    ("operation", "case", "told"),
    [
        ("mrope.rotate", '{"tokens":-1}', "tokens: input should be greater than or equal to 0, got -1"),
        ("mrope.rotate", '{"tokens":"3"}', "tokens: input should be a valid integer, got '3'"),
        ("mrope.rotate", '{"tokens":1.5,"batch":true}', "batch: input should be a valid integer, got True; tokens: "),
        ("mrope.rotate", '{"sections":"abc"}', "sections: input should be a valid array, got 'abc'"),
        ("mrope.rotate", '{"sections":[1,-2]}', "sections[1]: input should be greater than or equal to 0, got -2"),
        ("mrope.rotate", '{"attention_scaling":NaN}', "attention_scaling: input should be a finite number, got nan"),
        ("mrope.rotate", '{"layout":"x"}', "layout: expected one of chunked, interleaved, alternating, even_odd, got"),
        (
            "mrope.tables",
            '{"memory":"x","base":0}',
            "base: input should be greater than 0, got 0; memory: expected one",
        ),
        ("mrope.positions", '{"rule":"qwen9"}', "rule: expected one of qwen2_vl, qwen2_5_vl, "),
        ("mrope.positions", '{"samples":["t1 q3"]}', "samples[0]: segment 'q3': expected tN, iHxW, "),
        ("mrope.positions", '{"samples":[]}', "samples: expected at least one sample, got []"),
        ("mrope.positions", '{"width":1}', "no field 'width'; there are: seed, rule, samples, "),
        ("mrope.model", '{"padding":"up"}', "padding: expected one of right, left, got 'up'"),
        ("patch", '{"content":"music"}', "content: expected one of text, image, all, got 'music'"),
    ],
)
def test_a_field_that_does_not_fit_is_named(operation: str, case: str, told: str) -> None:
    with pytest.raises(cases.BadCase, match=re.escape(f"case {case!r} does not fit Case of {operation}: ")) as caught:
        cases.parse(registry.operation(operation), case)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("operation", "case", "scope", "told"),
    [
        ("mrope.rotate", '{"sections":[1,2],"layout":"alternating"}', {}, "sections: alternating has 3 sections"),
        ("mrope.positions", '{"samples":["i3x5"]}', {}, "samples: expected heights and widths that are multiples of 2"),
        ("mrope.positions", '{"samples":["i3x5"]}', {"rule": "glm_image"}, ""),
        ("mrope.positions", '{"samples":["v3x4x4"]}', {"rule": "ernie4_5_vl_moe"}, "samples: expected one step or a "),
        ("mrope.positions", '{"samples":["t1","t2"],"padding":"none"}', {}, "padding: none needs rows of equal length"),
        ("mrope.positions", '{"samples":["a1"]}', {}, ""),  # a rule without audio: inapplicable, which the report says
    ],
)
def test_a_case_that_cannot_be_built_is_told(operation: str, case: str, scope: dict[str, Any], told: str) -> None:
    with pytest.raises(cases.BadCase, match=re.escape(told)) if told else nullcontext():
        cases.built(registry.operation(operation), case, scope, registry.operation(operation).dtypes[0])


@pytest.mark.parametrize(
    ("operation", "case", "told"),
    [
        ("mrope.rotate", '{"tokens":-1}', "tokens: input should be greater than or equal to 0, got -1"),
        ("mrope.positions", '{"samples":["i3x5"]}', "samples: expected heights and widths that are multiples of 2"),
    ],
)
def test_a_case_that_does_not_fit_is_bad_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], operation: str, case: str, told: str
) -> None:
    """Of the audit, and of a report's command that is run again: never a checker that failed."""
    assert cli.run(["audit", operation, "--candidate", "reference", "--case", case]) == cli.USAGE
    assert told in capsys.readouterr().err
    finding = replace(FAR, repro=f"assay audit {operation} --candidate reference --case '{case}'")
    path = tmp_path / "report.json"
    path.write_text(schema.dump(replace(REPORT, findings=(finding,), checks=())), encoding="utf-8")
    assert cli.run(["repro", finding.fingerprint, "--report", str(path)]) == cli.USAGE
    assert told in capsys.readouterr().err
