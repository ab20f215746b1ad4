"""Export of a run's routes for TRL's `AsyncDistillationTrainer`: a teacher per prompt, and a server per teacher."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persyn_hf import columns
from persyn_hf.config import Student, Teacher
from persyn_hf.endpoints.endpoint import Endpoint
from persyn_hf.errors import ConfigError, DataError, RouterMismatchError
from persyn_hf.models.files import ModelFiles
from persyn_hf.tables import replaced, write_atomically

if TYPE_CHECKING:
    from datasets import Dataset

#: Column that TRL uses to look up a row's server.
TEACHER_ID = "teacher_id"
#: Path that TRL appends to a server's address.
_COMPLETIONS = "/v1/completions"
#: Number of prompts whose tokens are compared, in addition to the vocabularies.
_COMPARED = 32


@dataclass(frozen=True)
class TrlRoutes:
    """Arguments of TRL's trainer.

    Args:
        data (`Dataset`): Training set with `prompt` (message lists), `teacher_id` and `prompt_id`, for
            `train_dataset`.
        teacher_server_urls (`Mapping[str, str]`): Address of each teacher's server, for the trainer's configuration.
    """

    data: Dataset
    teacher_server_urls: Mapping[str, str]

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes `train.parquet` and `teacher_server_urls.json` into a folder."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        with replaced(target / "train.parquet") as staged:
            self.data.to_parquet(staged)
        urls = json.dumps(dict(self.teacher_server_urls), indent=2, ensure_ascii=False)
        write_atomically(target / "teacher_server_urls.json", urls + "\n")
        return target


def export_routes(
    routed: Dataset,
    teachers: Sequence[Teacher],
    student: str | Student,
    revision: str | None = None,
    *,
    servers: Mapping[str, str] | None = None,
) -> TrlRoutes:
    """Converts routes to the format of TRL's `AsyncDistillationTrainer` (TRL 1.16, `trl.experimental`).

    In TRL the student answers, and the server of a row's teacher scores the answer by its token ids. Every teacher
    must therefore have the student's tokenizer, and its own vLLM server that offers `/v1/completions` without a key.

    Args:
        routed (`Dataset`): Prompts with `prompt` and `route`.
        teachers (`Sequence[Teacher]`): Teachers, including all that the routes name.
        student (`str` or `Student`): Student whose tokenizer the teachers must share.
        revision (`str`, *optional*): Commit, tag or branch of the student.
        servers (`Mapping[str, str]`, *optional*): Addresses of vLLM servers by teacher name, if they differ from the
            teachers' endpoints.

    Returns:
        `TrlRoutes`: Training set and servers, only for teachers that a prompt is routed to.

    Raises:
        RouterMismatchError: If a teacher's tokenizer differs from the student's. The error names the difference.
        ConfigError: If a teacher has no server that TRL can use.
        DataError: If a route names an unknown teacher.

    Example:
        >>> routes = export_routes(routed, config.teachers, "org/student")  # doctest: +SKIP
        >>> config = AsyncDistillationConfig(teacher_server_urls=routes.teacher_server_urls)  # doctest: +SKIP
    """
    columns.require_columns(routed.column_names, (columns.PROMPT, columns.ROUTE), "export_routes")
    names = list(routed[columns.ROUTE][:])
    by_name = {teacher.name: teacher for teacher in teachers}
    unknown = sorted(set(names) - set(by_name))
    if unknown or not names:
        raise DataError(
            f"Routes must name the teachers {', '.join(by_name)}; got {', '.join(unknown) or 'no routes'}."
        )
    used = [teacher for teacher in teachers if teacher.name in set(names)]
    model = student.model if isinstance(student, Student) else student
    own = _tokenizer(model, student.revision if isinstance(student, Student) else revision)
    samples = [columns.prompt_text(prompt) for prompt in routed[columns.PROMPT][:_COMPARED]]
    strangers = [words for teacher in used if (words := _difference(teacher, own, samples)) is not None]
    if strangers:
        raise RouterMismatchError(
            f"TRL's AsyncDistillationTrainer needs teachers with the student's tokenizer, that of {model}. "
            f"{' '.join(strangers)} Remove them from `teachers` and route again."
        )
    urls = {teacher.name: _server(teacher, (servers or {}).get(teacher.name)) for teacher in used}
    return TrlRoutes(_table(routed, names), urls)


def _table(routed: Dataset, names: Sequence[str]) -> Dataset:
    from datasets import Dataset

    prompts = [columns.canonical_messages(prompt) for prompt in routed[columns.PROMPT]]
    kept: dict[str, Sequence[object]] = {columns.PROMPT: prompts, TEACHER_ID: list(names)}
    if columns.PROMPT_ID in routed.column_names:
        kept[columns.PROMPT_ID] = list(routed[columns.PROMPT_ID])
    return Dataset.from_dict(kept)


def _server(teacher: Teacher, given: str | None) -> str:
    """Returns the server address to which TRL appends `/v1/completions`.

    Raises:
        ConfigError: If the teacher has no such server.
    """
    address = given or next(iter(teacher.endpoints), None)
    if address is None:
        raise ConfigError(
            f"The teacher {teacher.name!r} runs in this process, but TRL needs a vLLM server: name one in `servers`."
        )
    if given is None and (teacher.api_key_env or teacher.use_hub_token):
        raise ConfigError(
            f"The teacher {teacher.name!r} needs a key, but TRL sends none: give the address of a vLLM server without "
            "a key in `servers`."
        )
    endpoint = Endpoint(address)
    if endpoint.url(_COMPLETIONS) != endpoint.root + _COMPLETIONS:
        raise ConfigError(
            f"The teacher {teacher.name!r} is served at {address}, but TRL sends requests to ADDRESS{_COMPLETIONS}: "
            "give the address of a vLLM server in `servers`."
        )
    return endpoint.root


def _tokenizer(model: str, revision: str | None) -> Any:
    from persyn_hf.models.identity import resolve_revision
    from persyn_hf.models.loading import load_tokenizer

    found = resolve_revision(model, revision)
    return load_tokenizer(ModelFiles(model, None if os.path.isdir(model) else found, "The tokenizer", ConfigError))


def _difference(teacher: Teacher, own: Any, samples: Sequence[str]) -> str | None:
    """Describes how a teacher's tokenizer differs from the student's; `None` if it does not."""
    name = teacher.tokenizer or teacher.model
    try:
        other = _tokenizer(name, None if teacher.tokenizer else teacher.revision)
    except ConfigError as error:
        return f"The tokenizer of {teacher.name!r} cannot be compared: {error} Set `tokenizer` of the teacher."
    known, theirs = own.get_vocab(), other.get_vocab()
    differing = sorted(token for token in known.keys() | theirs.keys() if known.get(token) != theirs.get(token))
    if differing:
        return (
            f"{teacher.name!r} ({name}) has {len(theirs)} tokens, the student {len(known)}; {len(differing)} differ, "
            f"such as {differing[0]!r}."
        )
    for text in samples:
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for tokenizer in (own, other)]
        if ids[0] != ids[1]:
            return f"{teacher.name!r} ({name}) has the student's vocabulary but splits {text[:40]!r} differently."
    return None
