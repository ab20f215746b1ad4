"""Which rows of a run have no answer, and why."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from persyn_hf import columns

#: Prompt ids and reasons that are named for one teacher.
_NAMED = 5


def name_missing(table: Path) -> list[str]:
    """One line per teacher with rows that got no answer: how many, the first of their prompts, the commonest reasons.

    Args:
        table (`Path`): The Parquet file of a stage of answers.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    names = [columns.PROMPT_ID, columns.TEACHER, columns.ERROR]
    rows = pq.read_table(table, columns=names, filters=pc.is_valid(pc.field(columns.ERROR))).to_pylist()
    lines = []
    for teacher, count in Counter(row[columns.TEACHER] for row in rows).most_common():
        own = [row for row in rows if row[columns.TEACHER] == teacher]
        ids = ", ".join(row[columns.PROMPT_ID] for row in own[:_NAMED]) + (", …" if count > _NAMED else "")
        reasons = Counter(row[columns.ERROR] for row in own).most_common(_NAMED)
        lines.append(f"  {teacher}: {count} without an answer (prompts {ids})")
        lines += [f"    {number} x {reason}" for reason, number in reasons]
    return lines
