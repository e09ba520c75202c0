"""The cross-entropy kernels over real vocabularies: how `test_compile.py` compiles each, and what it may cost."""

import functools
from collections.abc import Sequence
from itertools import product

import torch

from assay.audits.compile import CompileReport, offline

TOKENS = 4096
Job = tuple[str, int, str, str, int]
"""Kernel, vocabulary, dtype, options, chip."""

VOCABULARIES = (151936, 152064, 248320)  # Qwen3-VL and Qwen2.5-VL-3B, Qwen2.5-VL-7B, Qwen3.5
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
OPTIONS = ("plain", "all")
REGISTERS = {"fused": 64, "rows": 64, "gradient": 48, "scale": 40, "count": 128, "sum": 40}
"""The most that each may take. 64 is what 1,024 threads have."""
STREAMS = ("fused", "gradient", "scale")
"""Those that write as much as they read."""


def compile_one(kernel: str, vocabulary: int, dtype_name: str, options: str, arch: int) -> CompileReport:
    """Compile what the library's own launch code asks for."""
    from assay.kernels import masked_cross_entropy_launch as launch

    plain = launch.Rules()
    rules = launch.Rules(softcap=30.0, label_smoothing=0.1, z_loss=1e-4, length=1024) if options == "all" else plain
    empty = functools.partial(torch.empty, device="meta")
    logits, labels = empty(1, TOKENS, vocabulary, dtype=DTYPES[dtype_name]), empty(TOKENS, dtype=torch.int64)
    each, one = empty(TOKENS), empty(())
    weight = each if options == "all" else None
    launches = {
        "fused": lambda: launch.score_rows(logits, labels, weight, one, rules, gradient=True),
        "rows": lambda: launch.score_rows(logits, labels, weight, one, rules, statistics=True),
        "gradient": lambda: launch.fill_gradient(
            logits, torch.empty_like(logits), labels, weight, one, one, (each, each), rules
        ),
        "scale": lambda: launch.scale_rows(logits, one),
        "count": lambda: launch.count_labels(labels, weight, None, rules, vocabulary=vocabulary, mean=True),
        "sum": lambda: launch.sum_losses(each, one),
    }
    with offline(arch) as reports:
        launches[kernel]()
    (report,) = reports
    return report


def jobs(archs: Sequence[int]) -> list[Job]:
    """The kernels that read logits for every vocabulary, dtype and set of options; the others once or twice."""
    every = product(("fused", "rows", "gradient"), VOCABULARIES, DTYPES, OPTIONS, archs)
    scale = product(("scale",), (152064, 3584), DTYPES, ("plain",), archs)
    count = product(("count",), (152064,), ("fp32",), OPTIONS, archs)
    return [*every, *scale, *count, *product(("sum",), (152064,), ("fp32",), ("plain",), archs)]


def few(archs: Sequence[int]) -> list[Job]:
    """One vocabulary in bf16."""
    return list(product(("fused", "rows", "gradient"), (152064,), ("bf16",), OPTIONS, archs))


def check(job: Job, report: CompileReport) -> None:
    """16 bytes per access to logits, and no more registers than leave the threads their places."""
    kernel, _, dtype_name, options, _ = job
    assert report.registers <= REGISTERS[kernel], f"{job} needs {report.registers} registers"
    pieces = 1 if (dtype_name, options) == ("bf16", "all") else 2  # of 16 bytes; under the soft-cap half as many logits
    if kernel in {"fused", "rows"}:
        assert report.wide_loads == pieces * (4 if kernel == "fused" else 2), f"{job} loads in pieces: {report}"
    elif kernel in {"gradient", "scale"}:
        assert report.wide_loads == pieces, f"{job} loads in pieces: {report}"
    assert report.narrow_loads <= 8 or kernel == "count", f"{job} loads in pieces: {report}"
    if kernel in STREAMS:
        assert report.wide_stores >= pieces, f"{job} stores in pieces: {report}"
        assert report.narrow_stores <= 2, f"{job} stores in pieces: {report}"
