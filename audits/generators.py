"""The generators that a whole process shares, for code under audit that draws from them and takes no other."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The generators of Python, numpy and torch that all share, with this seed; afterwards they are as they were."""
    kept, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - what others use
    with torch.random.fork_rng(devices=[]):
        try:
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            torch.default_generator.manual_seed(seed)
            yield
        finally:
            random.setstate(kept)
            np.random.set_state(legacy)  # noqa: NPY002
