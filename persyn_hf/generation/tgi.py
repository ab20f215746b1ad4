"""Text Generation Inference's own protocol: `/generate`, with the model's chat template rendered here."""

from __future__ import annotations

from typing import Any

import httpx2
from huggingface_hub import AsyncInferenceClient, TextGenerationOutput
from huggingface_hub.errors import InferenceTimeoutError, OfflineModeIsEnabled

from persyn_hf.config import Teacher
from persyn_hf.endpoints.endpoint import Endpoint
from persyn_hf.endpoints.faults import body_error, perhaps_charged, transport_error
from persyn_hf.endpoints.wire import Rules, Sessions, harden
from persyn_hf.errors import RetryableError, RowError, TeacherError
from persyn_hf.generation.answer import read_answer
from persyn_hf.generation.client import Completion, Request
from persyn_hf.generation.tokens import TeacherTokenizer, render, without_begin


class TgiClient:
    """A teacher behind Text Generation Inference, asked through `AsyncInferenceClient.text_generation`.

    A key is always sent, `-` where the teacher names none: without one, `AsyncInferenceClient` sends the user's Hub
    token to any address.

    Args:
        teacher (`Teacher`): With `api: tgi`; its `model` must have a tokenizer with a chat template.
        address (`str`, *optional*): One of its endpoints; by default the first.

    Raises:
        ConfigError: If the teacher wants a key or the Hub token and there is none.
    """

    def __init__(self, teacher: Teacher, address: str | None = None) -> None:
        endpoint = Endpoint.of(teacher, address)
        self._endpoint = endpoint
        self._url = endpoint.url("/generate")
        self._rules = Rules(endpoint, teacher.timeout, teacher.max_response_bytes)
        self._tokenizer = TeacherTokenizer(teacher, download=True)
        self._sessions = Sessions(lambda: AsyncInferenceClient(api_key=endpoint.key or "-", timeout=teacher.timeout))
        self._hardened: set[AsyncInferenceClient] = set()

    def __repr__(self) -> str:
        return f"TgiClient(model={self._endpoint.model!r}, endpoint={self._endpoint.address!r})"

    async def complete(self, request: Request) -> Completion:
        """Answers one request; see [`TeacherClient`]."""
        tokenizer = await self._tokenizer.load()
        prompt = without_begin(tokenizer, render(tokenizer, request.messages))
        with self._sessions.one() as client:
            await self._harden(client)
            try:
                # The address goes with the call: what a server does not support is remembered by that name.
                answer = await client.text_generation(prompt, model=self._url, **_parameters(request))
            except TeacherError as error:
                # Without the library's frames, whose variables hold the headers.
                raise error.with_traceback(None) from None
            except (
                httpx2.HTTPError,
                OSError,
                ValueError,
                TypeError,
                LookupError,
                AttributeError,
                RecursionError,
            ) as error:
                raise self._explain(error) from None
        try:
            completion = self._read(answer, request)
        except TeacherError as error:
            raise perhaps_charged(error) from None
        return await self._tokenizer.counted(request, completion)

    async def aclose(self) -> None:
        """Closes the connections."""
        for client in self._sessions.opened:
            await client.close()  # type: ignore[no-untyped-call] # huggingface_hub leaves it untyped

    def _read(self, answer: object, request: Request) -> Completion:
        if not isinstance(answer, TextGenerationOutput) or not isinstance(answer.details, dict):
            raise RetryableError(
                "the answer has no `generated_text` with `details`; a server that is no TGI wants `api: chat`",
                attempts=3,
            )
        details: Any = answer.details
        return read_answer(
            answer.generated_text,
            details.finish_reason,
            request.sampling,
            len(details.prefill or ()),
            details.generated_tokens,
            clean=self._endpoint.clean,
        )

    def _explain(self, error: Exception) -> TeacherError:
        if isinstance(error, httpx2.HTTPError | InferenceTimeoutError | OfflineModeIsEnabled):
            return transport_error(self._endpoint, error)
        if isinstance(error, UnicodeEncodeError):
            return RowError("the prompt is no valid Unicode (it holds half of a surrogate pair)")
        return perhaps_charged(body_error(self._endpoint, getattr(error, "doc", "")))

    async def _harden(self, client: AsyncInferenceClient) -> None:
        # A client's session has no public name, and `set_async_client_factory` would change the whole process. Asking
        # for it by its private name fails loudly should that change.
        if client not in self._hardened:
            session = await client._get_async_client()  # type: ignore[no-untyped-call]
            harden(session, self._rules, raising=True)
            self._hardened.add(client)


def _parameters(request: Request) -> dict[str, Any]:
    sampling = request.sampling
    sampled = sampling.temperature > 0
    return {
        "details": True,  # the finish reason and the number of tokens are there
        "do_sample": sampled,
        "max_new_tokens": sampling.max_tokens,
        "return_full_text": False,
        "seed": request.seed,
        "stop": list(sampling.stop) or None,
        "temperature": sampling.temperature if sampled else None,  # TGI refuses 0 and a `top_p` of 1
        "top_p": sampling.top_p if sampled and sampling.top_p < 1 else None,
    }
