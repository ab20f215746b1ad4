"""Which tokens of a rendered conversation are the completion's.

The student's own chat template renders the prompt and the prompt with its completion. The completion's span reaches
through the end-of-turn token and nothing after it; a completion that was cut has no end-of-turn.
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

#: Stands for a completion while the template's text around it is looked up. Plain letters: no template trims them.
_SENTINEL = "PersynCompletionGoesHere"

#: Ends the thoughts before an answer.
_THOUGHTS_END = "</think>"


@dataclass(frozen=True)
class Rendered:
    """One answer as the student reads it.

    Args:
        prompt_ids (`tuple[int, ...]`): Everything before the completion; the same object for all answers of a prompt.
        completion_ids (`tuple[int, ...]`): The completion through its end-of-turn token.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """All token ids, prompt first."""
        return self.prompt_ids + self.completion_ids

    @property
    def span(self) -> tuple[int, int]:
        """The completion's place `[start, end)` in `ids`."""
        return len(self.prompt_ids), len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True)
class _Frame:
    """What stands around a completion: text before, text through the end-of-turn, the text's tail after it."""

    before: str
    opening: str  # what generation starts from; differs from `before` where a template adds to an answer
    end_of_turn: str
    suffix: str


def render_answers(
    tokenizer: Any,
    prompts: Sequence[Prompt],
    completions: Sequence[str | Message],
    finish_reasons: Sequence[str | None],
    names: Sequence[str] | None = None,
    tools: Sequence[Any] | None = None,
) -> list[Rendered]:
    """Renders answers as the student's template does and finds each completion's tokens.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The student's. Without a chat template the text is the prompt, the
            completion and the end-of-text token (a base model).
        prompts (list of `str` or of chat messages): One per answer; equal prompts are rendered once.
        completions (`Sequence[str | Message]`): The answers' texts, or their messages where they call tools.
        finish_reasons (`Sequence[str | None]`): Every reason but `"stop"` and `None` marks a cut answer, which
            has no end-of-turn.
        names (`Sequence[str]`, *optional*): How errors name a row.
        tools (`Sequence`, *optional*): The cells of the column `tools`.

    Returns:
        `list[Rendered]`: One per answer, in order.

    Raises:
        DataError: If a prompt is empty or malformed.
        ScoringError: If a template refuses a conversation or the completion cannot be found in what it renders.

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
    """Holds answers against the student's context.

    Args:
        answers (`Sequence[Rendered]`): Rendered answers.
        context (`int`, *optional*): Tokens the student can read.
        too_long (`"error"` or `"truncate"`): What to do with an answer that is longer.
        names (`Sequence[str]`): How errors name the answers.

    Returns:
        `tuple[list[Rendered], list[bool]]`: The answers, and which of them were cut.

    Raises:
        PromptTooLongError: If one is too long and `too_long` is `"error"`, or its prompt alone fills the context.
        ScoringError: If an answer has no tokens at all.
    """
    if too_long not in ("error", "truncate"):
        raise ConfigError(f'`too_long` must be "error" or "truncate", got {too_long!r}.')
    fitted, cut = [], []
    for answer, name in zip(answers, names, strict=True):
        if not answer.completion_ids:
            raise ScoringError(
                f"{name}: a cut completion without any token cannot be scored; set `error` for the row."
            )
        cut.append(context is not None and len(answer.ids) > context)
        if context is not None and cut[-1]:
            room = context - len(answer.prompt_ids)
            if too_long == "error" or room < 1:
                raise PromptTooLongError(
                    f"{name}: prompt and completion have {len(answer.prompt_ids)} + {len(answer.completion_ids)} "
                    f"tokens, the student reads {context}. "
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
    tools: Any = None,
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
            f"{name}: the student's chat template rewrites this conversation, so that the completion cannot be found "
            f"in it; the completion starts {said(answer)[:60]!r}."
        )
    words = said({"content": answer.get("content")})  # a template writes calls in a form of its own
    require_kept(words, text[len(before) : len(text) - len(frame.suffix)], "the student", name)
    body = text[len(before) : len(text) - len(frame.suffix)] + ("" if is_cut(reason) else frame.end_of_turn)
    if before not in openings:
        openings[before] = _tokenize(tokenizer, before)
    rendered = _split(tokenizer, before, openings[before], body, name, special=False)
    if is_cut(reason) or frame.end_of_turn:
        return rendered
    return Rendered(rendered.prompt_ids, (*rendered.completion_ids, _end_of_text(tokenizer, name)))


def require_kept(completion: str, rendered: str, reader: str, name: str) -> None:
    """Refuses what a template has made of a completion where part of it is missing.

    White space may differ, and a template may write the text in other letters; it may not leave any out, as those do
    that cut everything before `</think>`.

    Args:
        completion (`str`): The answer.
        rendered (`str`): What the template shows of it.
        reader (`str`): Whose template it is, for the message: "the student".
        name (`str`): How the error names the row.

    Raises:
        ScoringError: If text is missing.
    """
    wanted, shown = "".join(completion.split()), "".join(rendered.split())
    if wanted in shown or (len(shown) >= len(wanted) and _THOUGHTS_END not in wanted):
        return
    raise ScoringError(
        f"{name}: the chat template of {reader} leaves out part of this completion: of {len(completion)} characters "
        f"it shows {len(rendered)} ({rendered.strip()[:60]!r}). "
        + (
            "It cuts the thoughts: set `reasoning: separate` for the teacher, or give a chat template that shows them."
            if _THOUGHTS_END in completion
            else "Give a chat template that shows all of it."
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
    """Tokenises the whole text; where a token would straddle the boundary, the two sides by themselves.

    A student that answers starts from the prompt's own tokens, so these never change with the completion.
    """
    ids = _tokenize(tokenizer, before + body, special=special)
    if special:
        ids = _without_end(tokenizer, ids)
    start = len(before_ids)
    if ids[:start] == before_ids:
        return Rendered(before_ids, ids[start:])
    tail = _tokenize(tokenizer, body)
    if tokenizer.decode(before_ids + tail) != tokenizer.decode(ids):
        raise ScoringError(f"{name}: the completion's tokens cannot be told from the prompt's (starts {body[:60]!r}).")
    return Rendered(before_ids, tail)


def _frame(tokenizer: Any, messages: list[Message], name: str, tools: Any = None) -> _Frame:
    text = _apply(tokenizer, [*messages, {"role": "assistant", "content": _SENTINEL}], name, tools)
    before, found, suffix = text.rpartition(_SENTINEL)
    if not found:
        raise ScoringError(f"{name}: the student's chat template does not show an assistant message's content.")
    opening = _apply(tokenizer, messages, name, tools, add_generation_prompt=True)
    return _Frame(before, opening, _end_of_turn(tokenizer, suffix), suffix)


def _end_of_turn(tokenizer: Any, suffix: str) -> str:
    """The text after a completion through its first special token; empty where the template ends no turn."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    marks = {str(token) for token in added.values() if token.special} | set(tokenizer.all_special_tokens)
    ends = [(suffix.find(mark), -len(mark), mark) for mark in marks if mark and mark in suffix]
    if not ends:
        return ""
    position, _, mark = min(ends)
    return suffix[: position + len(mark)]


def _apply(
    tokenizer: Any, messages: list[Message], name: str, tools: Any = None, add_generation_prompt: bool = False
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
    """Drops the end-of-text token of a tokenizer that puts one after every text by itself."""
    if not ids or ids[-1] != tokenizer.eos_token_id:
        return ids
    probe = _tokenize(tokenizer, "a", special=True)
    return ids[:-1] if len(probe) > 1 and probe[-1] == tokenizer.eos_token_id else ids


def _end_of_text(tokenizer: Any, name: str) -> int:
    if tokenizer.eos_token_id is None:
        raise ScoringError(f"{name}: the student's tokenizer has neither a chat template nor an end-of-text token.")
    return int(tokenizer.eos_token_id)
