"""Runs a family's own forward up to its text model, with features that are known, for ``masked_scatter.model``.

What makes features is replaced by a function that returns known ones in the form that the forward expects. The forward
is given ids with placeholders and left where it calls its text model: what it hands over there is the answer. It lives
in the worker; the judge never imports transformers.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from assay.audits.families import samples, scattering
from assay.audits.families._shrink import ORDINARY
from assay.audits.families.scatter_given import given
from assay.audits.families.scatter_seen import Reached, Seen, deepstack, inner_gradients, upstream_of, watched
from assay.audits.terms import Inexpressible, Outputs

MAKERS = {"image": "get_image_features", "video": "get_video_features", "audio": "get_audio_features"}
"""The methods that are replaced."""
ARGUMENTS = {
    "image": ("pixel_values",),
    "video": ("pixel_values_videos", "pixel_values"),
    "audio": ("input_features", "input_values", "audio_input_ids", "audio_values"),
}
"""The arguments that make a forward ask for features; what they hold goes to the replaced method alone."""
TYPES = ("mm_token_type_ids", "token_type_ids")
"""The arguments that say what each token is; some forwards demand them in training, as processors give them."""
TOKENS = ("{}_token_id", "{}_token_index", "{}_patch_id")
FRAME = 4
COPIED = 1_000_000
"""Numbers of an embedding table that is compared as a whole, before and after a forward."""
PAD = 1


@dataclass(frozen=True, kw_only=True)
class ScatterCall:
    """What to run. ``samples`` in the notation of ``audits.families.samples``: ``i2x3`` is an image of six features.

    ``keys`` say what each sample holds. ``features``: ``right``, one ``more`` or ``less`` than there are placeholders
    of the first modality that has some, a ``medium`` more, ``one`` alone, ``moved`` (one more, and one less of the next
    modality), or ``none``: the forward is given no media. ``typed``: placeholders where words were, one more than there
    are features, or, with ``lost``, as many fewer in a later sample. ``changed``: keys whose samples hold other words
    and features. ``twin``: a word of the batch has the placeholder's embedding. ``padding`` is the side of the padding.
    ``training``: the model is in training mode, without dropout. ``embedded``: the forward is given the embeddings of
    the ids in their place.
    """

    samples: tuple[str, ...]
    keys: tuple[int, ...] = ()
    features: str = "right"
    typed: bool = False
    lost: bool = False
    changed: tuple[int, ...] = ()
    twin: bool = False
    training: bool = False
    embedded: bool = False
    padding: str = "right"
    seed: int = 0
    dtype: str = "float32"


def implementation(target: Mapping[str, Any]) -> ScatterModel:
    """The model of ``target["family"]``, under ``target["patch"]`` if there is one."""
    return ScatterModel(str(target["family"]), patch=str(target.get("patch", "")))


class ScatterModel:
    """A family's tiny model whose features are known."""

    def __init__(self, name: str, breakage: Callable[[Any], None] = lambda _model: None, patch: str = "") -> None:
        """Build it, find out which media it takes and in which form; LookupError where it takes none."""
        self.name = name
        self._narrow: dict[str, ScatterModel] = {}
        self._again = functools.partial(ScatterModel, name, breakage, patch)
        self.whole: Any = None
        if patch:
            self.model, self.whole = scattering.patched(name, patch)
        else:
            self.model = scattering.build(name)
        breakage(self.model)
        for module in self.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # what training mode is to show is not what is drawn
        for part in scattering.PASSED_ON.get(name, ()):
            setattr(self.model, part, torch.nn.Identity())
        self.width = int(self.model.get_input_embeddings().weight.shape[-1])
        self.ids = {modality: token for modality in MAKERS if (token := self._token(modality)) is not None}
        self.forms: dict[str, str] = {}
        reasons = []
        for modality in tuple(self.ids):
            try:
                self.forms[modality] = self._form(modality)
            except LookupError as error:
                reasons.append(str(error))
                del self.ids[modality]
        if not self.ids:
            raise LookupError(f"{name}: {'; '.join(reasons) or 'no placeholder id in its configuration'}")

    def _token(self, modality: str) -> int | None:
        """The id of a modality's placeholder, where the model has such and asks a method for the features."""
        if not hasattr(self.model, MAKERS[modality]) or not self._argument(modality):
            return None
        found = (getattr(self.model.config, pattern.format(modality), None) for pattern in TOKENS)
        return next((token for token in found if isinstance(token, int)), None)

    def _argument(self, modality: str) -> str:
        taken = inspect.signature(self.model.forward).parameters
        return next((name for name in ARGUMENTS[modality] if name in taken), "")

    def _form(self, modality: str) -> str:
        """The form in which a forward takes features: that of its own tower, else the first that it runs with."""
        letter = {"image": "i2x2", "video": "v1x2x2", "audio": "a4"}[modality]
        reasons = []
        for form in scattering.forms(self.name, modality):
            self.forms[modality] = form
            try:
                out = self(ScatterCall(samples=(f"t2 {letter} t1 {letter}", "t3")))
            except Exception as error:  # noqa: BLE001 - whatever a forward makes of features of another form
                reasons.append(f"{form}: {type(error).__name__}: {' '.join(str(error).split())[:120]}")
            else:
                mask = out[f"mask:{modality}"]
                if out["embeddings"].shape[-1] == self.width and not torch.equal(
                    out["embeddings"][mask], out["text"][mask]
                ):
                    return form
                reasons.append(f"{form}: the placeholders stay as they are")
        del self.forms[modality]
        raise LookupError(f"its forward takes {modality} features in no form that is known ({'; '.join(reasons)})")

    def __call__(self, call: ScatterCall) -> Outputs:
        """``embeddings`` [B,S,H] as the text model gets them, ``text`` as the layer gave them, ``feature:MODALITY``.

        ``input_ids`` [B,S]; ``mask:MODALITY`` where its placeholders are; ``grad:text`` and ``grad:feature:MODALITY``
        for ``upstream`` [B,S,H]; ``deepstack:LAYER`` [B,S,H], what that layer adds, zero elsewhere, where there is.
        """
        if call.dtype != "float32":
            return self._of_dtype(call)
        return self.answer(call)

    def _of_dtype(self, call: ScatterCall) -> Outputs:
        """From a model of its own: rounding this one's weights would change what it answers afterwards."""
        if call.dtype not in self._narrow:
            self._narrow[call.dtype] = self._again()
        return self._narrow[call.dtype].answer(call)

    def answer(self, call: ScatterCall) -> Outputs:
        """The answer of this very model, which is converted to the dtype of the call."""
        ids, media = self._ids(call)
        with torch.enable_grad():
            features = {name: self._features(name, media[name], call) for name in self.ids if name in media}
            handed = self._handed(features, media, call)
            seen = self._run(ids, handed, call)
        assert seen.text is not None
        assert seen.merged is not None
        masks = {name: ids == token for name, token in self.ids.items()}
        upstream = upstream_of(seen.merged)
        inner = inner_gradients(seen, features)
        leaves = {"text": seen.text, **{f"feature:{name}": rows for name, rows in features.items()}}
        grads = torch.autograd.grad(seen.merged, list(leaves.values()), upstream, allow_unused=True)
        return {
            "input_ids": ids, "embeddings": seen.merged.detach(), "text": seen.text.detach(), "upstream": upstream,
            "adds": torch.tensor(self.name in scattering.ADDS),
            **{f"mask:{name}": mask for name, mask in masks.items()},
            **{f"feature:{name}": rows.detach() for name, rows in features.items()},
            **{
                f"grad:{name}": torch.zeros_like(leaf) if grad is None else grad
                for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
            },
            **deepstack(seen, ids), **inner, "rewritten": torch.tensor(seen.rewritten),
        }  # fmt: skip

    def _ids(self, call: ScatterCall) -> tuple[Tensor, dict[str, list[tuple[int, int, int]]]]:
        """Ids [B,S], and of each modality its media: the key of the sample, which one of it, how many features."""
        keys = call.keys or tuple(range(len(call.samples)))
        rows: list[Tensor] = []
        media: dict[str, list[tuple[int, int, int]]] = {}
        for key, sample in zip(keys, call.samples, strict=True):
            own = key + 1000 * (key in call.changed)
            draw = torch.Generator().manual_seed(1_000_003 * call.seed + own)
            parts = [torch.zeros(0, dtype=torch.int64)]
            for place, segment in enumerate(samples.parse(sample).segments):
                modality, count = _counted(segment)
                if modality == "text":
                    parts.append(torch.randint(PAD + 1, ORDINARY, (count,), generator=draw))
                    continue
                if modality not in self.ids:
                    raise Inexpressible(f"{self.name} takes no {modality}, or in no form that is known")
                parts.append(torch.full((count,), self.ids[modality]))
                media.setdefault(modality, []).append((own, place, count))
            rows.append(torch.cat(parts))
        ids = torch.full((len(rows), max(map(len, rows))), PAD)
        for row, own_ids in zip(ids, rows, strict=True):
            row[len(row) - len(own_ids) if call.padding == "left" else 0 :][: len(own_ids)] = own_ids
        if call.typed:
            self._type(ids, media, lost=call.lost)
        return ids, media

    def _type(self, ids: Tensor, media: Mapping[str, Any], *, lost: bool) -> None:
        """Put a placeholder where a word is, in ``ids`` itself; with ``lost``, a word for one in a later sample."""
        token = self.ids[next(iter(media), next(iter(self.ids)))]
        words = _words(ids).nonzero().tolist()
        later = (ids == token).nonzero().tolist()
        if lost:
            words = [place for place in words if later and place[0] < later[-1][0]]
        if not words:
            raise Inexpressible("needs a word, and with it a placeholder in a later sample")
        if lost:
            ids[tuple(later[-1])] = PAD + 1
        ids[tuple(words[-1])] = token

    def _features(self, name: str, media: Sequence[tuple[int, int, int]], call: ScatterCall) -> Tensor:
        """Known features [N,H] of a modality; what one holds depends on its sample's key and its place there."""
        rows = []
        for key, place, count in media:
            draw = torch.Generator().manual_seed(7919 * (1_000_003 * call.seed + key) + 31 * place + len(name))
            rows.append(3 * torch.randn((count, self.width), generator=draw) + 0.5)
        return torch.cat(rows).to(getattr(torch, call.dtype)).requires_grad_()

    def _handed(self, features: Mapping[str, Tensor], media: Mapping[str, Any], call: ScatterCall) -> dict[str, Any]:
        """What the replaced methods return."""
        if call.features == "none":
            return {}
        amounts = [call.features] if call.features != "moved" else ["more", "less"]
        if len(features) > 1 and self.name in scattering.EXCLUSIVE:
            raise Inexpressible("it takes images or videos, not both in a batch")
        if len(amounts) > len(features):
            raise Inexpressible("has too few modalities")
        amounts += ["right"] * (len(features) - len(amounts))
        return {
            name: given(rows, [count for _, _, count in media[name]], self.forms[name], amount)
            for (name, rows), amount in zip(features.items(), amounts, strict=True)
        }

    def _run(self, ids: Tensor, handed: Mapping[str, Any], call: ScatterCall) -> Seen:
        dtype = getattr(torch, call.dtype)
        self.model.to(dtype).train(call.training)
        if self.whole is not None:
            self.whole.train(call.training)  # a patch may ask the model that it was given
        pixels = {self._argument(name): torch.zeros(FRAME, 3, FRAME, FRAME, dtype=dtype) for name in handed}
        taken = inspect.signature(self.model.forward).parameters
        if "qformer_input_ids" in taken:
            pixels["qformer_input_ids"] = ids
        if "image" in handed and "high_res_pixel_values" in taken:
            pixels["high_res_pixel_values"] = torch.zeros(FRAME, 3, FRAME, FRAME, dtype=dtype)
        if "audio" in handed and self.name in scattering.MASKED:
            pixels["input_features_mask"] = torch.ones(FRAME, FRAME, dtype=torch.bool)
        if call.training:
            pixels |= {name: self._types(ids) for name in TYPES if name in taken}
        with self._twins(ids, call), watched(self.model, ids) as seen, _replaced(self.model, handed):
            rows = self.table(ids)
            words = {"inputs_embeds": self.model.get_input_embeddings()(ids)} if call.embedded else {"input_ids": ids}
            try:
                self.model(**words, attention_mask=(ids != PAD).long(), **pixels)
            except Reached:
                seen.rewritten = int((self.table(ids) != rows).any(-1).sum())
                return seen
        raise LookupError("its forward ended without a call of a text model with inputs_embeds")

    def _types(self, ids: Tensor) -> Tensor:
        """[B,S] int64: 0 at words and padding, at placeholders 1 for images, 2 for videos, 3 for sounds."""
        types = torch.zeros_like(ids)
        for name, token in self.ids.items():
            types[ids == token] = 1 + tuple(MAKERS).index(name)
        return types

    def table(self, ids: Tensor) -> Tensor:
        """A copy of the embedding table; of a large one, of the rows of a batch's ids and of the placeholders."""
        whole: Tensor = self.model.get_input_embeddings().weight.detach()
        if whole.numel() <= COPIED:
            return whole.clone()
        return whole[torch.tensor(sorted({*ids.flatten().tolist(), *self.ids.values()}))]

    @contextlib.contextmanager
    def _twins(self, ids: Tensor, call: ScatterCall) -> Iterator[None]:
        """Where it is asked for, a word of the batch has the embedding of the first modality's placeholder."""
        words = ids[_words(ids)]
        if not call.twin or not len(words):
            yield
            return
        rows = self.model.get_input_embeddings().weight.detach()
        word, token = int(words[-1]), next(iter(self.ids.values()))
        kept = rows[word].clone()
        rows[word] = rows[token]
        try:
            yield
        finally:
            rows[word] = kept


def _words(ids: Tensor) -> Tensor:
    return (ids > PAD) & (ids < ORDINARY)


def _counted(segment: samples.Segment) -> tuple[str, int]:
    match segment:
        case samples.Text(tokens):
            return "text", tokens
        case samples.Image(height, width):
            return "image", height * width
        case samples.Video(steps, height, width, _):
            return "video", steps * height * width
        case samples.Audio(seconds):
            return "audio", math.ceil(seconds)


@contextlib.contextmanager
def _replaced(model: Any, handed: Mapping[str, Any]) -> Iterator[None]:
    """The methods that make features return what is known."""
    for name, answer in handed.items():
        setattr(model, MAKERS[name], lambda *_args, answer=answer, **_kwargs: answer)
    try:
        yield
    finally:
        for name in handed:
            delattr(model, MAKERS[name])
