"""The masked-regression kernels for JEPA trainers: how each is compiled, what it may cost, what it has to do."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch

from assay.audits.compile import CompileReport, offline
from assay.benchmarks.nouns import Mode
from assay.benchmarks.nouns import Shape as Asked
from assay.benchmarks.operations import masked_regression as operation
from assay.benchmarks.predict import Work

TITLE = "Masked regression: smooth L1 against gathered, normalised targets"
NOTE = """24,576 rows of predictions and targets, all of which count. Backward is the same code whether it writes
over the prediction or not."""
Job = tuple[str, str, str, int]
"""Case, mode, dtype of the prediction, chip."""

BATCH, TOKENS, GRID = 8, 3072, 4608


@dataclass(frozen=True)
class Case:
    """One way to call, and the most registers it may take."""

    channels: int
    kind: str
    number: float = 0.0
    normalise: bool = False
    gathered: bool = False
    by_element: bool = False
    weighted: bool = False
    target: str = "bf16"
    registers: int = 96


CASES = {
    "i-jepa": Case(1408, "smooth_l1", 1.0, normalise=True, gathered=True),  # ViT-g: padded to 2,048
    "wide": Case(4096, "smooth_l1", 1.0, normalise=True, gathered=True),
    "v-jepa": Case(1024, "power", 1.0, normalise=True, gathered=True, weighted=True),
    "plain": Case(1408, "mse", registers=48),  # eleven blocks of 128
    "elements": Case(768, "l1", by_element=True),
    "power": Case(1408, "power", 1.5, normalise=True, gathered=True, registers=192),  # fp64 logarithms
    "wide-power": Case(8192, "power", 1.5, normalise=True, weighted=True, registers=128),  # the widest row
    "cosine": Case(1408, "cosine", normalise=True, gathered=True, registers=112),
    "wide-cosine": Case(8192, "cosine", weighted=True, registers=128),
    "by-eight": Case(1000, "mse", normalise=True, target="fp32"),  # a multiple of 8 and not of 16; mixed dtypes
    "vision": Case(80, "smooth_l1", 0.5, normalise=True, gathered=True, registers=112),  # sixteen rows a program
}
MODES = ("value", "gradient", "fused", "each", "gradient-of-each")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def compile_one(name: str, mode: str, dtype_name: str, arch: int) -> CompileReport:
    """Compile what the library's own launch code asks for."""
    from assay.kernels import masked_regression_triton as kernels

    empty = functools.partial(torch.empty, device="meta")
    if name == "tally":
        with offline(arch) as reports:
            kernels.launch_tally(
                empty(BATCH * TOKENS, dtype=torch.uint8), empty(BATCH * TOKENS), None, per=8, mean=True
            )
        return reports[0]
    case = CASES[name]
    shape = (BATCH, TOKENS, case.channels)
    prediction, gradient = (empty(shape, dtype=DTYPES[dtype_name]) for _ in range(2))
    target = empty(BATCH, GRID if case.gathered else TOKENS, case.channels, dtype=DTYPES[case.target])
    read = kernels.Operands(
        prediction=prediction, target=target, mask=empty(shape if case.by_element else shape[:2], dtype=torch.uint8),
        by_element=case.by_element, indices=empty(BATCH * TOKENS, dtype=torch.int64) if case.gathered else None,
        weight=empty(BATCH * TOKENS) if case.weighted else None, divisor=empty(()),
    )  # fmt: skip
    rules = kernels.Rules(kind=case.kind, number=case.number, normalise=case.normalise)
    losses = empty(shape[:2] if case.kind == "cosine" else shape)
    with offline(arch) as reports:
        if mode == "value":
            kernels.launch_value(read, rules)
        elif mode == "fused":
            kernels.launch_value(read, rules, gradient=prediction)
        elif mode == "each":
            kernels.launch_each(read, rules)
        else:
            kernels.launch_gradient(read, rules, empty(()) if mode == "gradient" else losses, gradient)
    (report,) = reports
    return report


def jobs(archs: Sequence[int]) -> list[Job]:
    """Every case in one pass, the others in what they do otherwise."""
    fused = product((name for name in CASES if name != "wide"), ("fused",), DTYPES, archs)
    others = product(("i-jepa", "plain", "wide-power"), MODES, ("bf16",), archs)
    return [*dict.fromkeys((*fused, *others)), *product(("tally",), ("value",), ("fp32",), archs)]


def few(archs: Sequence[int]) -> list[Job]:
    """The cases that differ most."""
    return list(product(("i-jepa", "wide-power", "by-eight"), ("fused",), ("bf16",), archs))


def page(archs: Sequence[int]) -> list[Job]:
    """The comparison's two widths in every mode."""
    return [*product(MODELS, MODES[:3], ("bf16",), archs), *product(("tally",), ("value",), ("bf16",), archs)]


def check(job: Job, report: CompileReport) -> None:
    """16 bytes per access to both rows, every load ahead of the first store, and no more registers than the case's."""
    name, mode, *_ = job
    if name == "tally":
        return
    assert report.wide_loads >= 4, f"{job} loads in pieces: {report}"  # two of each row and thread
    assert report.narrow_loads <= 10, f"{job} loads in pieces: {report}"  # scalars; mask, index and weight of a row
    assert bool(report.wide_stores) == (mode != "value"), f"{job} stores in pieces: {report}"
    assert report.narrow_stores <= 1, f"{job} stores in pieces: {report}"  # the program's sum
    assert report.late_loads == 0, f"{job} loads after it has begun to store: {report}"
    assert report.registers <= CASES[name].registers, f"{job} needs {report.registers} registers"


MODELS = {"i-jepa": "ViT-g", "wide": "wide"}
NAMES = {
    "value": "forward", "gradient": "backward", "fused": "forward and gradient, in place", "tally": "count the entries",
}  # fmt: skip
DONE: dict[str, Mode] = {"value": "forward", "gradient": "backward", "fused": "both"}


def work(job: Job) -> Work:
    """24,576 rows that all count; masks, indices and the programs' sums are left out, as they are of the floor."""
    name, mode, dtype_name, _ = job
    rows = BATCH * TOKENS
    if name == "tally":
        return Work(shape=f"{rows:,} rows", tokens=rows, floor=rows, moved=rows, read=rows, alone=True)
    size, model = DTYPES[dtype_name].itemsize, MODELS[name]
    floor = operation.floors(Asked(model=model, tokens=rows, settings=operation.MODELS[model]), size)[DONE[mode]].bytes
    label = f"{model}, {CASES[name].channels:,} channels"
    read = 2 * rows * CASES[name].channels * size
    return Work(shape=label, tokens=rows, floor=floor, moved=floor, read=read)


def title(job: Job) -> str:
    """What the page calls a kernel."""
    return NAMES["tally" if job[0] == "tally" else job[1]]
