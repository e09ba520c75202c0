"""Which samples go into which pack: first fit, the longest samples first.

Fit means that the tokens of a pack are at most `capacity`. The plan is the same each time, and says what becomes of
every sample: nothing is lost, and nothing is cut that fits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["POLICIES", "Piece", "Plan", "plan"]

POLICIES = ("error", "split", "truncate", "drop")
"""What may become of a sample that is longer than a pack."""


@dataclass(frozen=True)
class Piece:
    """The tokens `start` to `stop` (excluded) of a sample, by its place in the list; nearly always the whole of it."""

    sample: int
    start: int
    stop: int

    @property
    def tokens(self) -> int:
        """How many tokens it has."""
        return self.stop - self.start


@dataclass(frozen=True)
class Plan:
    """Packs of pieces, and the samples that are in none: those without tokens, and those dropped as asked."""

    packs: tuple[tuple[Piece, ...], ...]
    left_out: tuple[int, ...] = ()


def plan(lengths: Sequence[int], capacity: int, *, overlong: str = "error") -> Plan:
    """Put samples of these lengths into packs of at most `capacity` tokens.

    Args:
        lengths: tokens of each sample; one without tokens needs no place, and is told in `left_out`.
        capacity: tokens of a pack, above 0.
        overlong: what becomes of a sample longer than a pack. `error`: ValueError. `split`: it is cut into pieces of
            `capacity` tokens and a rest, of which each counts as a sample. `truncate`: its first `capacity` tokens are
            kept. `drop`: it is left out.

    Returns:
        A `Plan`: pieces by falling size, equal ones in the order of the list, each in the first pack with room for it.
    """
    sizes = _checked(lengths, capacity, overlong)
    pieces = [piece for sample, size in enumerate(sizes) for piece in _pieces(sample, size, capacity, overlong)]
    packs: list[list[Piece]] = []
    room: list[int] = []
    for piece in sorted(pieces, key=lambda piece: (-piece.tokens, piece.sample, piece.start)):
        place = next((i for i, free in enumerate(room) if free >= piece.tokens), len(packs))
        if place == len(packs):
            packs.append([])
            room.append(capacity)
        packs[place].append(piece)
        room[place] -= piece.tokens
    placed = {piece.sample for piece in pieces}
    return Plan(tuple(map(tuple, packs)), tuple(i for i in range(len(sizes)) if i not in placed))


def _pieces(sample: int, size: int, capacity: int, overlong: str) -> list[Piece]:
    if size <= capacity:
        return [Piece(sample, 0, size)] if size else []
    if overlong == "split":
        return [Piece(sample, start, min(start + capacity, size)) for start in range(0, size, capacity)]
    return [Piece(sample, 0, capacity)] if overlong == "truncate" else []


def _checked(lengths: Sequence[int], capacity: int, overlong: str) -> list[int]:
    if isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1:
        raise ValueError(f"capacity: expected a whole number above 0, got {capacity!r}")
    if overlong not in POLICIES:
        raise ValueError(f"overlong: expected one of {', '.join(POLICIES)}, got {overlong!r}")
    sizes = list(lengths)
    for i, size in enumerate(sizes):
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise ValueError(f"lengths[{i}]: expected a whole number, 0 or more, got {size!r}")
        if size > capacity and overlong == "error":
            asked = "say with overlong what is to be done"
            raise ValueError(f"lengths[{i}]: {size} tokens do not fit into a pack of {capacity}; {asked}")
    return sizes
