"""Puts implementations into a model's sites, counts how often they run there, and takes them out again.

The rotary's site is found in ``patch_rotary``, the loss's in ``patch_losses``, that of features in ``patch_scatter``.
For patches that users bring see ``patch_users``; for the audit of a patch ``patch_runs``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

from torch import nn

from assay.audits.patch_calls import Calls
from assay.audits.patch_losses import LossPatch
from assay.audits.patch_rotary import RotaryPatch
from assay.audits.patch_runs import implementation
from assay.audits.patch_scatter import ScatterPatch
from assay.audits.patch_users import apply_users, patched_model

__all__ = ["Calls", "Patch", "apply_users", "implementation", "patch", "patched_model"]


Part = RotaryPatch | LossPatch | ScatterPatch


def patch(
    target: nn.Module | str,
    *,
    mrope: str | Callable[..., Any] | None = None,
    masked_loss: str | Callable[..., Any] | None = None,
    masked_scatter: str | Callable[..., Any] | None = None,
) -> Patch:
    """A patch of a model, to be used in a ``with`` block or by ``apply`` and ``undo``.

    What is not named stays as it is; where nothing is, ``mrope="kernel"`` is meant.

    Args:
        target: a live model (only that model is changed), or the name of a family (every model of it in this process,
            now and later).
        mrope: its multi-axis rotary embedding. ``"kernel"`` (fused Triton), ``"reference"`` (plain PyTorch), or a
            function with the signature of the function that it replaces.
        masked_loss: the loss that it computes from labels, without storing logits: the output of a forward with labels
            has none. ``"kernel"`` (chunks; Triton on a GPU), ``"reference"`` (plain PyTorch, all scored rows at once),
            or a function with the signature of ``assay.kernels.linear_cross_entropy``. A forward without labels is as
            before. Where no label counts, the loss is zero, not NaN.
        masked_scatter: how it puts features of images, videos and sounds to their placeholders. ``"reference"``, for
            which one feature too few or too many is an error, or a function of embeddings [B,S,H], mask [B,S] and
            features [N,H] that returns embeddings [B,S,H].

    LookupError, naming the families, when the model is of none of them or the installed release lacks the site;
    TypeError for a head or a loss that the fused loss cannot stand for.
    """
    if mrope is None and masked_loss is None and masked_scatter is None:
        mrope = "kernel"
    parts: list[Part] = []
    if mrope is not None:
        parts.append(RotaryPatch(target, mrope))
    if masked_loss is not None:
        parts.append(LossPatch(target, masked_loss))
    if masked_scatter is not None:
        parts.append(ScatterPatch(target, masked_scatter))
    return Patch(tuple(parts))


class Patch:
    """One or more replacements, put in and taken out together. Patches nest, and are undone in any order."""

    def __init__(self, parts: tuple[Part, ...]) -> None:
        """Keep what is to be replaced; nothing is changed yet."""
        self._parts = parts

    @property
    def calls(self) -> Mapping[str, Calls]:
        """Calls of each site since the patch was made, forward and backward."""
        return {site: calls for part in self._parts for site, calls in part.meter.calls.items()}

    def apply(self) -> Self:
        """Put the replacements in, all or none. RuntimeError when they are in already."""
        done: list[Part] = []
        try:
            for part in self._parts:
                part.apply()
                done.append(part)
        except BaseException:
            for part in reversed(done):
                part.undo()
            raise
        return self

    def undo(self) -> None:
        """Put back exactly what was there. Does nothing when the patch is not in.

        RuntimeError when somebody else replaced a site after this patch: undoing that comes first.
        """
        for part in reversed(self._parts):
            part.undo()

    def __enter__(self) -> Self:
        """Apply."""
        return self.apply()

    def __exit__(self, *_: object) -> None:
        """Undo, also after an exception."""
        self.undo()
