"""Wrong pieces."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from assay.audits.components.packed_positions.shard import ANY, IGNORED, NAME, Inputs, read
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs
from assay.reference.packed_positions import shard_map

Pieces = list[dict[str, Tensor]]


def pieces(inputs: Inputs, *, shifted: bool = True) -> Pieces:
    """The right pieces, by hand: what the faults depart from."""
    maps, whole = _maps(inputs), dict(inputs.batch)
    if shifted:
        del whole["labels"]
        whole["shift_labels"] = inputs.targets()
    return [{name: x[..., own] for name, x in whole.items()} for own in maps]


def _maps(inputs: Inputs) -> Tensor:
    return shard_map(inputs.tokens, inputs.world, "contiguous" if inputs.layout == ANY else inputs.layout)


def _changed(made: Pieces, rank: int, changes: Mapping[str, Tensor]) -> Pieces:
    return [{**own, **changes} if place == rank else own for place, own in enumerate(made)]


@fault(NAME, "together", "layout", link="https://github.com/NVIDIA-NeMo/Automodel/pull/1482")
def ids_cut_in_dimension_one(inputs: Inputs) -> Outputs:
    """Every tensor is cut in dimension 1, which is the batch for ids of several axes.

    Effect: an error where the batch cannot be divided; where it can, ranks have the positions of other rows.
    """
    made = pieces(inputs)
    ids = inputs.batch["position_ids"]
    if ids.ndim == 3 and ids.shape[1] % inputs.world == 0:
        cut = ids.chunk(inputs.world, dim=1)
        made = [{**own, "position_ids": cut[rank]} for rank, own in enumerate(made)]
    return read(made)


@fault(NAME, "together", link="https://github.com/QwenLM/Qwen3-VL/issues/1138")
def ids_sliced_by_the_batch(inputs: Inputs) -> Outputs:
    """Position ids are sliced as ``[:, start:stop]``, like all that has a row for each sample.

    Effect: of ids of three axes that is a slice of the batch: they keep the length of the whole row, or lose samples.
    """
    made, ids, own = pieces(inputs), inputs.batch["position_ids"], inputs.tokens // inputs.world
    if ids.ndim == 3:
        made = [{**piece, "position_ids": ids[:, rank * own : (rank + 1) * own]} for rank, piece in enumerate(made)]
    return read(made)


@fault(NAME, "targets", "layout")
def labels_cut_and_shifted_later(inputs: Inputs) -> Outputs:
    """Labels are cut like the ids, and each rank's loss shifts its own.

    Effect: one target is lost at every cut, and in a zigzag the middle of a piece predicts a token far away.
    """
    return read(pieces(inputs, shifted=False))


@fault(NAME, "targets", link="https://github.com/verl-project/verl/pull/3724")
def labels_rolled_in_the_piece(inputs: Inputs) -> Outputs:
    """Labels are rolled by one within each piece, so that the first comes last.

    Effect: the last token of a piece is trained to predict its first.
    """
    made = pieces(inputs, shifted=False)
    return read([{**own, "shift_labels": own["labels"].roll(-1, dims=-1)} for own in made])


@fault(NAME, "targets", link="https://github.com/NVIDIA-NeMo/Automodel/pull/3544")
def labels_rolled_over_rows(inputs: Inputs) -> Outputs:
    """Labels are rolled in the flattened batch before they are cut.

    Effect: the last token of each row is trained to predict the first of the next one.
    """
    labels = inputs.batch["labels"].clone()
    labels[:, 0] = inputs.batch["input_ids"][:, 0] + 500  # nobody ignores the first token of a row before shifting
    moved = labels.flatten().roll(-1).view_as(labels)
    return read([{**own, "shift_labels": moved[..., m]} for own, m in zip(pieces(inputs), _maps(inputs), strict=True)])


@fault(NAME, "targets", "layout")
def labels_in_another_layout(inputs: Inputs) -> Outputs:
    """The ids are cut in the layout that was asked for, the labels into halves and quarters in their order.

    Effect: with a zigzag every loss is against the wrong token; without one all is well.
    """
    cut = inputs.targets().chunk(inputs.world, dim=-1)
    return read([{**own, "shift_labels": cut[rank]} for rank, own in enumerate(pieces(inputs))])


@fault(NAME, "together")
def numbers_of_samples_uncut(inputs: Inputs) -> Outputs:
    """Which sample a token belongs to is handed to each rank for the whole row.

    Effect: each rank but the first takes the boundaries of the first.
    """
    return read([{**own, "segments": inputs.batch["segments"]} for own in pieces(inputs)])


@fault(NAME, "together")
def positions_from_zero(inputs: Inputs) -> Outputs:
    """Each rank counts the positions of its piece itself, from zero.

    Effect: the second half of a long document is rotated as if it stood at its start.
    """
    made = []
    for own in pieces(inputs):
        ids = own["position_ids"]
        made.append({**own, "position_ids": torch.arange(ids.shape[-1]).expand_as(ids)})
    return read(made)


@fault(NAME, "layout")
def half_a_zigzag(inputs: Inputs) -> Outputs:
    """The second halves of the pieces are dealt out in the order of the ranks, as the first are.

    Effect: the first ranks have the least to do, and what attention takes for later is not.
    """
    if inputs.layout != "zigzag":
        return read(pieces(inputs))
    parts = torch.arange(inputs.tokens).view(2 * inputs.world, -1)
    maps = torch.cat([parts[: inputs.world], parts[inputs.world :]], dim=1)
    whole = {**{name: x for name, x in inputs.batch.items() if name != "labels"}, "shift_labels": inputs.targets()}
    return read([{name: x[..., own] for name, x in whole.items()} for own in maps])


@fault(NAME, "uneven")
def rest_left_out(inputs: Inputs) -> Outputs:
    """Each rank gets the quotient of tokens and ranks; what is left over is nobody's.

    Effect: the end of every row is not trained on, and that is where the answers are.
    """
    parts = inputs.world * (2 if inputs.layout == "zigzag" else 1)
    return read(pieces(inputs.cut(inputs.tokens // parts * parts)))


@fault(NAME, "uneven")
def zigzag_for_a_multiple_of_ranks(inputs: Inputs) -> Outputs:
    """Rows must be a multiple of the number of ranks, also where each rank has two pieces, of the size of a quotient.

    Effect: with an odd number of tokens for each rank the last one of each of them is lost.
    """
    if inputs.tokens % inputs.world:
        raise ValueError(f"{inputs.tokens} tokens for {inputs.world} ranks")
    parts = inputs.world * (2 if inputs.layout == "zigzag" else 1)
    return read(pieces(inputs.cut(inputs.tokens // parts * parts)))


@fault(NAME, "layout")
def second_node_turned_round(inputs: Inputs) -> Outputs:
    """Ranks are numbered node by node, four to each, and the second node's in the other direction.

    Effect: on one node all is well; on two, ring attention masks what it should see.
    """
    made = pieces(inputs)
    return read([*made[:4], *made[:3:-1]])


@fault(NAME, "once")
def one_token_over(inputs: Inputs) -> Outputs:
    """Pieces share a token at each cut, so that every target is at hand.

    Effect: these tokens are trained on twice and attended to twice.
    """
    made = pieces(inputs)
    if inputs.world == 1:
        return read(made)
    first = {name: x[..., :1] for name, x in made[1].items()}
    return read([{name: torch.cat([x, first[name]], dim=-1) for name, x in own.items()} for own in made])


@fault(NAME, "once")
def every_rank_the_first_piece(inputs: Inputs) -> Outputs:
    """The rank is read before the group is made: it is 0 everywhere.

    Effect: a part of each row is trained on W times, the rest never.
    """
    made = pieces(inputs)
    return read([made[0] for _ in made])


@fault(NAME, "uneven")
def targets_filled_in_front(inputs: Inputs) -> Outputs:
    """Rows are filled up to a multiple of the ranks behind their last token, targets before their first.

    Effect: wherever a row had to be filled up, each token is to predict what an earlier one should.
    """
    parts = inputs.world * (2 if inputs.layout == "zigzag" else 1)
    more = -inputs.tokens % parts
    full = {name: torch.cat([x, x.new_zeros(*x.shape[:-1], more)], dim=-1) for name, x in inputs.batch.items()}
    targets = inputs.targets()
    full["shift_labels"] = torch.cat([targets.new_full((len(targets), more), IGNORED), targets], dim=-1)
    del full["labels"]
    maps = shard_map(inputs.tokens + more, inputs.world, "contiguous" if inputs.layout == ANY else inputs.layout)
    return read([{name: x[..., own] for name, x in full.items()} for own in maps])


FAULTS = gathered(globals())
