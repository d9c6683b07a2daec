"""A simulation as one SVG picture: quantiles of times, and each replica's share.

Pure: figures in, text out.
"""

from __future__ import annotations

from ..api.pictures import PERCENTS, bar_panel, picture, quantile_panel
from .latency import Outcome


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
        name: [1e3 * histogram.percentile(percent) for percent in PERCENTS]
        for name, histogram in curves.items()
    }
    replicas = outcome.replicas
    panels = [
        quantile_panel("milliseconds by percentile", quantiles),
        bar_panel("utilisation by replica", [one.busy_s / span for one in replicas]),
        bar_panel("prefix hit rate by replica", [one.hit_rate for one in replicas]),
        bar_panel("preemptions by replica", [one.preemptions for one in replicas]),
    ]
    return picture(title, panels)
