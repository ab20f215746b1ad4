"""The models that read prompts (teachers, student, reward model), and the prompts that one of them cannot read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from persyn_hf import columns
from persyn_hf.config import RunConfig, Teacher
from persyn_hf.doctor.grading import quality_parts
from persyn_hf.errors import DataError, PersynError
from persyn_hf.text import tame

if TYPE_CHECKING:
    from datasets import Dataset

    from persyn_hf.generation.describe import EndpointLimits

#: Bytes that a chat template adds around one message, at most; so that short prompts need no tokenizer.
_TEMPLATE_BYTES = 512
#: A completion that no template has trouble with.
_SOME_ANSWER = "Yes."
#: Longest excerpt of a template's own words.
_EXCERPT = 200

#: Tools that a prompt offers.
Tools = list[columns.Message] | None
#: The roles of a prompt's messages and the kinds of their contents: what a chat template decides by.
TurnKinds = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class PromptReader:
    """A model that is given every prompt.

    Args:
        role (`str`): Begins what is said of it: "the teacher `a`".
        key (`str`): Its key in the configuration.
        render (`Callable`, *optional*): Gives the text that it reads of messages; raises what its template raises.
            `None` where its template is not known here.
        count (`Callable`, *optional*): Tokens of a text.
        room (`int`, *optional*): Tokens of a prompt that it reads at most.
        system_prompt (`str`, *optional*): Put before every prompt.
    """

    role: str
    key: str
    render: Callable[[list[columns.Message], Tools], str] | None = None
    count: Callable[[str], int] | None = None
    room: int | None = None
    system_prompt: str | None = None
    refusals: dict[TurnKinds, str | None] = field(default_factory=dict, compare=False)

    def problem(self, prompt: columns.Prompt, tools: Tools = None) -> str | None:
        """Why it cannot read a prompt; `None` where it can, or nobody knows."""
        messages = columns.canonical_messages(prompt)
        if self.system_prompt is not None:
            messages = [{"role": "system", "content": self.system_prompt}, *messages]
        shape = (*turn_kinds(messages), ("tools",)) if tools else turn_kinds(messages)
        if shape not in self.refusals:
            self.refusals[shape] = self._refusal(messages, tools)
        return self.refusals[shape] or self._overlong(messages, tools)

    def _refusal(self, messages: list[columns.Message], tools: Tools) -> str | None:
        """Why it refuses messages of this shape."""
        roles = [message["role"] for message in messages]
        if self.system_prompt is not None and roles.count("system") > 1 and self.render is None:
            return f"{self.role} has a `system_prompt`, and the prompt has a system message of its own"
        if self.render is None:
            return None
        try:
            text = self.render(messages, tools)
        except Exception as error:  # noqa: BLE001 - a template is a program of the checkpoint's and raises what it likes
            return f"the chat template of {self.role} refuses it: {tame(error, _EXCERPT)}"
        if any(isinstance(message.get("content"), list) for message in messages) and _is_repr(text):
            return f"{self.role} cannot read content that stands in parts"
        return None

    def _overlong(self, messages: list[columns.Message], tools: Tools) -> str | None:
        if self.room is None or self.count is None or self.render is None:
            return None
        size = sum(_bytes(message) + _TEMPLATE_BYTES for message in messages) + _bytes(tools or "")
        if size <= self.room:
            return None
        tokens = self.count(self.render(messages, tools))
        return None if tokens <= self.room else f"{self.role} reads {self.room} tokens of a prompt; it has {tokens}"


def turn_kinds(messages: Sequence[columns.Message]) -> TurnKinds:
    """What a template decides by: roles, kinds of content, further keys."""
    return tuple(
        (str(message["role"]), type(message.get("content")).__name__, *sorted(message.keys() - {"role", "content"}))
        for message in messages
    )


def _is_repr(text: str) -> bool:
    """Whether a template printed a list of parts as Python writes it."""
    return "[{'type'" in text or "[{'text'" in text or '[{"type"' in text


def _bytes(content: object) -> int:
    return len(str(content).encode("utf-8", "replace"))


def unreadable_prompts(readers: Sequence[PromptReader], prompts: Dataset) -> dict[int, str]:
    """Looks for prompts that a reader cannot read, or that end with an assistant's turn.

    Args:
        readers (`Sequence[PromptReader]`): The models.
        prompts (`Dataset`): With `prompt`.

    Returns:
        `dict[int, str]`: Why, by row.
    """
    wrong: dict[int, str] = {}
    offered = prompts[columns.TOOLS][:] if columns.TOOLS in prompts.column_names else [None] * len(prompts)
    for row, (prompt, tools) in enumerate(zip(prompts[columns.PROMPT], offered, strict=True)):
        try:
            reasons = _reasons(readers, prompt, columns.canonical_tools(tools))
            reason = next(reasons, None)
        except DataError as error:
            reason = str(error)
        if reason is not None:
            wrong[row] = reason
    return wrong


def _reasons(readers: Sequence[PromptReader], prompt: columns.Prompt, tools: Tools) -> Iterator[str]:
    if not isinstance(prompt, str):
        last = columns.canonical_messages(prompt)[-1]
        if last["role"] == "assistant" and not last.get("tool_calls"):
            yield "it ends with an assistant's turn, so there is nothing to answer"
    for reader in readers:
        problem = reader.problem(prompt, tools)
        if problem is not None:
            yield problem


def list_readers(
    config: RunConfig, limits: Mapping[tuple[str, str], EndpointLimits] | None = None, scoring: bool = True
) -> list[PromptReader]:
    """The models of a run that read its prompts. Their tokenizers are loaded, no weights.

    One that cannot be loaded is left out: the checks of models tell why.

    Args:
        config (`RunConfig`): The run.
        limits (`Mapping`, *optional*): What endpoints take, by teacher and address.
        scoring (`bool`, defaults to `True`): Student and reward model too.
    """
    readers = []
    for make in _makers(config, limits or {}, scoring):
        with suppress(PersynError, ImportError):
            readers.append(make())
    return readers


def _makers(
    config: RunConfig, limits: Mapping[tuple[str, str], EndpointLimits], scoring: bool
) -> Iterator[Callable[[], PromptReader]]:
    for place, teacher in enumerate(config.teachers):
        key = f"teachers[{place}]"
        if teacher.backend == "local":
            role = f"the teacher `{teacher.name}`"
            yield partial(_here, role, key, teacher.model, teacher.revision, teacher.system_prompt)
        else:
            yield partial(_served, teacher, key, limits)
    if not scoring:
        return
    if config.student is not None:
        student = config.student
        yield partial(_here, "the student", "student.model", student.model, student.revision, answered=True)
    for key, part in quality_parts(config.quality) if config.quality is not None else ():
        if part.reward_model is not None:
            named = f"{key}.reward_model"
            yield partial(
                _here, "the reward model", named, part.reward_model, part.revision, answered=True, special=True
            )


def _here(
    role: str,
    key: str,
    model: str,
    revision: str | None,
    system_prompt: str | None = None,
    answered: bool = False,
    special: bool = False,
) -> PromptReader:
    """A model whose tokenizer and configuration are at hand."""
    from persyn_hf.models.files import ModelFiles
    from persyn_hf.models.loading import context_of, identity, load_config, load_tokenizer

    files = ModelFiles(model, identity(model, revision))
    tokenizer, context = load_tokenizer(files), context_of(load_config(files))
    chats = bool(getattr(tokenizer, "chat_template", None))

    def render(messages: list[columns.Message], tools: Tools) -> str:
        if not chats:
            return columns.prompt_text(messages)
        asked = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
        if not answered:
            return str(asked)
        turn = {"role": "assistant", "content": _SOME_ANSWER}
        return str(tokenizer.apply_chat_template([*messages, turn], tools=tools, tokenize=False))

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=special and not chats, verbose=False)["input_ids"])

    return PromptReader(role, key, render, count, None if context is None else context - 1, system_prompt)


def _served(teacher: Teacher, key: str, limits: Mapping[tuple[str, str], EndpointLimits]) -> PromptReader:
    """A teacher behind an endpoint: read as far as its tokenizer is at hand and the endpoint says what it takes."""
    from persyn_hf.generation.preflight import prompt_room
    from persyn_hf.generation.tokens import TeacherTokenizer, count_tokens

    role = f"the teacher `{teacher.name}`"
    own = [found for (name, _), found in limits.items() if name == teacher.name]
    try:
        room = prompt_room(teacher, own)
    except PersynError:  # told by the checks of the endpoint
        room = None
    tokenizer: Any = TeacherTokenizer(teacher, download=teacher.api == "tgi").load_here() if room is not None else None
    if tokenizer is None:
        return PromptReader(role, key, system_prompt=teacher.system_prompt)

    def render(messages: list[columns.Message], tools: Tools) -> str:
        return str(tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False))

    def count(text: str) -> int:
        return count_tokens(tokenizer, text)

    return PromptReader(role, key, render, count, room, teacher.system_prompt)
