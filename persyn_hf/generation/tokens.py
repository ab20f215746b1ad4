"""A teacher's tokenizer, which renders prompts and counts tokens if the server does not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any

from persyn_hf.columns import Message
from persyn_hf.config import Teacher
from persyn_hf.errors import ConfigError, RowError, TeacherDownError
from persyn_hf.generation.client import Request
from persyn_hf.generation.finish import settled
from persyn_hf.ledger.completion import Completion
from persyn_hf.models import loading
from persyn_hf.models.files import ModelFiles
from persyn_hf.models.readable import apply_template
from persyn_hf.packages import is_installed, require
from persyn_hf.prompts.sending import joined_system


class TeacherTokenizer:
    """The tokenizer of a teacher (`tokenizer`, or `model` at `revision`), loaded on first use.

    Args:
        teacher (`Teacher`): Teacher that the tokenizer belongs to.
        download (`bool`): Whether to download it from the Hub if needed. Otherwise only a local folder or the cache is
            used, and there may be no tokenizer.
    """

    def __init__(self, teacher: Teacher, download: bool) -> None:
        named = teacher.tokenizer
        self._of = (named or teacher.model, None if named else teacher.revision, download or named is not None)
        self._loading: asyncio.Task[Any] | None = None

    def load_here(self) -> Any | None:
        """Loads the tokenizer; returns `None` if it is not available. The first call takes seconds (transformers).

        Raises:
            TeacherDownError: If it may be downloaded and does not exist, or it has no chat template.
        """
        with loading.LOADING:  # parallel requests of one teacher load one tokenizer
            return _load(*self._of, os.environ.get("HF_HOME"))

    async def load(self) -> Any | None:
        """Loads the tokenizer like [`load_here`], without blocking the event loop."""
        if self._loading is None:
            self._loading = asyncio.create_task(asyncio.to_thread(self.load_here))
        return await asyncio.shield(self._loading)

    async def counted(self, request: Request, completion: Completion) -> Completion:
        """Adds the token counts that the server did not send, if possible, and sets `usage_source`."""
        asked, made = completion.prompt_tokens, completion.completion_tokens
        if asked is not None and made is not None:
            return completion
        source = "server" if asked is not None or made is not None else None
        tokenizer = await self.load()
        if tokenizer is not None:
            if made is None:
                made = count_tokens(tokenizer, (completion.reasoning or "") + completion.text)
                source = "tokenizer"
            if asked is None:
                # The template may refuse messages that the server accepted; the answer is valid anyway.
                with suppress(RowError):
                    asked = count_tokens(tokenizer, render(tokenizer, request.messages, request.more))
                    source = "tokenizer"
        reason = settled(completion.finish_reason, made, request.sampling.max_tokens)
        return replace(
            completion, prompt_tokens=asked, completion_tokens=made, usage_source=source, finish_reason=reason
        )


@lru_cache(maxsize=32)
def _load(model: str, revision: str | None, download: bool, home: str | None) -> Any | None:
    if not download and not is_installed("transformers"):
        return None
    require("render prompts for `api: tgi` or a `tokenizer` (`api: chat` needs none)", "transformers")
    try:
        pinned = loading.identity(model, revision) if download else revision
        files = ModelFiles(model, pinned, "the teacher", TeacherDownError, local_only=not download)
        tokenizer = loading.load_tokenizer(files)
    except (TeacherDownError, ConfigError, ImportError) as error:
        if not download:
            return None
        raise TeacherDownError(
            f"the tokenizer of `{model}`, which renders the prompts, cannot be loaded ({error}); name another one as "
            "`tokenizer`, or use `api: chat` without it, where the server renders them"
        ) from error
    if tokenizer.chat_template:
        return tokenizer
    if download:
        raise TeacherDownError(
            f"`{model}` has no chat template, so `api: tgi` cannot render messages for it; a teacher must be a chat "
            "model, or use `api: chat` without `tokenizer` where the server has a template of its own"
        )
    return None


def render(tokenizer: Any, messages: Sequence[Message], more: Mapping[str, Any]) -> str:
    """Renders messages with the chat template.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer with a chat template.
        messages (`Sequence[Message]`): Conversation; its first system messages are joined.
        more (`Mapping[str, Any]`): Additional keys of the request; `tools` and `chat_template_kwargs` are passed to
            the template.

    Raises:
        RowError: If the chat template refuses the messages.
    """
    options = more.get("chat_template_kwargs") or {}
    joined = joined_system(messages)
    try:
        return apply_template(tokenizer, joined, more.get("tools"), add_generation_prompt=True, **options)
    except Exception as error:  # noqa: BLE001 - a template is a program and may raise any error
        raise RowError(f"the chat template refused the messages: {error}") from None


def without_begin(tokenizer: Any, text: str) -> str:
    """Removes the BOS token from a rendered text, for a server that adds it when it tokenizes."""
    begin = tokenizer.bos_token
    if begin and text.startswith(begin) and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]:
        return text.removeprefix(begin)
    return text


def count_tokens(tokenizer: Any, text: str) -> int:
    """Counts the tokens of a text, including special tokens that it contains, but without adding any."""
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])
