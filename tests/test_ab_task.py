"""The task of the A/B comparison: its answers are right, its packs are tight, and positions alone tell the place."""

from __future__ import annotations

import dataclasses
from collections import Counter
from fractions import Fraction
from itertools import islice

import pytest
import torch

from assay.audits.ab import arms, model, packs, task
from assay.audits.ab.packs import IGNORED

FAMILIES = ("qwen3_vl", "qwen2_5_vl")


def _draws(count: int, seed: int = 0) -> list[task.Sample]:
    random = torch.Generator().manual_seed(seed)
    return [task.draw(random, number % 4) for number in range(count)]


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request):
    """A family's name and its tiny model with a tower that is blind to place."""
    return request.param, model.build(model.family_of(request.param), 0).eval()


def test_answers_are_those_that_one_sees_in_the_image() -> None:
    """Read off the features laid out as a picture, without the places that the sample was made from."""
    for sample in _draws(300):
        picture = sample.features.reshape(*sample.grid, task.FEATURES)
        one = (picture[..., 0] == picture[..., 0].max()).nonzero()[0].tolist()
        two = (picture[..., 1] == picture[..., 1].max()).nonzero()[0].tolist()
        seen = [one[0], one[1], int(two[1] < one[1]), int(two[0] < one[0])]
        assert sample.answer == seen[sample.question]


def test_every_grid_and_length_of_lead_comes() -> None:
    drawn = _draws(600)
    assert {sample.grid for sample in drawn} == {grid for area in task.AREAS for grid in task.grids(area)}
    assert {len(sample.lead) for sample in drawn} == set(range(task.LONGEST_LEAD + 1))
    assert all(len(task.grids(area)) > 1 for area in task.AREAS), "the number of patches would tell the grid"


@pytest.mark.parametrize("question", range(4))
def test_bounds_are_those_of_counting(question: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Again in fractions, by another route: for each pair of places count answers over the grids behind it."""
    monkeypatch.setattr(task, "AREAS", (6, 8))
    best, total = Fraction(0), Counter()
    for area in (6, 8):
        sights: dict[tuple[int, int], Counter] = {}
        for rows, wide in [(2, area // 2), (area // 2, 2)]:
            cells = [(row, column) for row in range(rows) for column in range(wide)]
            pairs = [(m, n) for m in range(area) for n in range(area)
                     if cells[m][0] != cells[n][0] and cells[m][1] != cells[n][1]]  # fmt: skip
            for m, n in pairs:
                (row, column), (below, beside) = cells[m], cells[n]
                right = [row, column, int(beside < column), int(below < row)][question]
                sights.setdefault((m, n), Counter())[right] += Fraction(1, 4 * len(pairs))
        best += sum(max(answers.values()) for answers in sights.values())
        for answers in sights.values():
            total.update(answers)
    assert task.order_alone(question) == pytest.approx(float(best))
    assert task.one_answer(question) == pytest.approx(float(max(total.values())))


def test_order_alone_tells_above_and_nothing_else() -> None:
    """What comes first in reading order is further up, where no row is shared."""
    bounds = [task.order_alone(number) for number in range(4)]
    assert bounds[3] == pytest.approx(1)
    assert all(task.one_answer(number) < bound < 0.9 for number, bound in enumerate(bounds[:3]))


def test_rows_hold_several_samples_of_unequal_length(tiny) -> None:
    family, net = tiny
    pack = next(packs.packs(3, rows=3, per_row=4, family=family, config=net.config))
    index = pack.batch["sample_index"]
    lengths = [int((row == number).sum()) for row in index for number in range(4)]
    assert len(set(lengths)) > 2
    assert (index == -1).any(), "no row is padded: choose another seed"
    mask = pack.batch["attention_mask"]
    for row in range(3):
        for at, seen in enumerate(mask[row, 0] == 0):
            same = (index[row] == index[row, at]) & (torch.arange(len(seen)) <= at)
            assert torch.equal(seen, same)


def test_answers_alone_are_trained_on_and_asked(tiny) -> None:
    family, net = tiny
    samples = _draws(6)
    pack = packs.pack([samples[:3], samples[3:]], family, net.config)
    ids, labels = pack.batch["input_ids"], pack.batch["labels"]
    assert int((labels != IGNORED).sum()) == 6
    assert torch.equal(labels[labels != IGNORED], ids[labels != IGNORED])
    assert torch.equal(pack.target[:, :-1], labels[:, 1:])
    assert pack.question[pack.question >= 0].tolist() == [sample.question for sample in samples]
    perfect = torch.nn.functional.one_hot(pack.target.clamp(min=0), 600).float()
    assert all(hits == asked for hits, asked in pack.right(perfect))
    assert sum(hits for hits, _ in pack.right(perfect.roll(1, -1))) == 0


def test_positions_are_those_of_the_model_itself(tiny) -> None:
    """By each sample's own grid: the family's ``get_rope_index`` on the sample alone."""
    family, net = tiny
    merge = packs.merge_of(net.config)
    for sample in _draws(20):
        ids = torch.tensor([packs.token_ids(sample, net.config)])
        grid = torch.tensor([[1, sample.grid[0] * merge, sample.grid[1] * merge]])
        types = (ids == net.config.image_token_id).int()
        own, _ = net.model.get_rope_index(ids, image_grid_thw=grid, mm_token_type_ids=types)
        assert torch.equal(packs.sample_positions(sample, family, net.config), own[:, 0])


def test_a_sample_in_a_pack_is_answered_as_alone(tiny) -> None:
    family, net = tiny
    samples = _draws(3, seed=5)
    together = _logits(net, packs.pack([samples], family, net.config))
    at = 0
    for sample in samples:
        alone = _logits(net, packs.pack([[sample]], family, net.config))[0]
        torch.testing.assert_close(together[0, at : at + len(alone)], alone)
        at += len(alone)


def test_copied_positions_change_nothing_else(tiny) -> None:
    family, net = tiny
    batch = next(packs.packs(3, rows=3, per_row=4, family=family, config=net.config)).batch
    copied = arms.applied(arms.copied_positions, batch, arms.COPIED)
    assert [name for name in batch if not torch.equal(batch[name], copied[name])] == ["position_ids"]
    assert arms.true_positions(batch) is batch
    for row, index in enumerate(batch["sample_index"]):
        want = torch.cat([torch.arange(int((index == number).sum())) for number in range(4)])
        for axis in copied["position_ids"][:, row]:
            assert torch.equal(axis[index >= 0], want)
            assert not axis[index < 0].any()


def test_copied_positions_are_what_a_model_makes_of_one_dimensional_ids(tiny) -> None:
    """Case D itself: ids [rows, tokens] are spread over the axes by the family's own forward."""
    family, net = tiny
    pack = packs.pack([_draws(3, seed=5)], family, net.config)
    copied = arms.copied_positions(pack.batch)
    flat = {**pack.batch, "position_ids": copied["position_ids"][0]}
    one, other = (_logits(net, dataclasses.replace(pack, batch=batch)) for batch in (copied, flat))
    assert torch.equal(one, other)


def test_positions_are_the_only_source_of_place(tiny) -> None:
    """Four images whose patches are equal in their order, in four grids: copied positions cannot tell them apart."""
    family, net = tiny
    sample = next(one for one in _draws(50) if len(one.features) == 12)
    each = [packs.pack([[dataclasses.replace(sample, grid=grid, question=1)]], family, net.config)
            for grid in task.grids(12)]  # fmt: skip
    asked = [_logits(net, one)[0, -2] for one in each]
    blind = [_logits(net, dataclasses.replace(one, batch=arms.copied_positions(one.batch)))[0, -2] for one in each]
    assert all(torch.equal(blind[0], other) for other in blind[1:])
    assert all(not torch.equal(asked[0], other) for other in asked[1:])


def test_the_tower_sees_each_patch_alone() -> None:
    tower = model.PlaceBlind(16, 2, 0)
    pixels = torch.randn(12, task.FEATURES, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    features = tower(pixels, grid_thw=torch.tensor([[1, 4, 12]])).pooler_output
    torch.testing.assert_close(tower(pixels[order], grid_thw=torch.tensor([[1, 8, 6]])).pooler_output, features[order])


def test_lost_boundaries_reach_all_samples_but_the_first(tiny) -> None:
    family, net = tiny
    pack = packs.pack([_draws(2, seed=5)], family, net.config)
    kept, lost = (
        _logits(net, pack)[0],
        _logits(net, dataclasses.replace(pack, batch=arms.neighbours_seen(pack.batch)))[0],
    )
    first = pack.batch["sample_index"][0] == 0
    torch.testing.assert_close(lost[first], kept[first])
    assert (lost[~first] != kept[~first]).any(-1).all()


def test_data_follow_from_the_seed_alone() -> None:
    config = model.build(model.family_of("qwen3_vl"), 0).config
    made = [
        list(islice(packs.packs(seed, rows=1, per_row=2, family="qwen3_vl", config=config), 2)) for seed in (1, 1, 2)
    ]
    for one, two in zip(made[0], made[1], strict=True):
        assert all(torch.equal(one.batch[name], two.batch[name]) for name in one.batch)
    assert not torch.equal(made[0][0].batch["pixel_values"][:12], made[2][0].batch["pixel_values"][:12])
    assert not torch.equal(made[0][0].batch["pixel_values"][:12], made[0][1].batch["pixel_values"][:12])


def test_steepest_is_that_of_the_sections() -> None:
    """qwen2_5_vl gives time, height and width lanes 0, 3 and 8 of 16 first; qwen3_vl lanes 0, 1 and 2."""
    chunked = model.steepest(model.build(model.family_of("qwen2_5_vl"), 0))
    mixed = model.steepest(model.build(model.family_of("qwen3_vl"), 0))
    assert list(chunked.values()) == pytest.approx([1e6 ** -(lane / 16) for lane in (0, 3, 8)], rel=1e-4)
    assert list(mixed.values()) == pytest.approx([5e6 ** -(lane / 16) for lane in (0, 1, 2)], rel=1e-4)


def test_a_family_without_a_replaceable_tower_is_refused() -> None:
    with pytest.raises(ValueError, match="family 'glm4v': expected one of qwen3_vl"):
        model.family_of("glm4v")


def _logits(net, pack) -> torch.Tensor:
    given = {name: value for name, value in pack.batch.items() if name not in {"labels", "sample_index"}}
    with torch.no_grad():
        return net(**given, use_cache=False).logits
