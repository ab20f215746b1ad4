"""Strengths of the demo's teachers: the share of each kind of constraint that a teacher meets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from persyn_hf import columns
from persyn_hf.demo.prompts import meets
from persyn_hf.text import headed_table, markup

if TYPE_CHECKING:
    from rich.console import Console


def constraint_shares(answers: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Computes the share of constraints that each teacher meets.

    Args:
        answers (`Iterable[Mapping]`): Rows with `teacher`, `completion` (null in failed rows) and `answer`.

    Returns:
        `dict[str, dict[str, float]]`: Constraint kind → teacher → share in [0, 1]; kinds and teachers sorted.

    Example:
        >>> constraint_shares([{"teacher": "a", "completion": "Hi.", "answer": '[{"kind": "one_sentence"}]'}])
        {'one_sentence': {'a': 1.0}}
    """
    met: dict[str, dict[str, list[bool]]] = {}
    for row in answers:
        if row[columns.COMPLETION] is not None:
            for constraint in json.loads(row[columns.ANSWER]):
                own = met.setdefault(constraint["kind"], {}).setdefault(row[columns.TEACHER], [])
                own.append(meets(constraint, row[columns.COMPLETION]))
    return {
        kind: {teacher: sum(values) / len(values) for teacher, values in sorted(teachers.items())}
        for kind, teachers in sorted(met.items())
    }


def print_strengths(shares: Mapping[str, Mapping[str, float]], console: Console) -> None:
    """Prints the shares, with the best teacher of each kind in bold."""
    teachers = sorted({teacher for kinds in shares.values() for teacher in kinds})
    names = [markup(teacher) for teacher in teachers]
    table = headed_table("Constraints met on the probe, by teacher", ("constraint",), names)
    for kind, own in shares.items():
        best = max(own.values())
        cells = [f"{own[name]:.0%}" if name in own else "–" for name in teachers]
        marked = [
            f"[bold]{cell}[/bold]" if own.get(name) == best > 0 else cell
            for name, cell in zip(teachers, cells, strict=True)
        ]
        table.add_row(markup(kind.replace("_", " ")), *marked)
    console.print(table)
