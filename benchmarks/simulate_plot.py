"""A simulation as one SVG picture, written by hand: quantiles of times, and each replica's share.

Pure: figures in, text out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from .latency import Outcome

_WIDTH, _HEIGHT, _MARGIN = 420, 240, 48
_COLOURS = ("#2563eb", "#dc2626", "#059669", "#7c3aed")
_PERCENTS = [*range(1, 100), 99.5, 99.9]


def draw(outcome: Outcome, title: str) -> str:
    """Draw the four panels of an outcome."""
    span = outcome.makespan_s or 1.0
    latencies = outcome.latencies
    curves = {
        "queueing": latencies.queueing,
        "first token": latencies.ttft,
        "between tokens": latencies.itl,
        "whole answer": latencies.whole,
    }
    quantiles = {
        name: [1e3 * histogram.percentile(percent) for percent in _PERCENTS]
        for name, histogram in curves.items()
    }
    replicas = outcome.replicas
    panels = [
        _quantile_panel("milliseconds by percentile", quantiles),
        _bar_panel("utilisation by replica", [one.busy_s / span for one in replicas]),
        _bar_panel("prefix hit rate by replica", [one.hit_rate for one in replicas]),
        _bar_panel("preemptions by replica", [one.preemptions for one in replicas]),
    ]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * _WIDTH}" '
        f'height="{2 * _HEIGHT + 30}" font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_MARGIN}" y="20" font-size="14">{escape(title)}</text>',
    ]
    for index, panel in enumerate(panels):
        x, y = index % 2 * _WIDTH, 30 + index // 2 * _HEIGHT
        parts.append(f'<g transform="translate({x},{y})">{panel}</g>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _frame(title: str, low: str, high: str) -> str:
    bottom, right = _HEIGHT - _MARGIN, _WIDTH - 20
    return (
        f'<text x="{_MARGIN}" y="16">{escape(title)}</text>'
        f'<path d="M{_MARGIN} 24V{bottom}H{right}" fill="none" stroke="#555"/>'
        f'<text x="4" y="{bottom}">{low}</text><text x="4" y="30">{high}</text>'
    )


def _quantile_panel(title: str, curves: dict[str, list[float]]) -> str:
    """Draw curves over the percentiles, logarithmic in time."""
    positive = [value for values in curves.values() for value in values if value > 0] or [1.0]
    low = math.floor(math.log10(min(positive)))
    high = max(low + 1, math.ceil(math.log10(max(positive))))
    parts = [_frame(title, f"{10.0**low:g}", f"{10.0**high:g}")]
    across, up = (_WIDTH - 20 - _MARGIN) / 100, (_HEIGHT - _MARGIN - 24) / (high - low)
    for values, colour in zip(curves.values(), _COLOURS, strict=True):
        points = " ".join(
            f"{_MARGIN + percent * across:.1f},"
            f"{_HEIGHT - _MARGIN - (max(low, math.log10(value)) - low) * up:.1f}"
            for percent, value in zip(_PERCENTS, values, strict=True)
            if value > 0
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
    for index, (name, colour) in enumerate(zip(curves, _COLOURS, strict=True)):
        x = _MARGIN + index * 90
        parts.append(f'<text x="{x}" y="{_HEIGHT - 16}" fill="{colour}">{escape(name)}</text>')
    return "".join(parts)


def _bar_panel(title: str, values: Sequence[float]) -> str:
    """Draw a bar for each value, sorted, so that the spread is a shape."""
    ranked = sorted(values)
    top = ranked[-1] if ranked and ranked[-1] > 0 else 1.0
    parts = [_frame(title, "0", f"{top:.3g}")]
    wide, tall = (_WIDTH - 20 - _MARGIN) / max(1, len(ranked)), _HEIGHT - _MARGIN - 24
    for index, value in enumerate(ranked):
        height = value / top * tall
        parts.append(
            f'<rect x="{_MARGIN + index * wide:.2f}" y="{_HEIGHT - _MARGIN - height:.1f}" '
            f'width="{wide * 0.9:.2f}" height="{height:.1f}" fill="{_COLOURS[0]}"/>'
        )
    return "".join(parts)
