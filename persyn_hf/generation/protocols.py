"""Which client speaks which protocol."""

from __future__ import annotations

from persyn_hf.config import Teacher
from persyn_hf.generation.chat import ChatClient
from persyn_hf.generation.client import TeacherClient
from persyn_hf.generation.tgi import TgiClient


def endpoint_client(teacher: Teacher, address: str) -> TeacherClient:
    """A client for one endpoint of a teacher.

    Args:
        teacher (`Teacher`): With `backend: endpoint`.
        address (`str`): One of `teacher.endpoints`.

    Raises:
        ConfigError: If the teacher wants a key and there is none.
    """
    return (TgiClient if teacher.api == "tgi" else ChatClient)(teacher, address)
