"""The picture of a run: who answers how much, and how much reward the router captures."""

from __future__ import annotations

import os
from typing import Any

from persyn_hf.publishing.provenance import Provenance

INK, BAR, ACCENT = "#7d8590", "#9aa3ad", "#2f81f7"
#: Baselines in the order they are drawn: the key of the held-out table, and its label.
POLICIES = (("random", "random"), ("best_single", "best single"), ("router", "router"), ("oracle", "oracle"))


def plot_run(provenance: Provenance, path: str | os.PathLike[str]) -> None:
    """Draws the allocation per teacher and, where the router reports them, the held-out rewards with 95% intervals.

    The background is transparent and the ink a middle grey, so that the picture reads in light and in dark.

    Args:
        provenance (`Provenance`): What is drawn.
        path (`str` or `PathLike`): The PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    held_out = provenance.router.get("held_out") or {}
    rewards = [(label, held_out[key]) for key, label in POLICIES if key in held_out]
    height = 1.2 + 0.45 * max(len(provenance.teachers), len(rewards))
    figure = Figure(figsize=(9.0 if rewards else 5.0, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2 if rewards else 1, squeeze=False)[0]
    _draw_allocation(axes[0], provenance)
    if rewards:
        _draw_rewards(axes[1], rewards)
    figure.savefig(path, dpi=150, transparent=True)


def _draw_allocation(axis: Any, provenance: Provenance) -> None:
    names = [_short(teacher.name) for teacher in provenance.teachers]
    positions = range(len(names))
    bars = axis.barh(positions, [teacher.rows for teacher in provenance.teachers], color=ACCENT)
    axis.bar_label(bars, [f"{teacher.share:.0%}" for teacher in provenance.teachers], padding=4, color=INK)
    axis.set_yticks(positions, names)
    axis.margins(x=0.15)
    axis.xaxis.get_major_locator().set_params(integer=True)
    _style(axis, "Training rows per teacher")


def _draw_rewards(axis: Any, rewards: list[tuple[str, Any]]) -> None:
    positions = range(len(rewards))
    means = [entry["mean"] for _, entry in rewards]
    spread = [
        [entry["mean"] - entry["low"] for _, entry in rewards],
        [entry["high"] - entry["mean"] for _, entry in rewards],
    ]
    colors = [ACCENT if label == "router" else BAR for label, _ in rewards]
    axis.barh(positions, means, xerr=spread, color=colors, ecolor=INK, capsize=3)
    for position, mean, high in zip(positions, means, (entry["high"] for _, entry in rewards), strict=True):
        axis.annotate(f"{mean:.3f}", (high, position), (5, 0), textcoords="offset points", va="center", color=INK)
    axis.set_yticks(positions, [label for label, _ in rewards])
    axis.margins(x=0.15)
    _style(axis, "Held-out reward (95% interval)")


def _style(axis: Any, title: str) -> None:
    axis.set_title(title, color=INK, fontsize=11)
    axis.invert_yaxis()
    axis.tick_params(colors=INK)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)


def _short(name: str) -> str:
    """A name as plain text of at most 24 characters; `$` would start mathematics."""
    text = "".join(character if character.isprintable() else "�" for character in name)
    text = text if len(text) <= 24 else f"{text[:23]}…"
    return text.replace("$", r"\$")
