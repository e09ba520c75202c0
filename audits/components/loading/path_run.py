"""Answers what two loading paths give: where they differ, and what both models make of the same batch."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from assay.audits.components.loading import configuration, pictures, scores, state, words
from assay.audits.components.loading.made import WAYS, Path, Paths, checked
from assay.audits.components.loading.state import State
from assay.audits.making import called
from assay.audits.patch_runs import as_bytes
from assay.audits.terms import Inexpressible, Outputs

MOST = 40
"""Differences of a kind that are told; their number is told of all."""
AGAIN = (11, 12)
"""Seeds of the global generators under which a path is loaded twice."""


@dataclass(frozen=True, kw_only=True)
class PathCall:
    """What to ask of two paths: what they make of a ``batch`` of this kind, or (without ``scores``) where they differ.

    ``again`` asks where a path differs from itself.
    """

    batch: str = "text"
    seed: int = 0
    scores: bool = True
    again: bool = False


Rows = list[list[Any]]
"""Differences: where, what the training path has, what the inference path has, and in words what is the matter."""


class Compared:
    """Two ways of loading, loaded once."""

    def __init__(self, paths: Paths) -> None:
        """Look at both before anything is run: a forward may fill buffers."""
        self._paths = paths
        here, there = state.state(paths.training.model), state.state(paths.inference.model)
        self._prefixes = state.prefixes(here, there)
        self._states = here.within(self._prefixes[0]), there.within(self._prefixes[1])
        self._told = self._differences()
        self._wide = False

    def __call__(self, call: PathCall) -> Outputs:
        """``record``, JSON as bytes; with ``scores`` the logits of both. Inexpressible where nothing can be asked."""
        if call.scores:
            return self._scores(call)
        return {"record": as_bytes(self._again() if call.again else self._told)}

    def _scores(self, call: PathCall) -> Outputs:
        paths = self._paths
        if call.batch == "own":
            if paths.batch is None:
                raise Inexpressible("make() hands over no batch")
            made = dict(paths.batch)
        else:
            made = scores.batch(call.batch, paths.training, paths.inference, call.seed)
        self._widen()
        found = {name: scores.logits(self._path(name), self._inner(name), made) for name in WAYS}
        mask = made.get("attention_mask")
        known = {"mask": mask} if isinstance(mask, Tensor) else {}
        return {**{name: value.detach().cpu() for name, value in found.items()}, **known}

    def _widen(self) -> None:
        """Bring both models to float64, in which ways of computing the same do not differ."""
        if self._wide:
            return
        if "dtype" in self._paths.declared:
            _narrowed(*self._states)
        try:
            for name in WAYS:
                self._path(name).model.double()
        except Exception as error:
            raise Inexpressible(f"a model cannot be brought to float64: {type(error).__name__}") from error
        self._wide = True

    def _path(self, name: str) -> Path:
        found: Path = getattr(self._paths, name)
        return found

    def _inner(self, name: str) -> nn.Module:
        prefix = self._prefixes[WAYS.index(name)].strip(".")
        model = self._path(name).model
        try:
            return model.get_submodule(prefix) if prefix else model
        except AttributeError:
            return model

    def _config(self, name: str) -> Any:
        model = self._path(name).model
        return getattr(model, "config", None) or getattr(self._inner(name), "config", None)

    def _differences(self) -> dict[str, Any]:
        here, there = self._states
        found: dict[str, tuple[int, Rows] | None] = {
            "tree": self._kept(_tree(here, there)),
            "shapes": self._kept(_each(here, there, lambda a, b: (tuple(a.shape), tuple(b.shape)))),
            "dtypes": None if "dtype" in self._paths.declared else self._kept(_each(here, there, _dtypes)),
            "values": self._kept(_values(here, there)),
            "tied": self._kept(_ties(here, there)),
            "config": self._settings(configuration.fields(self._config("training")),
                                     configuration.fields(self._config("inference"))),
            **self._worded(),
            "pictures": self._pictures(),
        }  # fmt: skip
        return {name: None if one is None else {"count": one[0], "rows": one[1][:MOST]} for name, one in found.items()}

    def _settings(self, here: Mapping[str, Any] | None, there: Mapping[str, Any] | None) -> tuple[int, Rows] | None:
        if here is None or there is None:
            return None
        return self._kept(unlike(here, there))

    def _worded(self) -> dict[str, tuple[int, Rows] | None]:
        (one, two), (here, there) = (
            [getattr(self._paths, name).processor for name in WAYS],
            [getattr(self._paths, name).tokenizer for name in WAYS],
        )
        if here is None or there is None:
            return {"tokens": None, "encodes": None, "template": None}
        tokens = [*unlike(words.vocabulary(here), words.vocabulary(there)),
                  *unlike(words.settings(here, one), words.settings(there, two))]  # fmt: skip
        marks = words.marks(here, there)
        return {
            "tokens": self._kept(tokens),
            "encodes": self._kept(unlike(words.encodings(here, marks), words.encodings(there, marks))),
            "template": self._templates(words.renderings(one, here), words.renderings(two, there)),
        }

    def _templates(self, here: dict[str, Any] | None, there: dict[str, Any] | None) -> tuple[int, Rows] | None:
        if here is None and there is None:
            return None
        if here is None or there is None:
            told = ["a template" if one is not None else "no template" for one in (here, there)]
            return self._kept([["chat_template", *told, "only one path has a chat template"]])
        rows = [["chat_template", left, right, f"{name} is rendered otherwise"]
                for name, left, right, _ in unlike(here, there)]  # fmt: skip
        return self._kept(rows)

    def _pictures(self) -> tuple[int, Rows] | None:
        """Image processors by settings and answers, video processors and feature extractors by settings."""
        rows, asked = [], False
        for part in ("image_processor", "video_processor", "feature_extractor"):
            here, there = (getattr(getattr(self._paths, name).processor, part, None) for name in WAYS)
            if here is None and there is None:
                continue
            asked = True
            if here is None or there is None:
                told = ["present" if one is not None else "absent" for one in (here, there)]
                rows.append([part, *told, "only one path has it"])
                continue
            settings = list(unlike(pictures.settings(here), pictures.settings(there)))
            rows += settings
            if part == "image_processor" and not settings:
                rows += [[part, *row[1:3], f"{row[0]} differs"]
                         for row in unlike(pictures.answers(here), pictures.answers(there))]  # fmt: skip
        return self._kept(rows) if asked else None

    def _kept(self, rows: Any) -> tuple[int, Rows]:
        """Those that are not declared, and how many there are."""
        kept = [row for row in rows if not self._declared(str(row[0]))]
        return len(kept), kept

    def _declared(self, name: str) -> bool:
        return any(
            name == told or name.startswith(f"{told}.") or name.endswith(f".{told}") or fnmatch.fnmatchcase(name, told)
            for told in self._paths.declared
        )

    def _again(self) -> dict[str, Any]:
        """Each path loaded twice under unlike seeds: what of its parameters and buffers is another."""
        loads = self._paths.again
        if loads is None:
            raise Inexpressible("make() hands over loaded models, not functions that load them")
        rows: Rows = []
        for name, load in loads.items():
            prefix = self._prefixes[WAYS.index(name)]
            first, second = (_seeded(load, seed).within(prefix) for seed in AGAIN)
            rows += [[where, "one value", "another", f"the {name} path loads it otherwise each time: {text}"]
                     for where, _, _, text in _values(first, second)]  # fmt: skip
        count, kept = self._kept(rows)
        return {"again": {"count": count, "rows": kept[:MOST]}}


def _seeded(load: Callable[[], Path], seed: int) -> State:
    return state.state(called(load, seed).model)


def unlike(here: Mapping[str, Any], there: Mapping[str, Any]) -> Iterator[list[Any]]:
    """Where two mappings differ; what one does not have counts as None."""
    for name in dict.fromkeys([*here, *there]):
        left, right = configuration.plain(here.get(name)), configuration.plain(there.get(name))
        if left != right:
            yield [name, left, right, "differs between the paths"]


def _tree(here: State, there: State) -> Iterator[list[Any]]:
    pairs = (("parameter", here.parameters, there.parameters), ("buffer", here.buffers, there.buffers))
    for kind, left, right in pairs:
        for name in [name for name in left if name not in right]:
            yield [name, kind, "absent", f"only the training path has this {kind}"]
        for name in [name for name in right if name not in left]:
            yield [name, "absent", kind, f"only the inference path has this {kind}"]


def _common(here: State, there: State) -> Iterator[tuple[str, Tensor, Tensor]]:
    right = there.tensors
    yield from ((name, value, right[name]) for name, value in here.tensors.items() if name in right)


def _dtypes(left: Tensor, right: Tensor) -> tuple[str, str]:
    return str(left.dtype).removeprefix("torch."), str(right.dtype).removeprefix("torch.")


def _each(here: State, there: State, told: Callable[[Tensor, Tensor], tuple[Any, Any]]) -> Iterator[list[Any]]:
    for name, left, right in _common(here, there):
        one, two = told(left, right)
        if one != two:
            yield [name, str(one), str(two), "differs between the paths"]


def _values(here: State, there: State) -> Iterator[list[Any]]:
    rounded = here.merged or there.merged
    for name, left, right in _common(here, there):
        if left.shape != right.shape:
            continue
        if left.is_meta or right.is_meta:
            yield [name, *("no memory" if one.is_meta else "values" for one in (left, right)), "was never loaded"]
            continue
        gap = state.apart(left, right)
        if gap is not None and not (rounded and _rounding(left, gap)):
            text = f"{gap.count} of {left.numel()} elements differ, at most by {gap.worst:.3g} of {gap.reach:.3g}"
            yield [name, "one value", "another", text]


def _rounding(value: Tensor, gap: state.Apart) -> bool:
    """Whether a weight with its adapter added differs by no more than the rounding of sums in its dtype."""
    from assay.audits.laws.limits import ULPS

    if not value.is_floating_point():
        return False
    return gap.worst <= ULPS * float(torch.finfo(value.dtype).eps) * gap.reach


def _narrowed(here: State, there: State) -> None:
    """Round what is held in two dtypes to the narrower one on both sides: what is left is no matter of precision."""
    with torch.no_grad():
        for _, left, right in _common(here, there):
            if left.dtype != right.dtype and left.is_floating_point() and right.is_floating_point():
                narrow = min((left.dtype, right.dtype), key=lambda dtype: torch.finfo(dtype).bits)
                for value in (left, right):
                    value.copy_(value.to(narrow))


def _ties(here: State, there: State) -> Iterator[list[Any]]:
    both = set(here.parameters) & set(there.parameters)
    left, right = (_among(one, both) for one in (here, there))
    for tie in sorted(left ^ right, key=sorted):
        told = ["one tensor" if tie in one else "several" for one in (left, right)]
        yield [min(tie), *told, f"{' and '.join(sorted(tie))} are one tensor in one path only"]


def _among(one: State, both: set[str]) -> set[frozenset[str]]:
    return {kept for tie in one.ties if len(kept := tie & both) > 1}


@functools.lru_cache(maxsize=1)
def _compared(make: Callable[[], Any]) -> Compared:
    return Compared(called(lambda: checked(make())))


def answer(make: Callable[[], Any], call: PathCall) -> Outputs:
    """The answer about what ``make()`` returns, which is called once."""
    return _compared(make)(call)
