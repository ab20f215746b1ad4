"""The teachers' endpoints: do they answer, take the key and serve the model?"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from persyn_hf.config import Teacher
from persyn_hf.doctor.finding import Finding
from persyn_hf.errors import PersynError


def check_endpoints(teachers: Sequence[Teacher], patience: float = 5.0) -> list[Finding]:
    """Asks every endpoint what it serves, teacher by teacher; no answer is generated.

    Args:
        teachers (`Sequence[Teacher]`): Those with `backend: local` are left out.
        patience (`float`, defaults to 5): Seconds to wait for a silent endpoint.
    """
    return [asyncio.run(_check(teacher, patience)) for teacher in teachers if teacher.backend == "endpoint"]


async def _check(teacher: Teacher, patience: float) -> Finding:
    from persyn_hf.generation.preflight import preflight

    topic = f"endpoint {teacher.name}"
    asked = teacher.model_copy(update={"preflight": True, "on_teacher_down": "error"})
    try:
        limits = await preflight([(asked, tuple)], patience)
    except PersynError as error:
        return Finding(topic, "fail", str(error))
    silent = len(teacher.endpoints) - len(limits)
    if silent:
        return Finding(topic, "note", f"{silent} of {len(teacher.endpoints)} addresses do not answer")
    return Finding(topic, "ok", f"{teacher.model} at {', '.join(teacher.endpoints)}")
