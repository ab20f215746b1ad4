"""Checks that every model that reads prompts (teachers, student, reward model) can read all of them."""

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
from persyn_hf.messages import token_bound
from persyn_hf.models.readable import apply_template, readable_messages
from persyn_hf.prompts.sending import joined_system
from persyn_hf.text import tame

if TYPE_CHECKING:
    from datasets import Dataset

    from persyn_hf.generation.describe import EndpointLimits

#: Completion that every template accepts.
SOME_ANSWER = "Yes."
#: Maximum length of an excerpt of a template's error.
_EXCERPT = 200

#: Tools of a prompt.
Tools = list[columns.Message] | None
#: Roles of a prompt's messages and types of their contents, which determine if a chat template accepts the prompt.
TurnKinds = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class PromptReader:
    """A model that reads every prompt.

    Args:
        role (`str`): Name of the model in messages: "the teacher `a`".
        key (`str`): Key of the model in the configuration.
        render (`Callable`, *optional*): Function that renders messages as text, and raises the template's errors.
            `None` if the template is unknown.
        count (`Callable`, *optional*): Function that counts the tokens of a text.
        room (`int`, *optional*): Maximum number of prompt tokens.
        system_prompt (`str`, *optional*): System prompt that precedes every prompt.
        refusals (`dict`): Cache of the template's refusals, by the kinds of messages.
    """

    role: str
    key: str
    render: Callable[[list[columns.Message], Tools], str] | None = None
    count: Callable[[str], int] | None = None
    room: int | None = None
    system_prompt: str | None = None
    refusals: dict[TurnKinds, str | None] = field(default_factory=dict, compare=False)

    def problem(self, prompt: columns.Prompt, tools: Tools = None) -> str | None:
        """Returns why the model cannot read a prompt, or `None` if it can or this is unknown."""
        messages = columns.canonical_messages(prompt)
        if self.system_prompt is not None:
            messages = joined_system([{"role": "system", "content": self.system_prompt}, *messages])
        shape = (*turn_kinds(messages), ("tools",)) if tools else turn_kinds(messages)
        if shape not in self.refusals:
            self.refusals[shape] = self._refusal(messages, tools)
        return self.refusals[shape] or self._overlong(messages, tools)

    def _refusal(self, messages: list[columns.Message], tools: Tools) -> str | None:
        """Returns why the chat template refuses messages of this shape."""
        roles = [message["role"] for message in messages]
        if self.system_prompt is not None and roles.count("system") > 1 and self.render is None:
            return f"{self.role} has a `system_prompt`, and the prompt has its own system message"
        if self.render is None:
            return None
        try:
            text = self.render(messages, tools)
        except Exception as error:  # noqa: BLE001 - a template is code of the checkpoint and may raise any error
            return f"the chat template of {self.role} refuses it: {tame(error, _EXCERPT)}"
        if any(isinstance(message.get("content"), list) for message in messages) and _is_repr(text):
            return f"{self.role} cannot read content in parts"
        return None

    def _overlong(self, messages: list[columns.Message], tools: Tools) -> str | None:
        if self.room is None or self.count is None or self.render is None:
            return None
        if token_bound(messages, tools) <= self.room:
            return None
        tokens = self.count(self.render(messages, tools))
        return None if tokens <= self.room else f"{self.role} reads {self.room} tokens of a prompt; it has {tokens}"


def turn_kinds(messages: Sequence[columns.Message]) -> TurnKinds:
    """Returns the properties that a template depends on: roles, types of content and other keys."""
    return tuple(
        (str(message["role"]), type(message.get("content")).__name__, *sorted(message.keys() - {"role", "content"}))
        for message in messages
    )


def _is_repr(text: str) -> bool:
    """Returns True if a template printed a list of parts as a Python literal."""
    return "[{'type'" in text or "[{'text'" in text or '[{"type"' in text


def unreadable_prompts(readers: Sequence[PromptReader], prompts: Dataset) -> dict[int, str]:
    """Finds prompts that a model cannot read, or that end with an assistant's turn.

    Args:
        readers (`Sequence[PromptReader]`): Models that read the prompts.
        prompts (`Dataset`): Prompts with `prompt`.

    Returns:
        `dict[int, str]`: Problem by row.
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
    """Lists the models of a run that read its prompts. Tokenizers are loaded, weights are not.

    A model that cannot be loaded is left out; the checks of models report it.

    Args:
        config (`RunConfig`): Configuration of the run.
        limits (`Mapping`, *optional*): Limits of the endpoints, by teacher and address.
        scoring (`bool`, defaults to `True`): Whether to include the student and the reward model.
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
    """Builds the reader of a model whose tokenizer and configuration can be loaded."""
    from persyn_hf.models.files import ModelFiles
    from persyn_hf.models.loading import context_of, identity, load_config, load_tokenizer

    files = ModelFiles(model, identity(model, revision))
    tokenizer, context = load_tokenizer(files), context_of(load_config(files))
    chats = bool(getattr(tokenizer, "chat_template", None))

    def render(messages: list[columns.Message], tools: Tools) -> str:
        if not chats:
            readable_messages(tokenizer, messages)
            return columns.prompt_text(messages)
        opened = apply_template(tokenizer, messages, tools, add_generation_prompt=True)
        if not answered:
            return opened
        turn = {"role": "assistant", "content": SOME_ANSWER}
        return apply_template(tokenizer, [*messages, turn], tools)

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=special and not chats, verbose=False)["input_ids"])

    return PromptReader(role, key, render, count, None if context is None else context - 1, system_prompt)


def _served(teacher: Teacher, key: str, limits: Mapping[tuple[str, str], EndpointLimits]) -> PromptReader:
    """Builds the reader of a served teacher, as far as its tokenizer is available and its endpoint reports limits."""
    from persyn_hf.generation.preflight import prompt_room
    from persyn_hf.generation.tokens import TeacherTokenizer, count_tokens

    role = f"the teacher `{teacher.name}`"
    own = [found for (name, _), found in limits.items() if name == teacher.name]
    try:
        room = prompt_room(teacher, own)
    except PersynError:  # the checks of the endpoint report it
        room = None
    tokenizer: Any = TeacherTokenizer(teacher, download=teacher.api == "tgi").load_here() if room is not None else None
    if tokenizer is None:
        return PromptReader(role, key, system_prompt=teacher.system_prompt)

    def render(messages: list[columns.Message], tools: Tools) -> str:
        return apply_template(tokenizer, messages, tools, add_generation_prompt=True)

    def count(text: str) -> int:
        return count_tokens(tokenizer, text)

    return PromptReader(role, key, render, count, room, teacher.system_prompt)
