"""One report with every verdict in it: what the documentation shows and the output tests render."""

from __future__ import annotations

from assay.audits.terms import Check, Finding, Report, Verdict

ROTATE = "mrope.rotate"
POSITIONS = "mrope.positions"
CANDIDATE = "mytrain.patches:rotate"

FAR = Finding(
    rule=f"{ROTATE}.parity",
    candidate=CANDIDATE,
    operation=ROTATE,
    case="far-1000000",
    dtype="bfloat16",
    where="q",
    measured=0.81348,
    limit=0.00781,
    message="1,204 of 24,576 elements are further from the float64 truth than the ordinary form, by the maximum norm",
    repro=f"assay audit {ROTATE} --candidate {CANDIDATE} --law parity --case far-1000000 --dtype bfloat16 --seed 7",
    fingerprint="5b1d3c0a9e774f12",
    verdict=Verdict.FAIL,
    index=(0, 3, 40_000, 17),
    cases_broken=3,
)
WAIVED = Finding(
    rule=f"{ROTATE}.grad-parity",
    candidate=CANDIDATE,
    operation=ROTATE,
    case="ragged",
    dtype="float16",
    where="grad:k",
    measured=0.0123456,
    limit=0.00977,
    message="the gradient of k is rounded twice on its way back",
    repro=f"assay audit {ROTATE} --candidate {CANDIDATE} --law grad-parity --case ragged --dtype float16 --seed 7",
    fingerprint="c07a52e6610b8d93",
    verdict=Verdict.WAIVED,
    index=(1, 0, 12, 3),
    waiver="accepted until 2027-01-31: rounds twice until the kernel is fused (https://example.org/issues/41)",
)
NEVER_RAN = Finding(
    rule="patch.never-ran",
    candidate="qwen2_5_vl",
    operation=POSITIONS,
    case="two-images",
    dtype="float32",
    where="modeling_qwen2_5_vl.apply_multimodal_rotary_pos_emb",
    measured="0 calls",
    limit="at least 1 call",
    message="the patch sets an attribute that nothing reads",
    repro=f"assay audit {POSITIONS} --patch mytrain.patches:apply --family qwen2_5_vl --case two-images --seed 7",
    fingerprint="0f4be2d8a6c31975",
    verdict=Verdict.UNKNOWN,
)
REPORT = Report(
    findings=(FAR, WAIVED, NEVER_RAN),
    checks=(
        Check(rule=f"{ROTATE}.parity", candidate=CANDIDATE, exercised=41, verdict=Verdict.FAIL),
        Check(rule=f"{ROTATE}.grad-parity", candidate=CANDIDATE, exercised=41, verdict=Verdict.WAIVED),
        Check(rule=f"{ROTATE}.norm", candidate=CANDIDATE, exercised=38, inapplicable={"scaling is not 1": 3}),
        Check(rule=f"{ROTATE}.text-only", candidate=CANDIDATE, exercised=0, inapplicable={"three axes differ": 41}),
        Check(rule=f"{ROTATE}.norm", candidate="kernel", exercised=41),
        Check(rule=f"{ROTATE}.parity", candidate="kernel", exercised=41),
        Check(rule=f"{POSITIONS}.padding-side", candidate="qwen2_5_vl", exercised=12),
        Check(rule=f"{POSITIONS}.deltas", candidate="qwen2_5_vl", exercised=0, verdict=Verdict.UNKNOWN),
    ),
    environment={"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0", "platform": "linux-x86_64"},
    request={"targets": ["mrope"], "candidate": CANDIDATE, "seed": 7, "examples": 20, "device": "cpu"},
)
"""The example. Its verdict is FAIL."""
