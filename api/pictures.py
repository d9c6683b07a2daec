"""Figures as SVG panels, written by hand. Pure: figures in, text out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, MARGIN = 420, 240, 48
"""Of a panel."""
COLOURS = ("#2563eb", "#dc2626", "#059669", "#7c3aed")
PERCENTS = (*range(1, 100), 99.5, 99.9)


def picture(title: str, panels: Sequence[str]) -> str:
    """Put panels beside each other, two in a row."""
    rows = -(-len(panels) // 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}" '
        f'height="{rows * HEIGHT + 30}" font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{MARGIN}" y="20" font-size="14">{escape(title)}</text>',
    ]
    for index, panel in enumerate(panels):
        x, y = index % 2 * WIDTH, 30 + index // 2 * HEIGHT
        parts.append(f'<g transform="translate({x},{y})">{panel}</g>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def quantile_panel(title: str, curves: Mapping[str, Sequence[float]]) -> str:
    """Draw up to four curves over PERCENTS, logarithmic upwards."""
    positive = [value for values in curves.values() for value in values if value > 0] or [1.0]
    low = math.floor(math.log10(min(positive)))
    high = max(low + 1, math.ceil(math.log10(max(positive))))
    parts = [_frame(title, f"{10.0**low:g}", f"{10.0**high:g}")]
    across, up = (WIDTH - 20 - MARGIN) / 100, (HEIGHT - MARGIN - 24) / (high - low)
    for values, colour in zip(curves.values(), COLOURS, strict=False):
        points = " ".join(
            f"{MARGIN + percent * across:.1f},"
            f"{HEIGHT - MARGIN - (max(low, math.log10(value)) - low) * up:.1f}"
            for percent, value in zip(PERCENTS, values, strict=True)
            if value > 0
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
    for index, (name, colour) in enumerate(zip(curves, COLOURS, strict=False)):
        x = MARGIN + index * 90
        parts.append(f'<text x="{x}" y="{HEIGHT - 16}" fill="{colour}">{escape(name)}</text>')
    return "".join(parts)


def bar_panel(title: str, values: Sequence[float], *, ranked: bool = True) -> str:
    """Draw a bar for each value; ranked: sorted, so that the spread is a shape."""
    shown = sorted(values) if ranked else list(values)
    top = max(shown, default=0.0) or 1.0
    parts = [_frame(title, "0", f"{top:.3g}")]
    wide, tall = (WIDTH - 20 - MARGIN) / max(1, len(shown)), HEIGHT - MARGIN - 24
    for index, value in enumerate(shown):
        height = value / top * tall
        parts.append(
            f'<rect x="{MARGIN + index * wide:.2f}" y="{HEIGHT - MARGIN - height:.1f}" '
            f'width="{wide * 0.9:.2f}" height="{height:.1f}" fill="{COLOURS[0]}"/>'
        )
    return "".join(parts)


def _frame(title: str, low: str, high: str) -> str:
    bottom, right = HEIGHT - MARGIN, WIDTH - 20
    return (
        f'<text x="{MARGIN}" y="16">{escape(title)}</text>'
        f'<path d="M{MARGIN} 24V{bottom}H{right}" fill="none" stroke="#555"/>'
        f'<text x="4" y="{bottom}">{low}</text><text x="4" y="30">{high}</text>'
    )
