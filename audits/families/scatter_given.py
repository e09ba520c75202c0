"""Known features in the form in which a family's own method would return them.

A form is ``list`` ([n,H] of each medium), ``stacked`` ([K,n,H]) or ``flat`` ([N,H]): fields of an output of
transformers since 5.0. Before, methods returned the features as they are (``bare:list``) or beside those of deepstack,
which were flat (``pair:list``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from assay.audits.terms import Inexpressible

LAYERS = 2
"""How many layers of deepstack features are handed over."""


class Given(dict[Any, Any]):
    """What the replaced method returns: an output of transformers, as far as a forward looks at it."""

    def __getattr__(self, name: str) -> Any:
        """A field by name; None where it has none."""
        return self.get(name)

    def __getitem__(self, key: Any) -> Any:
        """A field by name, or the features as the first of a tuple."""
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


def given(rows: Tensor, counts: list[int], form: str, amount: str) -> Any:
    """Features ``rows`` [N,H] of media with so many each, in a form, as many as ``amount`` of a call asks for."""
    wrapped, _, shape = form.rpartition(":")
    rows, counts = _changed(rows, counts, shape, amount)
    layers = [_shaped(rows * (2 + layer), counts, shape) for layer in range(LAYERS)]
    shaped = _shaped(rows, counts, shape)
    if wrapped == "bare":
        return shaped
    if wrapped == "pair":
        return shaped, [rows * (2 + layer) for layer in range(LAYERS)]
    more = {"attention_mask": torch.ones(shaped.shape[:2], dtype=torch.bool)} if shape == "stacked" else {}
    return Given(pooler_output=shaped, last_hidden_state=shaped, deepstack_features=layers, **more)


def _changed(rows: Tensor, counts: list[int], shape: str, amount: str) -> tuple[Tensor, list[int]]:
    if shape == "stacked" and amount in ("more", "less"):  # by one in each medium
        change = 1 if amount == "more" else -1
        media = [torch.cat([part, part[-1:] + 1])[: len(part) + change] for part in torch.split(rows, counts)]
        return torch.cat(media), [count + change for count in counts]
    if amount == "more":
        return torch.cat([rows, rows[-1:] + 1]), [*counts[:-1], counts[-1] + 1]
    if amount == "less":
        return rows[:-1], [*counts[:-1], counts[-1] - 1]
    if amount == "medium":
        return torch.cat([rows, rows[-counts[-1] :] + 1]), [*counts, counts[-1]]
    return (rows[:1], [1]) if amount == "one" else (rows, counts)


def _shaped(rows: Tensor, counts: list[int], shape: str) -> Any:
    if shape == "list":
        return tuple(torch.split(rows, counts))
    if shape == "stacked":
        if len(set(counts)) > 1:
            raise Inexpressible("its features are stacked: all media have as many")
        return rows.view(len(counts), -1, rows.shape[-1])
    return rows
