"""How much of an accuracy is chance."""

from __future__ import annotations

import math

import pytest

from netslim.report import sensitivity_page
from netslim.report.chance import chance, chance_among, is_chance, noise
from sensitivities import made


def tail(right: int, images: int, share: float) -> float:
    """P(X >= right), added up term by term."""
    terms = (
        math.comb(images, k) * share**k * (1 - share) ** (images - k)
        for k in range(right, images + 1)
    )
    return math.fsum(terms)


@pytest.mark.parametrize(("images", "largest"), [(10, 5), (50, 5), (200, 40), (360, 37), (7, 6)])
def test_the_rule_is_the_exact_binomial_one(images, largest):
    for right in range(images + 1):
        expected = tail(right, images, largest / images) > 0.01
        assert is_chance(right, images, largest) == expected, right


def test_many_pictures_and_one_class_are_no_trouble():
    assert is_chance(100_000, 1_000_000, 100_000)
    assert not is_chance(101_000, 1_000_000, 100_000)
    assert not is_chance(1_000_000, 1_000_000, 100_000)
    assert is_chance(20, 20, 20)


def test_the_most_frequent_class_counts_and_not_their_number():
    labels = [0] * 80 + [1] * 20
    assert "80.00 % may be chance: 2 classes, 100 pictures" in str(chance(0.8, labels))
    assert chance(0.95, labels) is None
    assert chance(0.8, [0] * 50 + [1] * 50) is None


def test_a_few_pictures_cannot_tell():
    assert "may be chance" in str(chance(1.0, [0, 0, 1, 1]))
    assert chance(1.0, [0, 1] * 5) is None
    assert chance(0.0, []) is None


def test_the_noise_of_an_accuracy():
    said = noise(0.9, 100, "validation", max_drop=2)
    assert said.startswith("100 validation images decide: one of them is 1.00 points")
    assert "90.0 % is 3.00 points, more than the drop allowed" in said
    assert "drop allowed" not in noise(0.9, 100, "validation", max_drop=3.5)
    assert "100.0 % is 1.00 points" in noise(1.0, 100, "validation")


def test_a_sensitivity_tells_its_noise_where_its_pictures_were_counted():
    data = made({"a": [0, 0.1, 0.2]}).to_dict()
    assert "standard error" not in sensitivity_page.page(data)
    data["settings"] |= {"images": 400, "split": "validation"}
    assert "an accuracy of 90.0 % is 1.50 points" in sensitivity_page.page(data)


def test_several_accuracies_are_told_in_one_sentence():
    labels = [*[0] * 50, *[1] * 50]
    names, said = chance_among({"a": 0.5, "b": 0.95, "c": 0.48, "d": 0.5}, labels)
    assert names == ["a", "c", "d"]
    assert said.startswith("a, c, d: accuracies of 50.00 % and 48.00 % may be chance: 2 classes")
    assert chance_among({"a": 0.5, "b": 0.5}, labels)[1].startswith("a, b: an accuracy of 50.00 %")
    assert chance_among({"b": 0.95}, labels) == ([], "")
    assert chance_among({"b": 0.95}, []) == ([], "")
