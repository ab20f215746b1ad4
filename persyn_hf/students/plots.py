"""The comparison as a picture: one panel per student and evaluation, one point per policy."""

from __future__ import annotations

from pathlib import Path

from persyn_hf.students.statistics import Summary

_WIDTH, _HEIGHT = 4.2, 3.2


def plot_comparison(summary: Summary, path: Path) -> None:
    """Draws means with their intervals and every seed's mean, and writes a PNG.

    Args:
        summary (`Summary`): Of [`summarise`].
        path (`Path`): The file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    students = list(dict.fromkeys(cell.student for cell in summary.cells))
    evaluations = list(dict.fromkeys(cell.evaluation for cell in summary.cells))
    figure = Figure(figsize=(_WIDTH * len(evaluations), _HEIGHT * len(students)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(students), len(evaluations), squeeze=False)
    for row, student in enumerate(students):
        for column, evaluation in enumerate(evaluations):
            panel = axes[row][column]
            cells = [cell for cell in summary.cells if (cell.student, cell.evaluation) == (student, evaluation)]
            for place, cell in enumerate(reversed(cells)):
                color = "C1" if cell.policy == summary.reference else "C0"
                panel.plot([cell.value.low, cell.value.high], [place, place], color=color, linewidth=2)
                panel.plot([cell.value.mean], [place], "o", color=color)
                panel.plot(cell.by_seed, [place] * len(cell.by_seed), "|", color="0.4", markersize=8)
            panel.set_yticks(range(len(cells)), [cell.policy for cell in reversed(cells)])
            panel.set_title(f"{student}: {evaluation}")
            panel.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120, metadata={"Software": None})
