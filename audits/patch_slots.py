"""One attribute of a module or a class that is replaced for a while. Replacements nest, and are undone in any order."""

from __future__ import annotations

from typing import Any

_STACKS: dict[tuple[int, str], list[Slot]] = {}
"""Replacements in effect, by owner and attribute, the newest last."""


class Slot:
    """The place of one replacement. ``below`` is what it stands on; while it is not in, what the owner itself has."""

    def __init__(self, owner: Any, name: str, label: str) -> None:
        """Name the attribute; ``label`` is what messages call it. Nothing is changed yet."""
        self._owner, self._name, self._label = owner, name, label
        self._key = (id(owner), name)
        self._inherited = name not in vars(owner)
        self._mine: Any = None
        self.original = self.below = getattr(owner, name)

    def fill(self, value: Any) -> None:
        """Put a replacement in. RuntimeError when there is one in already."""
        if self._mine is not None:
            message = f"{self._label} is already patched by this patch"
            raise RuntimeError(message)
        self.below, self._mine = getattr(self._owner, self._name), value
        self._inherited = self._name not in vars(self._owner)
        setattr(self._owner, self._name, value)
        _STACKS.setdefault(self._key, []).append(self)

    def clear(self) -> bool:
        """Put back exactly what was there, and say whether anything was in.

        RuntimeError when somebody else replaced the attribute after this replacement: undoing that comes first.
        """
        if self._mine is None:
            return False
        stack = _STACKS[self._key]
        place = stack.index(self)
        if place + 1 < len(stack):
            above = stack[place + 1]
            above.below, above._inherited = self.below, self._inherited  # noqa: SLF001 - of the same class
        elif vars(self._owner).get(self._name) is self._mine:
            self._put_back()
        else:
            message = f"{self._label} was replaced by other code after this patch; undo that first"
            raise RuntimeError(message)
        stack.remove(self)
        self._mine, self.below = None, self.original
        return True

    def _put_back(self) -> None:
        if self._inherited:
            delattr(self._owner, self._name)
        else:
            setattr(self._owner, self._name, self.below)
