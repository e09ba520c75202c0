"""The cross-entropy whose rows are shared by teams of programs, each of which reads its slice once.

In the interpreter programs run one after another, so publishing and finishing are two launches there. That they also
come through when they really wait for each other is asked of processes, one for each program, on shared memory.
"""

# mypy: allow-untyped-calls
# Some of torch's own methods carry no types.

import multiprocessing
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from kernel_device import DEVICE, DTYPES, GPU, needs
from kernel_results import assert_same
from torch import Tensor
from truth_masked_cross_entropy import OPTIONS, B, S, compare, judge, make, shifted, truth

from assay.kernels import choices
from assay.kernels import masked_cross_entropy_launch as launch
from assay.kernels import masked_cross_entropy_teams as teams
from assay.kernels.masked_cross_entropy import cross_entropy

pytestmark = pytest.mark.usefixtures("poisoned_memory", "shared_rows")

ONE_READ = {"form": choices.ONE_READ, "block": 128, "warps": 4}
PROGRAMS = 7
"""Two teams of three for a row of 257 to 384 columns, so that a team walks several rows; one program is left over."""


@pytest.fixture
def shared_rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(launch, "_most_programs", lambda _x, _sizes: PROGRAMS)
    with choices.forced("cross_entropy.fused", ONE_READ):
        yield


def results(logits: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(value, count, gradient) with the gradient written over the logits."""
    leaf = logits.detach().requires_grad_()
    value, count = cross_entropy(leaf * 1, labels, inplace=True, **options)
    return value, count, torch.autograd.grad(value, leaf)[0]


@pytest.mark.parametrize(("option", "vocabulary"), [*((option, 257) for option in OPTIONS), ("all", 1), ("plain", 768)])
def test_values_and_gradients(option: str, vocabulary: int) -> None:
    """257 leaves the last program of a team fewer columns, 768 takes six slices of 128, 1 a team of one."""
    logits, labels, weight, upstream = make(vocabulary)
    options = OPTIONS[option] | ({"weight": weight} if option == "all" else {})
    compare(logits, labels, upstream, inplace=True, reduction="sum" if vocabulary == 768 else "mean", **options)


def test_bfloat16() -> None:
    """The gradient is rounded once."""
    needs(torch.bfloat16)
    logits, labels, weight, _ = make(257)
    logits = logits.to(DTYPES["bf16"])
    wide = logits.double().requires_grad_()
    expected = truth(wide, labels, weight=weight)
    value, _, gradient = results(logits, labels, weight=weight)
    assert gradient.dtype == torch.bfloat16
    judge("value", value, expected, float(logits.abs().max()))
    judge("gradient", gradient, torch.autograd.grad(expected, wide)[0], 0.2)


@pytest.mark.parametrize("shift", [False, True])
def test_ignored_rows_are_not_read(shift: bool) -> None:
    logits, labels, weight, _ = make(140)
    targets = shifted(labels, -100) if shift else labels
    dirty = logits.clone()
    dirty[targets == -100] = torch.nan
    got = results(dirty, labels, shift=shift, weight=torch.where(labels == -100, torch.nan, weight))
    assert_same(got, results(logits, labels, shift=shift, weight=weight))
    assert (got[2][targets == -100] == 0).all()


def test_nothing_to_score() -> None:
    """No label, no weight, no row: zeros, whatever stands in the logits."""
    logits = torch.full((B, S, 140), torch.nan, device=DEVICE)
    labels = torch.full((B, S), -100, device=DEVICE)
    for options in ({}, {"weight": torch.zeros(B, S, device=DEVICE)}):
        value, _, gradient = results(logits, labels if not options else labels * 0, **options)
        assert value == 0
        assert (gradient == 0).all()
    value, count, _ = results(logits[:, :0], labels[:, :0])
    assert (value, count) == (0, 0)


def test_a_label_outside_the_vocabulary_spoils_its_row_alone() -> None:
    logits, labels, _, _ = make(300)
    labels[0, 3], labels[1, 1] = 300, -1
    value, count, gradient = results(logits, labels, check=False, normaliser=3.0)
    assert value.isnan()
    assert int(count) == int((labels != -100).sum())
    assert torch.equal(gradient.isnan().any(-1), (labels == 300) | (labels == -1))


def test_logits_of_minus_infinity() -> None:
    """A slice of nothing else, and the label's logit among them."""
    logits, labels, _, _ = make(300)
    logits[..., :200] = -torch.inf
    labels[labels >= 0] = 200 + labels[labels >= 0] // 8
    x = logits.detach().requires_grad_()
    expected = truth(x, labels)
    value, _, gradient = results(logits, labels)
    judge("value", value, expected, 20.0)
    judge("gradient", gradient, torch.autograd.grad(expected, x)[0], 1.0)
    labels[0, 0] = 5
    value, _, gradient = results(logits, labels)
    assert value == torch.inf
    assert gradient[0, 0, 5] == -1 / int((labels >= 0).sum())


@pytest.mark.parametrize("offset", [120.0, -120.0])
def test_moving_all_logits_costs_no_accuracy(offset: float) -> None:
    logits, labels, _, _ = make(257)
    moved = logits / 30 + offset
    for options in ({}, {"label_smoothing": 0.2}):
        x = moved.detach().requires_grad_()
        expected = truth(x, labels, **options)
        value, _, gradient = results(moved, labels, **options)
        judge("value", value, expected, expected.detach())
        judge("gradient", gradient, torch.autograd.grad(expected, x)[0], 0.2)


def test_bits_do_not_depend_on_the_run_the_place_or_the_number_of_teams(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels, weight, _ = (x.flatten(0, 1) for x in make(140))
    order = torch.randperm(B * S, generator=torch.Generator().manual_seed(1)).to(DEVICE)

    def gradient(at: Tensor) -> Tensor:
        return results(logits[at], labels[at], weight=weight[at], normaliser=4.0, label_smoothing=0.1)[2]

    own = torch.arange(B * S, device=DEVICE)
    expected = gradient(own)
    assert torch.equal(gradient(own), expected)
    assert torch.equal(gradient(order), expected[order])
    monkeypatch.setattr(launch, "_most_programs", lambda _x, _sizes: 2)
    assert torch.equal(gradient(own), expected)


def test_strides_change_nothing() -> None:
    logits, labels, weight, _ = make(257)
    expected = results(logits, labels, weight=weight)
    wide = torch.full((B, S, 264), torch.nan, device=DEVICE)
    wide[..., :257] = logits
    for x in (wide[..., :257], logits.transpose(0, 1).contiguous().transpose(0, 1)):
        leaf = x.detach().requires_grad_()
        apart = torch.empty_strided(x.shape, x.stride(), device=DEVICE).copy_(leaf)
        value, count = cross_entropy(apart, labels, weight=weight, inplace=True)
        assert_same((value, count, torch.autograd.grad(value, leaf)[0]), expected)


def _launches(monkeypatch: pytest.MonkeyPatch, vocabulary: int, rows: int = 10) -> list[dict[str, Any]]:
    """What `teams_kernel` was launched with."""
    found: list[dict[str, Any]] = []

    class Spy:
        def __getitem__(self, grid: tuple[int]) -> Any:
            return lambda *_arguments, **options: found.append({"grid": grid[0], **options})

    monkeypatch.setattr(launch, "teams_kernel", Spy())
    monkeypatch.setattr(launch, "INTERPRETED", False)
    labels = torch.zeros(rows, dtype=torch.int64, device=DEVICE)
    logits = torch.zeros(1, rows, vocabulary, device=DEVICE)
    launch.score_rows(logits, labels, None, None, launch.Rules(), gradient=True)
    return found


@pytest.mark.parametrize(("vocabulary", "rows", "grid", "width"), [
    (300, 10, 6, 112), (768, 10, 6, 128), (128, 4, 4, 128), (896, 10, 7, 128), (129, 10, 6, 80), (300, 1, 3, 112),
])  # fmt: skip
def test_no_more_programs_than_run_at_once(
    monkeypatch: pytest.MonkeyPatch, vocabulary: int, rows: int, grid: int, width: int
) -> None:
    """Whole teams of equal slices, and the driver is asked to refuse what does not fit: all may wait for each other."""
    (options,) = _launches(monkeypatch, vocabulary, rows)
    assert options["grid"] == grid <= PROGRAMS
    assert options["launch_cooperative_grid"] is True
    assert options["PUBLISH"] is options["FINISH"] is True
    assert options["SLICE"] == width
    assert options["grid"] % options["TEAM"] == 0
    assert (options["TEAM"] - 1) * width < vocabulary <= options["TEAM"] * width <= options["TEAM"] * 128
    assert options["maxnreg"] * 32 * options["num_warps"] * launch._TEAM_WARPS // 4 <= 65536


def test_rows_too_long_for_a_team_are_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not _launches(monkeypatch, 128 * PROGRAMS + 1, rows=1)
    monkeypatch.setattr(launch, "_most_programs", lambda _x, _sizes: 1000)
    assert _launches(monkeypatch, 128 * int(teams.MOST), rows=1)
    assert not _launches(monkeypatch, 128 * int(teams.MOST) + 1, rows=1)


def _run_program(number: int, programs: int, arguments: dict[str, Any]) -> None:
    """One program of the grid, in a process of its own."""
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    builder.set_grid_dim = lambda *_: setattr(builder, "grid_dim", (programs, 1, 1))
    builder.set_grid_idx = lambda *_: setattr(builder, "grid_idx", (number, 0, 0))
    interpreter.GridExecutor._restore_args_dev = lambda *_: None  # the memory is shared: nothing is copied back
    teams.teams_kernel[(1,)](**arguments, PUBLISH=True, FINISH=True)


@pytest.mark.skipif(GPU, reason="on a GPU every other test runs the programs at once")
@pytest.mark.timeout(120)
def test_programs_that_really_wait_for_each_other() -> None:
    """Two teams of two over seven rows, started last program first; publishing and finishing are one launch here."""
    logits, labels, weight, _ = (x.flatten(0, 1)[:7].contiguous() for x in make(200))
    rules = launch.Rules(label_smoothing=0.1)
    expected = logits.clone()[None]
    losses, _, _ = launch.score_rows(expected, labels, weight, None, rules, gradient=True)
    shared = [x.share_memory_() for x in (logits[None].clone(), labels, weight, torch.full((7,), torch.nan))]
    meeting = torch.zeros(7 * int(teams.MOST) * 2, dtype=torch.int64).share_memory_()
    arguments = {
        "logits": launch._operand(shared[0]), "labels_ptr": shared[1], "weight_ptr": shared[2], "divisor_ptr": None,
        "losses_ptr": shared[3], "meeting_ptr": meeting, "rows": 7, **rules.arguments(), "V": 200, "SLICE": 112,
        "BLOCK": 128, "TEAM": 2,
    }  # fmt: skip
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_run_program, args=(number, 4, arguments)) for number in reversed(range(4))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(100)
    codes = [worker.exitcode for worker in workers]
    for worker in workers:
        worker.kill()
    assert codes == [0] * 4
    assert_same((shared[0], shared[3]), (expected, losses))
