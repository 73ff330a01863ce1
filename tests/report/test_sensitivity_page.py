"""What a sensitivity analysis shows: heat map, lines and page."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from netslim.report import figures, sensitivity_page
from sensitivities import made


def captured(monkeypatch, draw: Any, *arguments: Any) -> Any:
    """The matplotlib figure that a plot function would have rendered."""
    seen: list[Any] = []
    monkeypatch.setattr(figures, "render", lambda figure, *_: seen.append(figure) or b"")
    draw(*arguments)
    return seen[0]


def test_the_heat_map_holds_the_drops(monkeypatch):
    data = made({"a": [-0.0001, 0.012, 0.5], "b": [0.001, 0.02, 0.25]}).to_dict()
    axes, bar = captured(monkeypatch, figures.sensitivity, data).axes
    drops = [[-0.01, 1.2, 50], [0.1, 2, 25]]
    np.testing.assert_allclose(axes.collections[0].get_array(), drops)
    assert [text.get_text() for text in axes.texts] == ["0.0", "1.2", "50.0", "0.1", "2.0", "25.0"]
    assert [text.get_color() for text in axes.texts][:3] == ["#101418", "#101418", "#ffffff"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["25 %", "50 %", "75 %"]
    assert bar.get_ylabel() == "drop in points"


def test_colours_get_darker_with_the_drop_in_grey_too(monkeypatch):
    axes = captured(monkeypatch, figures.sensitivity, made({"a": [0, 0.1, 0.5]}).to_dict()).axes[0]
    colours = axes.collections[0].get_cmap()(np.linspace(0, 1, 50))[:, :3]
    grey = colours @ [0.299, 0.587, 0.114]
    assert (np.diff(grey) < 0).all()


def test_a_long_network_names_every_group_and_has_no_lines(monkeypatch):
    data = made({f"layer{n // 18}.{n % 18}.conv1": [0, 0.1, 0.2] for n in range(55)}).to_dict()
    figure = captured(monkeypatch, figures.sensitivity, data)
    assert len(figure.axes[0].get_yticklabels()) == 55
    assert not figure.axes[0].texts
    assert figure.get_size_inches()[1] < 9
    assert figures.sensitivity_lines(data) is None


def test_lines_start_at_the_baseline(monkeypatch):
    axes = captured(
        monkeypatch, figures.sensitivity_lines, made({"a": [0, 0.1, 0.5], "b": [0, 0, 0]}).to_dict()
    ).axes[0]
    x, y = axes.lines[1].get_data()
    assert x == pytest.approx([0, 25, 50, 75])
    assert y == pytest.approx([90, 90, 80, 40])
    assert len(axes.lines) == 3


def test_missing_points_and_nothing_lost_can_be_drawn():
    found = made({"a": [0, 0, 0], "b": [0, 0, 0]})
    for some in (found, replace(found, rows=found.rows[:4]), replace(found, unit="number")):
        assert figures.sensitivity(some.to_dict()).startswith(b"<?xml")
        assert figures.sensitivity_lines(some.to_dict(), "png").startswith(b"\x89PNG")  # type: ignore[union-attr]


def test_the_page_is_self_contained_and_escapes():
    page = sensitivity_page.page(
        replace(made({"<a>": [0, 0.1, 0.2]}), notes=("b is <left> out",)).to_dict()
    )
    assert "<a>" not in page
    assert "&lt;a&gt;" in page
    assert "b is &lt;left&gt; out" in page
    assert "90.00&nbsp;%" in page
    assert page.count("<svg") == 2
    assert not [word for word in ("http-equiv", "<script", "<link", "src=") if word in page]
