"""Where a teacher's licence and the licence of what is made from its answers do not go together.

This compares identifiers and reads no licence; it warns and leaves the judgement to people.
"""

from __future__ import annotations

from collections.abc import Sequence

from persyn_hf.publishing.provenance import TeacherShare

#: Their text restricts the use of outputs to improve other models.
_OUTPUTS_RESTRICTED = {
    "llama2": "Llama 2 forbids using its outputs to improve models other than Llama",
    "llama3": "Llama 3 forbids using its outputs to improve models other than Llama",
    "llama3.1": "Llama 3.1 asks that models trained on its outputs carry “Llama” in their name",
    "llama3.2": "Llama 3.2 asks that models trained on its outputs carry “Llama” in their name",
    "llama3.3": "Llama 3.3 asks that models trained on its outputs carry “Llama” in their name",
    "llama4": "Llama 4 asks that models trained on its outputs carry “Llama” in their name",
    "gemma": "Gemma's terms also bind models that are trained on its outputs",
    "other": "its licence is not one that the Hub knows; read whether its outputs may train other models",
    "proprietary": "proprietary terms often forbid training other models on outputs",
}


def license_warnings(license: str | None, teachers: Sequence[TeacherShare]) -> list[str]:
    """Sentences on teachers whose licence may forbid the licence that was chosen, or training on their answers.

    Args:
        license (`str`, *optional*): The licence of the dataset.
        teachers (`Sequence[TeacherShare]`): Those that gave no row are left out.

    Example:
        >>> teacher = TeacherShare(name="t", rows=1, share=1.0, completion_tokens=1, license="cc-by-nc-4.0")
        >>> license_warnings("mit", [teacher])
        ["Teacher t has the licence cc-by-nc-4.0, which forbids commercial use; the dataset's is mit."]
    """
    return [
        sentence
        for teacher in teachers
        if teacher.rows and teacher.license and (sentence := _warning(license, teacher.name, teacher.license.lower()))
    ]


def _warning(license: str | None, teacher: str, theirs: str) -> str | None:
    ours = (license or "").lower()
    named = f"Teacher {teacher} has the licence {theirs}"
    if theirs in _OUTPUTS_RESTRICTED:
        return f"{named}: {_OUTPUTS_RESTRICTED[theirs]}."
    if "-nd" in theirs:
        return f"{named}, which forbids sharing what is derived from it."
    if "-nc" in theirs and "-nc" not in ours:
        return f"{named}, which forbids commercial use; the dataset's is {ours or 'not given'}."
    if "-sa" in theirs and ours != theirs:
        return f"{named}, which asks for the same licence on what is derived; the dataset's is {ours or 'not given'}."
    return None
