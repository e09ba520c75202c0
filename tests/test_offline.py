"""The model behind `docs/kernels.md`, by numbers that can be followed by hand, and the page itself."""

import json
from dataclasses import replace

import pytest

from assay.audits import machine_code
from assay.audits.compile import ARCHITECTURES, CompileReport
from assay.benchmarks import offline, offline_page, predict
from assay.benchmarks.predict import Chip, Work

LISTING = """
kernel:
        /*0000*/                   LDG.E.128 R4, desc[UR8][R2.64] ;
        /*0010*/              @!P0 LDG.E R9, desc[UR8][R2.64+0x10] ;
        /*0020*/                   IADD3 R0, R7, 0x1, RZ ;
.L_x_1:
        /*0030*/                   MUFU.EX2 R3, R9 ;
        /*0040*/                   LDG.E.64 R10, desc[UR8][R2.64] ;
        /*0050*/              @!P6 BRA `(.L_x_1) ;
        /*0060*/                   STG.E.128 desc[UR8][R14.64], R8 ;
        /*0070*/                   EXIT ;
.L_x_2:
        /*0080*/                   BRA `(.L_x_2);
        /*0090*/                   NOP;
"""
REPORT = CompileReport(
    kernel="k", arch=90, registers=64, stack=0, shared=1024, spills=0, wide_loads=2, narrow_loads=0, wide_stores=2,
    narrow_stores=0, late_loads=0, instructions=100, special=4, loops=((40, 2), (10, 1)), in_flight=32, warps=4,
    programs=1000,
)  # fmt: skip
CHIP = Chip(name="round", multiprocessors=10, shared=1 << 17, cache=1_000_000, clock=1e9, bandwidth=1e12)
WORK = Work(shape="round", tokens=1000, floor=10**9, moved=2 * 10**9, read=10**9, turns=(3, 1))


def stored() -> list[offline.Compiled]:
    return offline.from_json(offline.STORED.read_text())


def test_loops_and_loads_are_read_from_a_listing() -> None:
    code = machine_code.instructions(LISTING)
    assert [each.opcode for each in code if each.loop >= 0] == ["MUFU.EX2", "LDG.E.64", "BRA"]
    assert len(code) == 9
    assert machine_code.loops(code) == ((3, 1),)
    assert machine_code.special(code) == 1
    assert machine_code.bytes_in_flight(code) == 20  # R7 is of the first load, R9 the whole second one


def test_a_store_uses_the_registers_that_it_empties() -> None:
    listing = LISTING.replace("R9, desc", "R30, desc").replace("EX2 R3, R9", "EX2 R3, R3")
    listing = listing.replace("STG.E.128 desc[UR8][R14.64], R8", "LDG.E R40, desc[UR8][R14.64]")
    code = machine_code.instructions(listing)
    assert machine_code.bytes_in_flight(code) == 20
    waiting = machine_code.instructions(listing.replace("IADD3 R0, R7", "IADD3 R0, R1"))
    assert machine_code.bytes_in_flight(waiting) == 16 + 4 + 8 + 4


def test_a_multiprocessor_holds_what_registers_shared_memory_and_warps_permit() -> None:
    assert predict.resident(REPORT, CHIP) == 8  # 65,536 / (64 * 128)
    assert predict.resident(replace(REPORT, registers=65), CHIP) == 7  # 2,080 a warp are given as 2,304
    assert predict.resident(replace(REPORT, registers=16), CHIP) == 16  # 64 warps
    assert predict.resident(replace(REPORT, registers=16, warps=1), CHIP) == 32
    assert predict.resident(replace(REPORT, shared=1 << 16), CHIP) == 2


def test_loops_count_by_their_turns() -> None:
    assert predict.executed(REPORT, (1, 1)) == (100, 4)
    assert predict.executed(REPORT, (3, 2)) == (100 + 80 + 10, 4 + 4 + 1)
    with pytest.raises(ValueError, match="2 loops of k"):
        predict.executed(REPORT, (3,))


def test_the_four_times_and_both_shares() -> None:
    found = predict.predict(REPORT, WORK, CHIP)
    assert found is not None
    in_flight = 10 * 8 * 4 * 32 * 32
    assert found.seconds["memory"] == pytest.approx(2e-3)
    assert found.seconds["latency"] == pytest.approx(1e9 * predict.LATENCY / in_flight)
    assert found.seconds["issue"] == pytest.approx(180 * 4 * 1000 / 4 / 10 / 1e9)
    assert found.seconds["special"] == pytest.approx(8 * 4 * 1000 * 2 / 10 / 1e9)
    assert found.bound == "latency"
    waiting, working = found.seconds["latency"], found.seconds["issue"]
    assert found.high == pytest.approx(1e-3 / (predict.RAMP + waiting))
    assert found.low == pytest.approx(1e-3 / (predict.RAMP + waiting + working))


@pytest.mark.parametrize(("kept", "seconds"), [(12_000, 2e-3), (13_000, 3e-3)])
def test_a_second_reading_comes_from_the_cache_while_the_rows_fit(kept: int, seconds: float) -> None:
    """Ten multiprocessors with eight programs each keep 0.96 or 1.04 MB, of 1 MB."""
    found = predict.predict(REPORT, replace(WORK, again=10**9, kept=kept), CHIP)
    assert found is not None
    assert found.seconds["memory"] == pytest.approx(seconds)


def test_nothing_is_predicted_without_a_ceiling_or_for_one_program() -> None:
    assert predict.predict(REPORT, WORK, replace(CHIP, bandwidth=None)) is None
    assert predict.predict(REPORT, replace(WORK, alone=True), CHIP) is None


def test_every_kernel_of_the_page_is_stored_for_every_chip() -> None:
    asked = [(family, job) for family in offline.SETS for job in offline.load(family).page(ARCHITECTURES)]
    assert [(each.family, each.job) for each in stored()] == asked
    assert len(json.loads(offline.STORED.read_text())["kernels"]) == len(asked)


def test_what_is_stored_passes_every_gate() -> None:
    assert not list(offline.faults(stored()))


def test_the_page_is_that_of_what_is_stored() -> None:
    text = offline.STORED.read_text()
    assert offline.PAGE.read_text() == "\n".join(offline_page.page(stored(), json.loads(text)["triton"])) + "\n"


def test_no_prediction_without_its_word() -> None:
    """Each stands in italics below a heading that says so, and only for the chip whose ceiling is assumed."""
    lines = [line for line in offline.PAGE.read_text().splitlines() if " % " in line or "% to" in line]
    shares = [line for line in lines if line.startswith("|")]
    assert shares
    assert all("H200" in line and line.split("|")[-2].strip().startswith("*") for line in shares)


def test_gates_name_the_kernel() -> None:
    first = stored()[0]
    spilling = replace(first, report=replace(first.report, stack=16, spills=4, narrow_stores=1))
    assert [first.name in line or str(first.job) in line for line in offline.faults([spilling])] == [True, True]


def test_more_registers_than_are_stored() -> None:
    text = json.loads(offline.STORED.read_text())
    first = stored()[0]
    more = replace(first, report=replace(first.report, registers=first.report.registers + 1))
    text["triton"] = offline.version("triton")
    (line,) = offline.grown([more, *stored()[1:]], text)
    assert line.startswith(f"{first.name}: {first.report.registers + 1} registers, {first.report.registers} are stored")
    assert not list(offline.grown([more], {**text, "triton": "0.0"}))


def test_numbers_survive_the_file() -> None:
    found = stored()
    assert offline.from_json(offline.to_json(found)) == found
