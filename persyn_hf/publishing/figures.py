"""Figures of a run: training rows per teacher, the teachers' scores on the probe, and held-out rewards.

The background is transparent and the text is medium grey, readable on white and on black.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persyn_hf.config import HELD_OUT_POLICIES, POLICY_LABELS
from persyn_hf.packages import require
from persyn_hf.publishing.markdown import fixed, one_line
from persyn_hf.publishing.metadata import is_known
from persyn_hf.publishing.provenance import Provenance, TeacherShare

INK, FAINT, BAR, ACCENT = "#727a84", "#727a8455", "#727a8480", "#2f81f7"
WIDTH, DPI = 8.0, 144
_SQUARE = 5.6
_Box = tuple[float, float, float, float]

#: Names of the figures.
FIGURES = ("allocation", "teachers", "reward")


class Figures:
    """Figures of one run, shared by the dataset's and the router's card.

    They are drawn in a separate thread while Arrow hashes and writes rows, for which it releases the interpreter's
    lock.

    Args:
        provenance (`Provenance`): Facts to draw.
    """

    def __init__(self, provenance: Provenance) -> None:
        require("draw the figures of a card", "matplotlib")
        pool = ThreadPoolExecutor(1, thread_name_prefix="persyn-figures")
        self._drawing = pool.submit(_draw, provenance)
        pool.shutdown(wait=False)

    @property
    def drawn(self) -> dict[str, bytes]:
        """PNG bytes by figure name (see [`describe_figures`]); the same numbers give the same bytes."""
        return self._drawing.result()


def _draw(provenance: Provenance) -> dict[str, bytes]:
    draw = {"allocation": _allocation, "teachers": _teachers, "reward": _rewards}
    return {name: draw[name](provenance) for name in describe_figures(provenance)}


def describe_figures(provenance: Provenance) -> dict[str, str]:
    """Returns the alt text of every figure for which the provenance has numbers.

    Returns:
        `dict[str, str]`: `allocation` always; `teachers` if the probe's scores are known; `reward` if the router
            reports held-out rewards.
    """
    alts = {"allocation": _allocation_alt(provenance)}
    if any(teacher.strength is not None for teacher in provenance.teachers):
        alts["teachers"] = _teachers_alt(provenance)
    if is_known((provenance.router.get("held_out") or {}).get("router")):
        alts["reward"] = _rewards_alt(provenance)
    return alts


def _allocation(provenance: Provenance) -> bytes:
    teachers = provenance.teachers
    figure, axis = _canvas(0.9 + 0.34 * len(teachers))
    positions = range(len(teachers))
    bars = axis.barh(positions, [teacher.rows for teacher in teachers], color=ACCENT, height=0.66)
    labels = [f"{teacher.rows:,} · {_percent(teacher.share)}" for teacher in teachers]
    axis.bar_label(bars, labels, padding=5, color=INK)
    axis.set_yticks(positions, _labels(teachers))
    axis.margins(x=0.22)
    axis.set_xticks([])
    axis.invert_yaxis()
    _style(axis, "Training rows per teacher", sides=("left",))
    return _png(figure)


def _teachers(provenance: Provenance) -> bytes:
    """Draws mean quality and learnability, normalised within the prompt, so that the reward's contours are lines."""
    known = [teacher for teacher in provenance.teachers if teacher.strength is not None]
    points = np.array(
        [[t.strength.normalized_quality, t.strength.normalized_learnability] for t in known if t.strength]
    )
    figure, axis = _canvas(_SQUARE)
    low, high = points.min(axis=0), points.max(axis=0)
    margin = np.maximum(0.18 * (high - low), 0.02)
    frame = low - margin, high + margin
    (left, bottom), (right, top) = frame
    alpha = float((provenance.router.get("reward") or {}).get("alpha", 0.4))
    grid_x, grid_y = np.meshgrid(np.linspace(left, right, 200), np.linspace(bottom, top, 200))
    lines = axis.contour(grid_x, grid_y, (1 - alpha) * grid_x + alpha * grid_y, levels=7, colors=FAINT, linewidths=1.0)
    places = _far_from(points, lines.allsegs, *frame)
    axis.clabel(lines, fmt="%.2f", fontsize=8, colors=INK, manual=places)
    sizes = [60 + 900 * teacher.share for teacher in known]
    axis.scatter(
        points[:, 0], points[:, 1], s=sizes, color=ACCENT, alpha=0.75, edgecolors=INK, linewidths=0.8, zorder=3
    )
    axis.set_xlim(left, right)
    axis.set_ylim(bottom, top)
    names = dict(zip((t.name for t in provenance.teachers), _labels(provenance.teachers), strict=True))
    _cut_lines(lines, _label_points(axis, points, [names[teacher.name] for teacher in known], sizes))
    axis.set_xlabel("mean quality, normalised within the prompt", color=INK)
    axis.set_ylabel("mean learnability, normalised within the prompt", color=INK)
    _style(axis, f"Teachers on the probe; lines of equal reward, α = {alpha:g}; area: share of rows")
    return _png(figure)


def _far_from(
    points: NDArray[np.float64],
    lines: Sequence[Sequence[NDArray[np.float64]]],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
) -> list[tuple[float, float]]:
    """Returns the place on each line that is farthest from all points and from the frame `low` to `high`."""
    places = []
    for line in (line for level in lines for line in level if len(line)):
        away = np.linalg.norm((line[:, None] - points) / (high - low), axis=2).min(axis=1)
        inside = (np.minimum(line - low, high - line) / (high - low)).min(axis=1)
        x, y = line[np.minimum(away, 4 * inside).argmax()]
        places.append((float(x), float(y)))
    return places


def _cut_lines(lines: Any, boxes: Sequence[_Box]) -> None:
    """Removes the parts of the lines that would cross a name."""
    from matplotlib.path import Path

    cut = []
    for path in lines.get_paths():
        x, y = path.vertices.T
        free = np.ones(len(x), dtype=bool)
        for left, bottom, right, top in boxes:
            free &= (x < left) | (x > right) | (y < bottom) | (y > top)
        codes = np.full(len(x), Path.LINETO) if path.codes is None else path.codes.copy()
        codes[1:][~free[:-1]] = Path.MOVETO
        cut.append(Path(path.vertices[free], codes[free]))
    lines.set_paths(cut)


def _label_points(axis: Any, points: NDArray[np.float64], names: Sequence[str], sizes: Sequence[float]) -> list[_Box]:
    """Labels the points on the right, left, top or bottom, where a name overlaps least with other elements.

    Returns:
        `list[_Box]`: Boxes of the names, in the data's units.
    """
    left, right = axis.get_xlim()
    bottom, top = axis.get_ylim()
    # Positions in points of 1/72 inch; the axes fill about nine tenths of the canvas.
    scale = np.array([0.9 * 72 * WIDTH / (right - left), 0.85 * 72 * _SQUARE / (top - bottom)])
    places = (points - np.array([left, bottom])) * scale
    radii = np.sqrt(np.asarray(sizes) / np.pi) + 3
    taken = [(x - r, y - r, x + r, y + r) for (x, y), r in zip(places, radii, strict=True)]
    limit = (right - left) * scale[0]
    for (x, y), radius, name, point in zip(places, radii, names, points, strict=True):
        width = 5.4 * len(name)
        choices = [
            ("left", radius, 0.0, (x + radius, y - 6, x + radius + width, y + 6)),
            ("right", -radius, 0.0, (x - radius - width, y - 6, x - radius, y + 6)),
            ("center", 0.0, radius + 4, (x - width / 2, y + radius - 2, x + width / 2, y + radius + 10)),
            ("center", 0.0, -radius - 4, (x - width / 2, y - radius - 10, x + width / 2, y - radius + 2)),
        ]
        side, across, up, box = min(choices, key=lambda choice: _covered(choice[3], taken, limit))
        taken.append(box)
        axis.annotate(
            name,
            point,
            (across, up),
            textcoords="offset points",
            ha=side,
            va="center",
            color=INK,
            fontsize=9,
            zorder=4,
        )
    corner = np.array([left, bottom])
    return [
        (*(np.array(box[:2]) / scale + corner), *(np.array(box[2:]) / scale + corner)) for box in taken[len(points) :]
    ]


def _covered(box: _Box, taken: Sequence[_Box], limit: float) -> float:
    """Returns the area of a box that is outside the axes or already occupied; 0 if it is free."""
    outside = max(0.0, -box[0]) + max(0.0, box[2] - limit)
    overlaps = (
        max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
        * max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
        for other in taken
    )
    return 100 * outside + sum(overlaps)


def _policies(provenance: Provenance) -> dict[str, Any]:
    """Returns the held-out entry of every policy that has one, in the order of the card's table."""
    held_out = provenance.router["held_out"]
    return {key: held_out[key] for key in HELD_OUT_POLICIES if is_known(held_out.get(key))}


def _rewards(provenance: Provenance) -> bytes:
    rewards = _policies(provenance)
    figure, axis = _canvas(0.9 + 0.42 * len(rewards))
    positions = range(len(rewards))
    means = [entry["mean"] for entry in rewards.values()]
    spread = [
        [entry["mean"] - entry["low"] for entry in rewards.values()],
        [entry["high"] - entry["mean"] for entry in rewards.values()],
    ]
    colors = [f"{ACCENT}b0" if key == "router" else BAR for key in rewards]
    axis.barh(positions, means, xerr=spread, color=colors, ecolor=INK, capsize=3, height=0.66)
    for position, entry in zip(positions, rewards.values(), strict=True):
        end = max(entry["high"], 0.0)
        axis.annotate(
            f"{entry['mean']:.3f}", (end, position), (6, 0), textcoords="offset points", va="center", color=INK
        )
    axis.set_yticks(positions, [POLICY_LABELS[key] for key in rewards])
    axis.margins(x=0.18)
    axis.set_xticks([])
    axis.invert_yaxis()
    _style(axis, "Mean reward on held-out prompts, 95% intervals", sides=("left",))
    return _png(figure)


def _allocation_alt(provenance: Provenance) -> str:
    parts = [f"{one_line(teacher.name, 40)} {_percent(teacher.share)}" for teacher in _largest(provenance.teachers)]
    return f"Training rows per teacher: {', '.join(parts)}"


def _teachers_alt(provenance: Provenance) -> str:
    known = [teacher for teacher in _largest(provenance.teachers) if teacher.strength is not None]
    parts = [
        f"{one_line(t.name, 40)} {fixed(t.strength.normalized_quality, 2)} and "
        f"{fixed(t.strength.normalized_learnability, 2)}"
        for t in known
        if t.strength is not None
    ]
    return f"Mean quality and learnability per teacher, normalised within the prompt: {'; '.join(parts)}"


def _rewards_alt(provenance: Provenance) -> str:
    parts = [f"{POLICY_LABELS[key]} {fixed(entry['mean'])}" for key, entry in _policies(provenance).items()]
    return f"Mean held-out reward: {', '.join(parts)}"


def _largest(teachers: Sequence[TeacherShare], count: int = 8) -> list[TeacherShare]:
    """Returns the teachers with the largest shares, to keep an alt text short."""
    return sorted(teachers, key=lambda teacher: -teacher.rows)[:count]


def _canvas(height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, transparent=True, metadata={"Software": None})
    return buffer.getvalue()


def _style(axis: Any, title: str, sides: Sequence[str] = ("left", "bottom")) -> None:
    axis.set_title(title, color=INK, fontsize=11, loc="left", pad=10)
    axis.tick_params(colors=INK, length=0 if sides == ("left",) else 3)
    for side, spine in axis.spines.items():
        spine.set_visible(side in sides)
        spine.set_color(INK)


def _percent(share: float) -> str:
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def _labels(teachers: Sequence[TeacherShare]) -> list[str]:
    """Returns drawable names of at most 24 characters; a name that the font lacks is replaced by its table number."""
    return [
        _short(teacher.name) if _can_draw(teacher.name) else f"no. {number}"
        for number, teacher in enumerate(teachers, start=1)
    ]


def _can_draw(name: str) -> bool:
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans"))
    left_to_right = not any(unicodedata.bidirectional(character) in ("R", "AL") for character in name)
    return left_to_right and all(font.get_char_index(ord(c)) for c in name if c.isprintable())


def _short(name: str) -> str:
    """Returns a short name as plain text, with `$` escaped, which would start mathematics."""
    text = "".join(character if character.isprintable() else "�" for character in name)
    text = text if len(text) <= 24 else f"{text[:23]}…"
    return text.replace("$", r"\$")
