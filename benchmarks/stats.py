"""The arithmetic of the report: medians, ratios with their spread, geometric means. Pure functions on numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Ratio(NamedTuple):
    """The median of the ratios of the single rounds, and the smallest and the largest of them."""

    median: float
    low: float
    high: float


def ratio(samples: Sequence[float], reference: Sequence[float]) -> Ratio | None:
    """How many times the reference's value the samples have, round by round; None when nothing can be compared.

    Rounds are compared pairwise because neighbours in time shared the machine's mood: the ratio of medians would not.
    """
    ratios = [mine / other for mine, other in zip(samples, reference, strict=False) if mine > 0 and other > 0]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios)) if ratios else None


def inverse(value: Ratio) -> Ratio:
    """The same comparison seen from the reference."""
    return Ratio(1 / value.median, 1 / value.high, 1 / value.low)


def geometric_mean(values: Iterable[float]) -> float | None:
    """The mean for ratios; None for no value."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else None
