"""The page about one or several comparisons of the same two patches, made from their results and nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence

from assay.audits.ab import arms
from assay.audits.ab.comparison import Comparison
from assay.audits.ab.task import AREAS, LONGEST_LEAD, grids
from assay.reference.mrope_families import TEXT_ROTARIES

POSITIONS = (arms.TRUE, arms.COPIED)
"""The two patches of the project's own question."""


def render(comparisons: Sequence[Comparison], stem: str) -> str:
    """The page. Its pictures are ``STEM.FAMILY.svg`` beside it, its numbers ``STEM.FAMILY.json``."""
    own = is_own(comparisons)
    parts = [
        "# What 3-D positions are worth" if own else "# An A/B training comparison",
        "<!-- Written by `python -m assay.audits.ab` from the JSON files beside it: change those, or the code. -->",
        QUESTION if own else "",
        _sides(comparisons[0]),
        "## In short",
        _summary(comparisons),
        *(part for one in comparisons for part in _section(one, stem)),
        "## What was trained",
        _trained(comparisons),
        "## Again",
        _again(comparisons, stem, own=own),
        "## What these numbers do not say",
        LIMITS + (LIMITS_OF_POSITIONS if own else ""),
    ]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def is_own(comparisons: Sequence[Comparison]) -> bool:
    """Whether true positions were compared with copied ones."""
    return all((one.a.ref, one.b.ref) == POSITIONS for one in comparisons)


QUESTION = """
A recipe that packs samples for a model with multi-axis rotary can lose the positions of its images without an error:
nobody hands it `get_rope_index`, so each sample is counted 0, 1, 2, ... and the count is copied to time, height and
width. How much a training loses by that had not been measured where it was found
([NeMo Automodel, 2172](https://github.com/NVIDIA-NeMo/Automodel/pull/2172)). Here it is, on a tiny model and a task
that is about nothing but places.
"""
LIMITS = """
* The model is tiny, random at the start, and trained for minutes on one synthetic task. The numbers compare two sides
  of this training; they do not predict a percentage in another.
* Training stops at a fixed step. A side that is still rising there, or below what the order of the tokens alone can
  give, is not at its end.
* The task asks for places alone. What is lost on data where few answers depend on a place is not measured.
* The range over a few seeds is what was seen, and no confidence interval.
"""
LIMITS_OF_POSITIONS = """* The vision tower is replaced, so that the language model's positions are the only source of
  place. A real tower has positions of its own, and a model could learn to read places from its features: what is lost
  then is not measured.
* A released model learned with true positions. Tuning it further with copied ones is another experiment: the table of
  models that were asked under the other positions says what the change does at once, not what comes of training on.
* Each sample has one image and no video: positions in time are not tested.
"""


def _sides(one: Comparison) -> str:
    lines = (f"* **{arm.name}**, `{arm.ref}`: {arm.about}" for arm in one.arms)
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _percent(values: Sequence[float]) -> str:
    """The mean, and between which numbers the seeds lie."""
    return f"{statistics.fmean(values):.1%} ({min(values):.1%} to {max(values):.1%})"


def _points(values: Sequence[float]) -> str:
    low, high = 100 * min(values), 100 * max(values)
    return f"{100 * statistics.fmean(values):+.1f} ({low:+.1f} to {high:+.1f})"


def _summary(comparisons: Sequence[Comparison]) -> str:
    """A sentence for each family, of numbers alone, and a warning where nothing was compared."""
    return "\n".join(line for one in comparisons for line in _sentences(one))


def _sentences(one: Comparison) -> Iterator[str]:
    scores = [statistics.fmean(arm.scores()) for arm in one.arms]
    yield (
        f"* `{one.settings.family}`: {scores[0]:.1%} of unseen questions are answered rightly with {one.a.name}, "
        f"{scores[1]:.1%} with {one.b.name}; the order of the tokens alone can give "
        f"{statistics.fmean(one.order_alone):.1%}. The difference is {_points(one.gaps())} points over "
        f"{len(one.seeds)} seeds."
    )
    yield from _unfinished(one, scores)
    if one.never_differed:
        yield "  **The losses of both sides are equal at every step: the patches had the same effect, or none.**"
    if not one.same_start:
        yield "  **Initial weights or data differ between the sides: a patch changed them.**"


def _unfinished(one: Comparison, scores: Sequence[float]) -> Iterator[str]:
    """What the comparison does not say: a side under what the order alone gives has not learned that much."""
    limit = statistics.fmean(one.order_alone)
    under = [arm.name for arm, score in zip(one.arms, scores, strict=True) if score < limit]
    if len(under) == len(one.arms):
        yield "  **Both sides are below what the order alone gives: neither training is at its end. No answer yet.**"
    elif under:
        beyond = f"; {100 * (max(scores) - limit):.1f} points are beyond what it can ever reach"
        yield (
            f"  The training with {under[0]}, which is below that, is not at its end{beyond if is_own([one]) else ''}."
        )


def _section(one: Comparison, stem: str) -> Iterator[str]:
    family = one.settings.family
    yield f"## {family}"
    yield f"![Loss and share of right answers over the steps]({stem}.{family}.svg)"
    yield _results(one)
    yield RESULTS
    yield from _crossed(one)
    if is_own([one]):
        yield _turns(one)


def _turns(one: Comparison) -> str:
    angles = ", ".join(f"{axis} {angle:g}" for axis, angle in one.steepest.items())
    lanes = TEXT_ROTARIES[one.settings.family].head_dim // 2
    return (
        f"One step along an axis turns the fastest lane of this model's queries and keys by, in radians: {angles}. "
        "With true positions all patches of an image have one id in time, so that height and width alone tell them "
        "apart; with copied ones their count in reading order turns the lanes of all three axes. "
        f"Heads of the released model have {lanes} lanes, and other turns."
    )


RESULTS = """
Right answers on samples that no training saw: mean over the seeds, and smallest and largest. *Difference* is in points,
seed by seed. *Order alone* is the most that can be had from the tokens in their order without positions, *same answer*
what the most frequent answer alone gives; both are exact.
"""


def _results(one: Comparison) -> str:
    head = ("question", one.a.name, one.b.name, "difference", "order alone", "same answer")
    rows = [_row(one, number) for number in range(len(one.questions))]
    return _table(head, [*rows, _row(one, None)])


def _row(one: Comparison, number: int | None) -> tuple[str, ...]:
    name = "all four" if number is None else one.questions[number]
    bounds = (
        statistics.fmean(shares) if number is None else shares[number] for shares in (one.order_alone, one.one_answer)
    )
    scores = (_percent(arm.scores(number)) for arm in one.arms)
    return (name, *scores, _points(one.gaps(number)), *(f"{share:.1%}" for share in bounds))


def _crossed(one: Comparison) -> Iterator[str]:
    """Each side asked under the other's patch, where both are patches of batches."""
    if any(arm.runs[0].exams.keys() != {one.a.ref, one.b.ref} for arm in one.arms):
        return
    yield "The same models, asked under the patch that they were not trained with (all four questions):"
    yield _table(
        ("trained with", *(f"asked with {arm.name}" for arm in one.arms)),
        [(arm.name, *(_percent(arm.scores(under=other.ref)) for other in one.arms)) for arm in one.arms],
    )


def _trained(comparisons: Sequence[Comparison]) -> str:
    one = comparisons[0]
    settings = one.settings
    shapes = "; ".join(
        f"{area} patches as " + ", ".join(f"{rows} x {wide}" for rows, wide in grids(area)) for area in AREAS
    )
    return f"""
* **Task.** An image is a grid of patches ({shapes}), two of them marked. One question for each image: in which row, in
  which column is the first mark; which mark is further left, which further up. The answer is one token. The number of
  patches does not tell the grid, and up to {LONGEST_LEAD} words stand in front of an image, so that lengths vary.
* **Model.** The family's own model of transformers at a tiny size, its own forward and loss. In place of the vision
  tower one linear layer looks at each patch alone: a tower's own positions could carry the place around those that are
  compared.
* **Batches.** {settings.rows} rows of {settings.per_row} packed samples a step, a block-causal mask between samples,
  positions by the reference's rule of the family. Only answers are trained on. No sample comes twice.
* **Both sides** have the same initial weights and the same data, seed by seed: {_same(one)} (digests in the results).
  AdamW, {_steps(comparisons)} steps, rate {settings.rate:g} with {settings.warmup} steps of warm-up and a linear fall.
* The curves are of the batches of training before each update, which are unseen samples too.
"""


def _steps(comparisons: Sequence[Comparison]) -> str:
    """How many, for each family where they differ."""
    found = {one.settings.family: one.settings.steps for one in comparisons}
    if len(set(found.values())) == 1:
        return str(next(iter(found.values())))
    return ", ".join(f"{count} (`{family}`)" for family, count in found.items())


def _same(one: Comparison) -> str:
    return "confirmed" if one.same_start else "**not so here, a patch changed them**"


def _again(comparisons: Sequence[Comparison], stem: str, *, own: bool) -> str:
    one = comparisons[0]
    spent = sum(run.seconds for each in comparisons for arm in each.arms for run in arm.runs)
    where = ", ".join(f"{name} {value}" for name, value in sorted(one.environment.items()))
    files = ", ".join(
        f"[{stem}.{each.settings.family}.json]({stem}.{each.settings.family}.json)" for each in comparisons
    )
    seeds = ", ".join(str(seed) for seed in one.seeds)
    machine = f"Seeds {seeds}; {spent:.0f} seconds of one core in all when this was written, with {where}."
    if not own:
        return f"```console\n$ nox -s ab -- --a {one.a.ref} --b {one.b.ref}\n```\n\nNumbers: {files}. {machine}"
    return f"""
```console
$ nox -s ab
```

trains again and writes this page, its pictures and its numbers ({files}: loss and accuracy of every step and seed).
{machine} The same seeds give the same numbers on the same machine and releases.
[guides/ab.md](guides/ab.md) tells how to compare two patches of yours.
"""
