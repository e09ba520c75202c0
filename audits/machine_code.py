"""What nvdisasm's listing of a kernel says beyond counts of opcodes: its loops, and the loads that it has under way."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_LINE = re.compile(
    r"^\s*/\*[0-9a-f]{4,}\*/\s+(?P<guard>@!?U?P\w+\s+)?(?P<opcode>[A-Z][\w.]*)\s*(?P<operands>[^;]*);|"
    r"^(?P<label>\.L_x_\w+):",
    re.MULTILINE,
)
_REGISTER = re.compile(r"\bR(\d+)(\.64)?")
_WIDTHS = {"128": 4, "64": 2}


@dataclass(frozen=True)
class Instruction:
    """One instruction; `loop` numbers the innermost loop that it stands in, -1 outside of all."""

    opcode: str
    operands: str
    loop: int = -1


def instructions(listing: str) -> list[Instruction]:
    """All but padding, in their order. A loop is what a branch back to an earlier label encloses."""
    found: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for match in _LINE.finditer(listing):
        if match["label"]:
            labels[match["label"]] = len(found)
        elif match["opcode"] != "NOP":
            found.append((match["opcode"], match["operands"]))
    spans = list(_loops(found, labels))
    return [Instruction(*each, loop=_innermost(spans, at)) for at, each in enumerate(found)]


def _loops(found: list[tuple[str, str]], labels: dict[str, int]) -> Iterator[tuple[int, int]]:
    """(first, last) of each; the branch to itself behind a kernel's end is none."""
    for at, (opcode, operands) in enumerate(found):
        target = re.search(r"\.L_x_\w+", operands) if opcode.startswith("BRA") else None
        if target and labels.get(target[0], at) < at:
            yield labels[target[0]], at


def _innermost(spans: list[tuple[int, int]], at: int) -> int:
    around = [(last - first, number) for number, (first, last) in enumerate(spans) if first <= at <= last]
    return min(around)[1] if around else -1


def loops(code: list[Instruction]) -> tuple[tuple[int, int], ...]:
    """(instructions, those of them for the unit of special functions) of one turn of each loop, in their order."""
    numbers = sorted({each.loop for each in code} - {-1})
    bodies = [[each for each in code if each.loop == number] for number in numbers]
    return tuple((len(body), special(body)) for body in bodies)


def special(code: list[Instruction]) -> int:
    """How many take the unit of special functions: exponentials, reciprocals, conversions between kinds of number."""
    return sum(each.opcode.startswith(("MUFU", "I2F", "F2I")) for each in code)


def bytes_in_flight(code: list[Instruction]) -> int:
    """The most bytes of global memory that one thread has asked for and not yet used anything of.

    A load is under way until an instruction names a register that it fills. Each instruction is looked at once, in the
    order of the listing, and a branch is taken to be not taken.
    """
    pending: list[set[int]] = []
    most = 0
    for each in code:
        named = {
            number for match in _REGISTER.finditer(each.operands)
            for number in range(int(match[1]), int(match[1]) + _span(each, match))
        }  # fmt: skip
        pending = [load for load in pending if not load & named]
        if each.opcode.startswith("LDG"):
            first = _REGISTER.match(each.operands)
            if first is not None:
                start = int(first[1])
                pending.append(set(range(start, start + _width(each.opcode))))
        most = max(most, sum(4 * len(load) for load in pending))
    return most


def _width(opcode: str) -> int:
    """Registers that a load fills or a store empties."""
    return next((count for word, count in _WIDTHS.items() if word in opcode.split(".")), 1)


def _span(each: Instruction, match: re.Match[str]) -> int:
    """How many registers an operand stands for: the data of a wide access, an address of 64 bits, or one."""
    if match[2]:
        return 2
    return _width(each.opcode) if each.opcode.startswith(("LDG", "STG", "LDS", "STS")) else 1
