"""Client for the chat protocol (`/v1/chat/completions`), which every inference server supports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from persyn_hf.config import Teacher
from persyn_hf.endpoints.aiohttp_wire import open_wire
from persyn_hf.endpoints.conversation import assembled, chat_body, content_texts, first_choice, is_stream
from persyn_hf.endpoints.endpoint import Endpoint
from persyn_hf.endpoints.faults import body_error, perhaps_charged
from persyn_hf.endpoints.wire import encoded, exchange
from persyn_hf.errors import RetryableError, RowError, TeacherError
from persyn_hf.generation.answer import Said, read_answer, split_reasoning
from persyn_hf.generation.calls import calls_of, enveloped
from persyn_hf.generation.client import Request
from persyn_hf.generation.tokens import TeacherTokenizer
from persyn_hf.generation.usage import read_usage
from persyn_hf.ledger.completion import Completion
from persyn_hf.prompts.sending import joined_system

#: Bytes of a stream for each byte of its answer, at most: an event of a few hundred bytes may hold one token.
_STREAM_ROOM = 64


class ChatClient:
    """A teacher behind an OpenAI-compatible endpoint.

    Requests go through a `wire` and not through `AsyncInferenceClient.chat_completion`, which follows redirects, reads
    answers of any length, sends the user's Hub token to every address without a key, and takes three times as much
    processor time.

    Args:
        teacher (`Teacher`): Teacher with `backend: endpoint`.
        address (`str`, *optional*): One of its endpoints; defaults to the first.

    Raises:
        ConfigError: If the teacher needs a key or the Hub token and it is missing.
    """

    def __init__(self, teacher: Teacher, address: str | None = None) -> None:
        endpoint = Endpoint.of(teacher, address)
        self._endpoint = endpoint
        self._teacher = teacher
        self._no_whole_top_p = False
        self._url = endpoint.url("/v1/chat/completions")
        self._tokenizer = TeacherTokenizer(teacher, download=False)
        room = _STREAM_ROOM if teacher.stream else 1
        self._wire = open_wire(endpoint, teacher.timeout, teacher.max_response_bytes, room)

    def __repr__(self) -> str:
        return f"ChatClient(model={self._endpoint.model!r}, endpoint={self._endpoint.address!r})"

    def adapt(self, model: str | None, no_whole_top_p: bool) -> None:
        """Adapts the requests to the endpoint.

        Args:
            model (`str`, *optional*): Name of the model at the endpoint, if it differs from the configured one.
            no_whole_top_p (`bool`): Whether to omit a `top_p` of 1, which means the same, because the endpoint refuses
                it.
        """
        self._endpoint = replace(self._endpoint, model=model or self._endpoint.model)
        self._no_whole_top_p = no_whole_top_p

    async def complete(self, request: Request) -> Completion:
        """Answers one request; see [`TeacherClient`]."""
        reply = await exchange(self._wire, self._endpoint, "POST", self._url, self._body(request))
        try:
            completion = self._read(reply.content, request)
        except TeacherError as error:
            raise perhaps_charged(error) from None
        return completion if completion.usage_source else await self._tokenizer.counted(request, completion)

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._wire.aclose()

    def _body(self, request: Request) -> bytes:
        sampling = request.sampling
        if self._no_whole_top_p and sampling.top_p == 1:
            sampling = sampling.model_copy(update={"top_p": None})
        return encoded(
            chat_body(
                self._endpoint.model,
                joined_system(request.messages),
                sampling,
                request.seed,
                request.more,
                stream=self._teacher.stream,
                stream_usage=self._teacher.stream_usage,
            )
        )

    def _read(self, content: bytes, request: Request) -> Completion:
        """Reads the first choice of a response."""
        try:
            streamed = is_stream(content)
            answer = assembled(content) if streamed else json.loads(content)
        except (ValueError, RecursionError):
            raise body_error(self._endpoint, content.decode("utf-8", "replace")) from None
        choice = first_choice(answer.get("choices"), any_index=True) if isinstance(answer, dict) else None
        message = choice.get("message") if choice is not None else None
        if isinstance(answer, dict) and any(said.get("error") for said in (answer, choice or {})):
            raise body_error(self._endpoint, json.dumps(answer if answer.get("error") else choice))
        if choice is None or not isinstance(message, dict):
            if isinstance(answer, dict) and ("error" in answer or "error_type" in answer):
                raise body_error(self._endpoint, content.decode("utf-8", "replace"))
            raise RetryableError("the answer has no choices", attempts=3)
        if streamed:
            self._require_bound(message)
        text, thoughts = content_texts(message.get("content"))
        reason = choice.get("finish_reason")
        # DeepSeek's name for it, and the one that vLLM and OpenRouter have moved to.
        thoughts = message.get("reasoning_content") or message.get("reasoning") or thoughts
        refusal, called = message.get("refusal"), message.get("tool_calls") or message.get("function_call")
        calls = calls_of(message, reason) if request.more.get("tools") else None
        if calls is not None:
            words, thoughts = split_reasoning(text or "", thoughts if isinstance(thoughts, str) else None)
            text, reason, refusal, called = enveloped(words, calls), "stop", None, None
        said = Said(
            text, reason, thoughts, refusal, called, choice.get("stop_reason"), read_usage(answer.get("usage"))
        )
        return read_answer(said, request, self._endpoint.clean)

    def _require_bound(self, message: Mapping[str, Any]) -> None:
        """Holds the answer that a stream is put together to within `max_response_bytes`.

        Raises:
            RowError: If it is longer.
        """
        most = self._teacher.max_response_bytes
        if len(json.dumps(message, ensure_ascii=False).encode("utf-8", "replace")) > most:
            raise RowError(f"the answer is longer than {most} bytes (`max_response_bytes`)")
