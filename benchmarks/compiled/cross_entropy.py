"""The cross-entropy kernels over real vocabularies: how each is compiled, what it may cost, what it has to do."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import product
from unittest import mock

import torch

from assay.audits.compile import CompileReport, offline
from assay.benchmarks.nouns import Mode
from assay.benchmarks.nouns import Shape as Asked
from assay.benchmarks.operations import cross_entropy as operation
from assay.benchmarks.predict import CHIPS, Work

TITLE = "Cross-entropy from logits"
NOTE = """4,096 rows, all of them scored. The pass that writes the gradient over the logits reads each row twice; the
form that reads it once shares a row between a team of programs, which wait for each other. What they wait is in no
column. Backward is the same code whether it writes over the logits or not. Two kernels are one program each: they count
the labels and sum the losses."""
TOKENS = 4096
Job = tuple[str, int, str, str, int]
"""Kernel, vocabulary, dtype, options, chip."""

VOCABULARIES = (151936, 152064, 248320)  # Qwen3-VL and Qwen2.5-VL-3B, Qwen2.5-VL-7B, Qwen3.5
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
OPTIONS = ("plain", "all")
REGISTERS = {"fused": 64, "shared": 128, "rows": 64, "gradient": 48, "scale": 40, "count": 128, "sum": 40}
"""The most that each may take. 64 is what 1,024 threads have, 128 what 512 have."""
UNALIGNED = {"rows": 80, "gradient": 56, "scale": 48}
"""The same where logits are read one by one; none of these kernels has 1,024 threads."""
STREAMS = ("fused", "shared", "gradient", "scale")
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
    launches: dict[str, Callable[[], object]] = {
        "fused": lambda: launch.score_rows(logits, labels, weight, one, rules, gradient=True),
        "rows": lambda: launch.score_rows(logits, labels, weight, one, rules, statistics=True),
        "gradient": lambda: launch.fill_gradient(
            logits, torch.empty_like(logits), labels, weight, one, one, (each, each), rules
        ),
        "scale": lambda: launch.scale_rows(logits, one),
        "count": lambda: launch.count_labels(labels, weight, None, rules, vocabulary=vocabulary, mean=True),
        "sum": lambda: launch.sum_losses(each, one),
    }
    if kernel == "shared":
        with mock.patch.object(launch, "ELSEWHERE", CHIPS[arch].multiprocessors), _one_read(), offline(arch) as reports:
            launches["fused"]()
    else:
        with offline(arch) as reports:
            launches[kernel]()
    (report,) = reports
    return report


def _one_read() -> AbstractContextManager[None]:
    """The fused pass in the form that reads once, whatever was chosen."""
    from assay.kernels import choices

    told = choices.look_up("cross_entropy.fused", "", torch.empty((), device="meta"))  # what is being tuned
    return choices.forced("cross_entropy.fused", {**told, "form": choices.ONE_READ})


def jobs(archs: Sequence[int]) -> list[Job]:
    """The kernels that read logits for every vocabulary, dtype and set of options; the others once or twice."""
    every = product(("fused", "shared", "rows", "gradient"), VOCABULARIES, DTYPES, OPTIONS, archs)
    scale = product(("scale",), (152064, 3584), DTYPES, ("plain",), archs)
    count = product(("count",), (152064,), ("fp32",), OPTIONS, archs)
    return [*every, *scale, *count, *product(("sum",), (152064,), ("fp32",), ("plain",), archs)]


def few(archs: Sequence[int]) -> list[Job]:
    """One vocabulary in bf16."""
    return list(product(("fused", "shared", "rows", "gradient"), (152064,), ("bf16",), OPTIONS, archs))


def page(archs: Sequence[int]) -> list[Job]:
    """Every kernel for every vocabulary of the comparison, without options; what hardly depends on it, once."""
    every = product(
        ("rows", "fused", "shared", "gradient"), operation.VOCABULARIES.values(), ("bf16",), ("plain",), archs
    )
    scale = product(("scale",), (152064, 151937, 3584), ("bf16",), ("plain",), archs)
    return [*every, *scale, *product(("count", "sum"), (152064,), ("bf16",), ("plain",), archs)]


def check(job: Job, report: CompileReport) -> None:
    """16 bytes per access to logits, and no more registers than leave the threads their places."""
    kernel, vocabulary, dtype_name, options, _ = job
    unaligned = bool(vocabulary % 8)  # rows begin anywhere: 16 bytes cannot be read at once
    most = UNALIGNED.get(kernel, 0) if unaligned else 0
    assert report.registers <= max(most, REGISTERS[kernel]), f"{job} needs {report.registers} registers"
    if unaligned:
        return
    pieces = 1 if (dtype_name, options) == ("bf16", "all") else 2  # of 16 bytes; under the soft-cap half as many logits
    shared = 4 if pieces == 1 else 8  # of this row's successor and of the first one
    wide = {"fused": 4 * pieces, "shared": shared, "rows": 2 * pieces, "gradient": pieces, "scale": pieces}
    assert report.wide_loads == wide.get(kernel, report.wide_loads), f"{job} loads in pieces: {report}"
    assert report.narrow_loads <= (12 if kernel == "shared" else 8) or kernel == "count", f"{job}: {report}"
    if kernel in STREAMS:
        assert report.wide_stores >= pieces, f"{job} stores in pieces: {report}"
        assert report.narrow_stores <= 3, f"{job} stores in pieces: {report}"  # the label's entry, two ways to the loss


NAMES = {
    "rows": "forward", "fused": "forward and gradient, in place", "gradient": "backward", "scale": "scale in place",
    "shared": "forward and gradient, in place, reading once",
    "count": "count the labels", "sum": "sum the losses",
}  # fmt: skip
MODES: dict[str, Mode] = {"rows": "forward", "fused": "both", "shared": "both", "gradient": "backward"}


def work(job: Job) -> Work:
    """4,096 rows that are all scored. The one pass that reads a row twice keeps it between both."""
    kernel, vocabulary, dtype_name, *_ = job
    size = DTYPES[dtype_name].itemsize
    row, label = vocabulary * size, f"{vocabulary:,} columns"
    if kernel in {"count", "sum"}:
        moved = TOKENS * (8 if kernel == "count" else 4)
        return Work(shape=f"{TOKENS:,} rows", tokens=TOKENS, floor=moved, moved=moved, read=moved, alone=True)
    if kernel == "scale":
        moved = 2 * TOKENS * row
        return Work(shape=label, tokens=TOKENS, floor=moved, moved=moved, read=moved // 2, turns=_turns(job))
    asked = Asked(model="", tokens=TOKENS, settings={"vocabulary": vocabulary})
    floor, read = operation.floors(asked, size)[MODES[kernel]].bytes, TOKENS * row
    again = read if kernel == "fused" else 0
    return Work(
        shape=label, tokens=TOKENS, floor=floor, moved=floor, read=read + again, again=again, kept=row if again else 0,
        turns=_turns(job),
    )  # fmt: skip


def _turns(job: Job) -> tuple[int, ...]:
    """How often a program walks each loop: over the blocks of its row, or over its share of all blocks."""
    from assay.kernels import masked_cross_entropy_launch as launch

    kernel, vocabulary, dtype_name, _, arch = job
    logits = torch.empty(1, TOKENS, vocabulary, dtype=DTYPES[dtype_name], device="meta")
    if kernel == "shared":
        with mock.patch.object(launch, "ELSEWHERE", CHIPS[arch].multiprocessors), _one_read():
            teams = launch.teams_for(logits, TOKENS, launch.cut("fused", logits, launch.Rules()))
        assert teams is not None
        turns = -(-TOKENS // teams.count) + 1  # a row is written a turn after the last was read
        ends = 3 if arch < 90 else 1  # places from which the code goes back to begin a turn
        return 1, *(turns,) * ends  # how long they wait is not known
    blocks = -(-vocabulary // launch.block_of(logits, gradient=kernel == "fused"))
    if kernel == "scale":
        return (-(-TOKENS * blocks // launch.SCALERS),)
    idle = (0,) if vocabulary % 8 else ()  # rows that are not scored: a loop where they are written in pieces
    return {"rows": (blocks,), "fused": (*idle, blocks, blocks)}.get(kernel, ())


def title(job: Job) -> str:
    """What the page calls a kernel."""
    return NAMES[job[0]]
