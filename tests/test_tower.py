"""What a family's vision tower makes its features of: the run, its laws, and towers that are broken."""

from __future__ import annotations

import pytest
import torch
from fault_checks import WITHOUT_TENSORS, check_convicts, check_laws_have_faults

from assay.audits import registry, sweep
from assay.audits.components.masked_scatter import tower
from assay.audits.families import discovery
from assay.audits.families.tower_run import LEVELS, TowerCall, TowerModel
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Fault, Inexpressible, Verdict

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(isinstance(discovery.family("qwen3_vl"), str), reason="this transformers has no qwen3_vl"),
]


def test_a_feature_is_made_of_its_own_patches() -> None:
    out = TowerModel("qwen3_vl")(TowerCall(samples=("t2 i4x6", "i2x2 t1"), keys=(0, 1)))
    assert out["features"].shape[0] == out["reach"].shape[0] == 7
    assert (out["reach"] != 0).sum(-1).tolist() == [4] * 7
    assert (out["reach"][1] != 0).nonzero().flatten().tolist() == [2, 3, 8, 9]
    assert out["cell"].tolist()[:12] == [0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2]
    torch.testing.assert_close(out["weight"].sum(-1), torch.ones(28, dtype=torch.float64))
    assert {"deepstack:0", "reach:1"} <= set(out)


def test_samples_without_one_kind_of_media_are_refused() -> None:
    for samples in (("t3",), ("i2x2", "v1x2x2")):
        with pytest.raises(ValueError, match="samples: expected images or videos, not both"):
            _ = TowerCall(samples=samples, keys=(0,)).media


def test_more_patches_than_shades_are_refused() -> None:
    with pytest.raises(ValueError, match=f"at most {LEVELS} patches"):
        TowerModel("qwen3_vl")(TowerCall(samples=("i16x16",), keys=(0,)))


@pytest.mark.parametrize("name", ["ernie4_5_vl_moe", "hunyuan_vl", "paddleocr_vl", "glm4v", "qwen2_5_vl"])
def test_families_of_transformers_are_right(name: str) -> None:
    """Steps that are merged, newlines behind each row, patches of four dimensions, convolutions, windows."""
    if isinstance(reason := discovery.family(name), str):
        pytest.skip(reason)
    assert sweep.judged(tower.NAME, name).verdict == Verdict.PASS


def test_a_family_without_videos_says_so() -> None:
    if isinstance(reason := discovery.family("hunyuan_vl"), str):
        pytest.skip(reason)
    with pytest.raises(Inexpressible, match="has no get_video_features"):
        TowerModel("hunyuan_vl")(TowerCall(samples=("v2x2x2",), keys=(0,)))


@pytest.mark.parametrize("fault", registry.faults(tower.NAME), ids=lambda fault: fault.name)
def test_each_named_law_convicts(fault: Fault) -> None:
    check_convicts(fault)


def test_every_law_of_a_tower_must_catch_a_fault() -> None:
    check_laws_have_faults(tower.NAME, but=WITHOUT_TENSORS)


def test_a_form_that_breaks_nothing_is_right() -> None:
    """What the faults depart from."""
    target = {"kind": "factory", "ref": tower.FACTORY, "operation": tower.NAME, "family": tower.DEFAULT_FAMILY}
    clean = Candidate(operation=tower.NAME, name="clean", target=target, trusted=True)
    assert audit(registry.operation(tower.NAME), clean, Options(examples=0)).verdict == Verdict.PASS
