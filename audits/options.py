"""How much of an audit to do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """How much to audit. Amounts may differ between a laptop and CI; limits never do.

    ``brief``: relations are asked in the first dtype, on some cases. All cases are compared with the reference in the
    first dtype, some in the others. ``python``: the interpreter of another environment, whose packages foreign
    candidates are to be imported from; this one if empty.
    """

    laws: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()
    seed: int = 0
    examples: int = 20
    device: str = "cpu"
    dtypes: tuple[str, ...] = ()
    time_limit: float = 20.0
    brief: bool = False
    python: str = ""

    @property
    def filtered(self) -> bool:
        """Whether something that a full audit would exercise was left out on purpose."""
        return bool(self.laws or self.cases or self.dtypes)
