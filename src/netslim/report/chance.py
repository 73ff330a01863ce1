"""How much of an accuracy is chance: what so few pictures leave open, and whether the network
knows anything at all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from netslim.report.numbers import percent

# An accuracy is called chance where blind answers reach it more often than this.
_OFTEN = 0.01


def noise(accuracy: float, images: int, split: str, max_drop: float | None = None) -> str:
    """What the number of pictures leaves open, in a sentence.

    Args:
        accuracy: share, 0 to 1.
        images: how many it was measured on.
        split: what they are, such as ``validation``.
        max_drop: points that decide something, which may be fewer than are left open.
    """
    # Where all or none are right the formula gives 0, but the next picture may differ.
    error = 100 * max(math.sqrt(accuracy * (1 - accuracy) / images), 1 / images)
    text = (
        f"{images:,} {split} images decide: one of them is {100 / images:.2f} points, and the "
        f"standard error of an accuracy of {100 * accuracy:.1f} % is {error:.2f} points"
    )
    if max_drop is not None and error > max_drop:
        text += ", more than the drop allowed: a few images decide"
    return text


def is_chance(right: int, images: int, largest: int) -> bool:
    """Whether blind answers are right as often: whether an accuracy is not to be told from chance.

    The best that can be done without a look at the pictures is to name the most frequent class
    each time. The rule is the exact one-sided binomial test against its share p: chance, where
    ``P(X >= right)`` is above 1 % for X drawn from Binomial(images, p).

    Args:
        right: pictures whose class was named.
        images: all that were looked at.
        largest: pictures of the most frequent class; above 0.
    """
    share = largest / images
    if right <= share * images or share == 1:
        return True
    # The terms fall from here on, each by its ratio to the one before: no factorial is needed.
    logs = math.lgamma(images + 1) - math.lgamma(right + 1) - math.lgamma(images - right + 1)
    term = math.exp(logs + right * math.log(share) + (images - right) * math.log1p(-share))
    total, count = term, right
    while count < images and total <= _OFTEN and term > _OFTEN / images**2:
        term *= (images - count) / (count + 1) * share / (1 - share)
        total, count = total + term, count + 1
    return total > _OFTEN


def chance(accuracy: float, labels: Iterable[int]) -> str | None:
    """A sentence where an accuracy is chance, by `is_chance`; None where the network knows more.

    Args:
        accuracy: share, 0 to 1.
        labels: classes of the pictures that it was measured on.
    """
    counts = Counter(labels)
    return _told([accuracy], counts) if _blind(accuracy, counts) else None


def chance_among(accuracies: Mapping[str, float], labels: Iterable[int]) -> tuple[list[str], str]:
    """The names of those that are chance, and a sentence on them all; it is empty without any.

    Args:
        accuracies: of networks by name, all measured on the same pictures.
        labels: classes of these.
    """
    counts = Counter(labels)
    found = [name for name, accuracy in accuracies.items() if _blind(accuracy, counts)]
    if not found:
        return [], ""
    return found, f"{', '.join(found)}: {_told([accuracies[name] for name in found], counts)}"


def _blind(accuracy: float, counts: Counter[int]) -> bool:
    images = counts.total()
    return images > 0 and is_chance(round(accuracy * images), images, max(counts.values()))


def _told(accuracies: Iterable[float], counts: Counter[int]) -> str:
    images, shown = counts.total(), list(dict.fromkeys(map(percent, accuracies)))
    what = f"an accuracy of {shown[0]}"
    if len(shown) > 1:
        what = f"accuracies of {', '.join(shown[:-1])} and {shown[-1]}"
    return (
        f"{what} may be chance: {len(counts)} classes, {images:,} pictures, and to name the most "
        f"frequent class each time is right in {percent(max(counts.values()) / images)}"
    )


__all__ = ["chance", "chance_among", "is_chance", "noise"]
