"""What chance alone explains: exact tails of the binomial distribution, for laws about random choices.

A law that looks at draws must not accuse a right sampler, whatever its generator does: it speaks only where an event is
less likely than :data:`ALARM` for one that is right, all that it looked at taken together.
"""

from __future__ import annotations

import math

ALARM = 1e-9
"""How likely a right sampler may be accused, by one law on one case."""


def tail(hits: int, trials: int, share: float) -> float:
    """How likely a binomial count is at least as far from its mean as ``hits``, on the same side.

    ``share`` is the chance of each of the ``trials``, 0 to 1.
    """
    if share in {0.0, 1.0}:
        return float(hits == trials * share)
    below = hits <= trials * share
    terms = [_log_chance(k, trials, share) for k in (range(hits + 1) if below else range(hits, trials + 1))]
    largest = max(terms)
    return min(1.0, math.exp(largest) * math.fsum(math.exp(term - largest) for term in terms))


def _log_chance(hits: int, trials: int, share: float) -> float:
    ways = math.lgamma(trials + 1) - math.lgamma(hits + 1) - math.lgamma(trials - hits + 1)
    return ways + hits * math.log(share) + (trials - hits) * math.log1p(-share)
