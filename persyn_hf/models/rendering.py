"""Rendering of answers with the student's chat template, and the span of the completion's tokens.

The template renders the prompt, and the prompt with its completion. The completion's span ends with the end-of-turn
token; a truncated completion has no end-of-turn token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from persyn_hf.columns import Message, Prompt, canonical_messages, is_cut, prompt_text
from persyn_hf.errors import ConfigError, DataError, PromptTooLongError, ScoringError
from persyn_hf.messages import answer_message, said
from persyn_hf.models.readable import apply_template, readable_messages

#: Placeholder for a completion, to find the template's text around it. Plain letters, which no template trims.
_SENTINEL = "PersynCompletionGoesHere"

#: The tag that ends the thoughts before an answer.
_THOUGHTS_END = "</think>"


@dataclass(frozen=True)
class Rendered:
    """One answer as the student reads it.

    Args:
        prompt_ids (`tuple[int, ...]`): All tokens before the completion; the same object for all answers to a prompt.
        completion_ids (`tuple[int, ...]`): The completion, its end-of-turn token included.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """All token ids, prompt first."""
        return self.prompt_ids + self.completion_ids

    @property
    def span(self) -> tuple[int, int]:
        """The span `[start, end)` of the completion in `ids`."""
        return len(self.prompt_ids), len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True)
class _Frame:
    """The template's text around a completion: before it, up to the end of the turn, and all of it after."""

    before: str
    opening: str  # the generation prompt; it differs from `before` if the template adds text to an answer
    end_of_turn: str
    suffix: str


def render_answers(
    tokenizer: Any,
    prompts: Sequence[Prompt],
    completions: Sequence[str | Message],
    finish_reasons: Sequence[str | None],
    names: Sequence[str] | None = None,
    tools: Sequence[object] | None = None,
) -> list[Rendered]:
    """Renders answers with the student's template and finds each completion's tokens.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The student's tokenizer. Without a chat template (a base model), the
            text is the prompt, the completion and the end-of-text token.
        prompts (list of `str` or of chat messages): One prompt per answer; equal prompts are rendered once.
        completions (`Sequence[str | Message]`): Texts of the answers, or messages if they call tools.
        finish_reasons (`Sequence[str | None]`): Finish reasons. All but `"stop"` and `None` mark a truncated answer,
            which has no end-of-turn token.
        names (`Sequence[str]`, *optional*): Names of the rows in errors.
        tools (`Sequence`, *optional*): Cells of the column `tools`.

    Returns:
        `list[Rendered]`: One per answer, in order.

    Raises:
        DataError: If a prompt is empty or malformed.
        ScoringError: If the template refuses a conversation, or the completion cannot be found in the rendered text.

    Example:
        >>> rendered = render_answers(tokenizer, ["Hi"], ["Hello."], ["stop"])[0]  # doctest: +SKIP
        >>> tokenizer.decode(rendered.completion_ids)  # doctest: +SKIP
        'Hello.<|im_end|>'
    """
    shared: dict[str, Any] = {}
    labels = names if names is not None else [f"row {row}" for row in range(len(prompts))]
    rows = zip(prompts, completions, finish_reasons, labels, strict=True)
    if getattr(tokenizer, "chat_template", None):
        offered = tools if tools is not None else [None] * len(prompts)
        return [_render_chat(tokenizer, *row, shared, tool) for row, tool in zip(rows, offered, strict=True)]
    return [_render_plain(tokenizer, *row, shared) for row in rows]


def fit_context(
    answers: Sequence[Rendered], context: int | None, too_long: str, names: Sequence[str]
) -> tuple[list[Rendered], list[bool]]:
    """Fits answers into the student's context.

    Args:
        answers (`Sequence[Rendered]`): Rendered answers.
        context (`int`, *optional*): Context length in tokens.
        too_long (`"error"` or `"truncate"`): Treatment of a longer answer.
        names (`Sequence[str]`): Names of the answers in errors.

    Returns:
        `tuple[list[Rendered], list[bool]]`: The answers, and a flag per answer that is true if it was truncated.

    Raises:
        PromptTooLongError: If an answer is too long and `too_long` is `"error"`, or a prompt alone fills the context.
        ScoringError: If an answer has no tokens at all.
    """
    if too_long not in ("error", "truncate"):
        raise ConfigError(f'`too_long` must be "error" or "truncate", got {too_long!r}.')
    fitted, cut = [], []
    for answer, name in zip(answers, names, strict=True):
        if not answer.completion_ids:
            raise ScoringError(
                f"{name}: a truncated completion without tokens cannot be scored. Set `error` for this row."
            )
        cut.append(context is not None and len(answer.ids) > context)
        if context is not None and cut[-1]:
            room = context - len(answer.prompt_ids)
            if too_long == "error" or room < 1:
                raise PromptTooLongError(
                    f"{name}: prompt and completion have {len(answer.prompt_ids)} + {len(answer.completion_ids)} "
                    f"tokens, but the student's context is {context}. "
                    + ("The prompt alone fills it." if room < 1 else 'Pass too_long="truncate" to score its start.')
                )
            answer = Rendered(answer.prompt_ids, answer.completion_ids[:room])
        fitted.append(answer)
    return fitted, cut


def _render_chat(
    tokenizer: Any,
    prompt: Prompt,
    completion: str | Message,
    reason: str | None,
    name: str,
    shared: dict[str, Any],
    tools: object = None,
) -> Rendered:
    key = prompt if isinstance(prompt, str) and tools is None else repr((prompt, tools))
    if key not in shared:
        messages = canonical_messages(prompt)
        shared[key] = (messages, _frame(tokenizer, messages, name, tools), {})
    messages, frame, openings = shared[key]
    answer = answer_message(completion) if isinstance(completion, str) else completion
    text = _apply(tokenizer, [*messages, answer], name, tools)
    before = next((start for start in (frame.before, frame.opening) if text.startswith(start)), None)
    if before is None or not text.endswith(frame.suffix) or len(text) < len(before) + len(frame.suffix):
        raise ScoringError(
            f"{name}: the student's chat template rewrites this conversation, so the completion cannot be found in "
            f"it. The completion starts with {said(answer)[:60]!r}."
        )
    words = said({"content": answer.get("content")})  # without calls, which templates write in their own format
    require_kept(words, text[len(before) : len(text) - len(frame.suffix)], "the student", name)
    body = text[len(before) : len(text) - len(frame.suffix)] + ("" if is_cut(reason) else frame.end_of_turn)
    if before not in openings:
        openings[before] = _tokenize(tokenizer, before)
    rendered = _split(tokenizer, before, openings[before], body, name, special=False)
    if is_cut(reason) or frame.end_of_turn:
        return rendered
    return Rendered(rendered.prompt_ids, (*rendered.completion_ids, _end_of_text(tokenizer, name)))


def require_kept(completion: str, rendered: str, reader: str, name: str) -> None:
    """Checks that a template keeps all of a completion.

    White space may differ, and a template may change letters, but it must not drop text, as templates do that cut
    everything before `</think>`.

    Args:
        completion (`str`): The answer.
        rendered (`str`): The answer as the template renders it.
        reader (`str`): Owner of the template in errors, such as "the student".
        name (`str`): Name of the row in errors.

    Raises:
        ScoringError: If text is missing.
    """
    wanted, shown = "".join(completion.split()), "".join(rendered.split())
    if wanted in shown or (len(shown) >= len(wanted) and _THOUGHTS_END not in wanted):
        return
    raise ScoringError(
        f"{name}: the chat template of {reader} drops part of this completion: of {len(completion)} characters it "
        f"shows {len(rendered)} ({rendered.strip()[:60]!r}). "
        + (
            "It drops the thoughts: set `reasoning: separate` for the teacher, or use a chat template that shows them."
            if _THOUGHTS_END in completion
            else "Use a chat template that shows all of it."
        )
    )


def _render_plain(
    tokenizer: Any, prompt: Prompt, completion: str | Message, reason: str | None, name: str, shared: dict[str, Any]
) -> Rendered:
    completion = completion if isinstance(completion, str) else said(completion)
    _readable(tokenizer, canonical_messages(prompt), name)
    text = prompt_text(prompt)
    if text not in shared:
        shared[text] = _without_end(tokenizer, _tokenize(tokenizer, text, special=True))
    rendered = _split(tokenizer, text, shared[text], completion, name, special=True)
    if is_cut(reason):
        return rendered
    return Rendered(rendered.prompt_ids, (*rendered.completion_ids, _end_of_text(tokenizer, name)))


def _split(
    tokenizer: Any, before: str, before_ids: tuple[int, ...], body: str, name: str, *, special: bool
) -> Rendered:
    """Tokenizes the whole text; if a token straddles the boundary, prompt and completion are tokenized separately.

    A student that generates starts from the prompt's own tokens, so these never depend on the completion.
    """
    ids = _tokenize(tokenizer, before + body, special=special)
    if special:
        ids = _without_end(tokenizer, ids)
    start = len(before_ids)
    if ids[:start] == before_ids:
        return Rendered(before_ids, ids[start:])
    tail = _tokenize(tokenizer, body)
    if tokenizer.decode(before_ids + tail) != tokenizer.decode(ids):
        raise ScoringError(
            f"{name}: the completion's tokens cannot be separated from the prompt's. The completion starts with "
            f"{body[:60]!r}."
        )
    return Rendered(before_ids, tail)


def _frame(tokenizer: Any, messages: list[Message], name: str, tools: object = None) -> _Frame:
    text = _apply(tokenizer, [*messages, {"role": "assistant", "content": _SENTINEL}], name, tools)
    before, found, suffix = text.rpartition(_SENTINEL)
    if not found:
        raise ScoringError(f"{name}: the student's chat template does not show an assistant message's content.")
    opening = _apply(tokenizer, messages, name, tools, add_generation_prompt=True)
    return _Frame(before, opening, _end_of_turn(tokenizer, suffix), suffix)


def _end_of_turn(tokenizer: Any, suffix: str) -> str:
    """The text after a completion up to and with its first special token; empty if the template marks no end."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    marks = {str(token) for token in added.values() if token.special} | set(tokenizer.all_special_tokens)
    ends = [(suffix.find(mark), -len(mark), mark) for mark in marks if mark and mark in suffix]
    if not ends:
        return ""
    position, _, mark = min(ends)
    return suffix[: position + len(mark)]


def _apply(
    tokenizer: Any, messages: list[Message], name: str, tools: object = None, add_generation_prompt: bool = False
) -> str:
    try:
        return apply_template(tokenizer, messages, tools, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        raise ScoringError(f"{name}: the student's chat template refuses this conversation: {error}.") from error
    except DataError as error:
        raise ScoringError(f"{name}: the student cannot read this conversation: {error}.") from error


def _readable(tokenizer: Any, messages: list[Message], name: str) -> None:
    try:
        readable_messages(tokenizer, messages)
    except DataError as error:
        raise ScoringError(f"{name}: the student cannot read this conversation: {error}.") from error


def _tokenize(tokenizer: Any, text: str, special: bool = False) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def _without_end(tokenizer: Any, ids: tuple[int, ...]) -> tuple[int, ...]:
    """Drops the end-of-text token if the tokenizer adds one to every text."""
    if not ids or ids[-1] != tokenizer.eos_token_id:
        return ids
    probe = _tokenize(tokenizer, "a", special=True)
    return ids[:-1] if len(probe) > 1 and probe[-1] == tokenizer.eos_token_id else ids


def _end_of_text(tokenizer: Any, name: str) -> int:
    if tokenizer.eos_token_id is None:
        raise ScoringError(f"{name}: the student's tokenizer has neither a chat template nor an end-of-text token.")
    return int(tokenizer.eos_token_id)
