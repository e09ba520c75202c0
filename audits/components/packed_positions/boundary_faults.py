"""Wrong cumulative lengths."""

from __future__ import annotations

import torch
from torch import Tensor

from assay.audits.components.packed_positions.boundaries import NAME, answer, reference
from assay.audits.components.packed_positions.rows import Inputs
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs


def _ends(lengths: Tensor) -> Outputs:
    return answer(torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int(), int(lengths.max()) if len(lengths) else 0)


def _starts(starts: Tensor) -> Outputs:
    """The outputs for samples that start where this row [T] is true."""
    places = starts.nonzero().flatten()
    return _ends(torch.cat([places, places.new_tensor([len(starts)])]).diff())


def _real_positions(inputs: Inputs) -> Tensor:
    return inputs.position_ids[inputs.segments != 0]


@fault(NAME, "counted", "parity")
def ids_that_fall(inputs: Inputs) -> Outputs:
    """A sample begins where a position id is smaller than the one before.

    Effect: after a sample of one token the next one is not told from it, and sees it.
    """
    ids = _real_positions(inputs)
    return _starts(torch.cat([torch.ones(1, dtype=torch.bool), ids[1:] < ids[:-1]]))


@fault(NAME, "by_row", "counted", link="https://github.com/axolotl-ai-cloud/axolotl/issues/1375")
def first_row_for_all(inputs: Inputs) -> Outputs:
    """The lengths are those of the first row, as many times as there are rows.

    Effect: with a batch of one all is well; with more, boundaries cut through the samples of all other rows.
    """
    own = torch.tensor(inputs.row(0).lengths())
    return _ends(own.repeat(len(inputs.segments)))


@fault(NAME, "counted")
def rows_run_on(inputs: Inputs) -> Outputs:
    """A sample begins where the number changes in the flattened batch, so not where one row ends and the next begins.

    Effect: a row that holds one sample is joined to the row before it.
    """
    flat = inputs.segments[inputs.segments != 0]
    return _starts(torch.cat([torch.ones(1, dtype=torch.bool), flat[1:] != flat[:-1]]))


@fault(NAME, "counted", link="https://github.com/fla-org/flash-linear-attention/pull/842")
def one_sample_a_row(inputs: Inputs) -> Outputs:
    """The lengths are made from a mask of ones and zeros, which knows rows and no samples.

    Effect: states and attention run on from sample to sample.
    """
    return _ends((inputs.segments != 0).sum(1))


@fault(NAME, "counted", link="https://github.com/OpenRLHF/OpenRLHF/issues/587")
def padding_is_a_sample(inputs: Inputs) -> Outputs:
    """Numbers are counted from the mask as it is, in which zero is one more sample.

    Effect: right as long as no row has padding; with it, every boundary is off.
    """
    flat = torch.cat([own.unique_consecutive(return_counts=True)[1] for own in inputs.segments])
    return _ends(flat)


@fault(NAME, "counted")
def without_the_end(inputs: Inputs) -> Outputs:
    """Where samples start is told, and not where the last one ends.

    Effect: the last sample is not computed.
    """
    out = reference(inputs)
    return {**out, "cu_seqlens": out["cu_seqlens"][:-1]}


@fault(NAME, "longest", "parity")
def largest_position_id(inputs: Inputs) -> Outputs:
    """The longest length is the largest position id.

    Effect: the last token of the longest sample is left out wherever the length is a multiple of the block.
    """
    out = reference(inputs)
    ids = _real_positions(inputs)
    return {**out, "max_length": ids.max() if len(ids) else out["max_length"]}


@fault(NAME, "int32", "returns")
def as_torch_counts(inputs: Inputs) -> Outputs:
    """The lengths are int64.

    Effect: a kernel that takes them as int32 reads zeros between them.
    """
    out = reference(inputs)
    return {**out, "cu_seqlens": out["cu_seqlens"].long()}


@fault(NAME, "counted")
def summed_in_bfloat16(inputs: Inputs) -> Outputs:
    """Lengths are summed under autocast, in bfloat16.

    Effect: from token 257 on samples end a few tokens too early or too late.
    """
    ends = torch.tensor([0, *inputs.lengths()]).cumsum(0).to(torch.bfloat16).int()
    return answer(ends, int(ends.diff().max()) if len(ends) > 1 else 0)


@fault(NAME, "counted")
def lengths_in_two_bytes(inputs: Inputs) -> Outputs:
    """Cumulative lengths are kept in two bytes each on their way to the device.

    Effect: right up to 32767 tokens; in longer rows, those with videos, ends are negative.
    """
    out = reference(inputs)
    return {**out, "cu_seqlens": out["cu_seqlens"].to(torch.int16).int()}


@fault(NAME, "keys")
def keys_of_the_whole_row(inputs: Inputs) -> Outputs:
    """Lengths of queries are those of the samples, lengths of keys those of the rows.

    Effect: attention pairs samples of queries with rows of keys; what it does then depends on the kernel.
    """
    out, sizes = reference(inputs), (inputs.segments != 0).sum(1)
    ends = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]).int()
    return {**out, "keys:cu_seqlens": ends, "keys:max_length": sizes.max() if len(sizes) else out["max_length"]}


@fault(NAME, "indices")
def indices_of_the_first_samples(inputs: Inputs) -> Outputs:
    """Real tokens are looked for by the number 1, as in a mask of ones and zeros.

    Effect: of each row the first sample alone reaches attention.
    """
    return {**reference(inputs), "indices": (inputs.segments == 1).flatten().nonzero().flatten()}


FAULTS = gathered(globals())
