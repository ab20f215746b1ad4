"""Client for Text Generation Inference's `/generate`, which renders the model's chat template locally."""

from __future__ import annotations

import json
from collections.abc import Mapping

from persyn_hf.config import Teacher
from persyn_hf.endpoints.aiohttp_wire import open_wire
from persyn_hf.endpoints.endpoint import Endpoint
from persyn_hf.endpoints.faults import body_error, perhaps_charged
from persyn_hf.endpoints.wire import encoded, exchange
from persyn_hf.errors import RetryableError, RowError, TeacherError
from persyn_hf.generation.answer import Said, read_answer
from persyn_hf.generation.client import Request
from persyn_hf.generation.tokens import TeacherTokenizer, render, without_begin
from persyn_hf.generation.usage import Usage, count
from persyn_hf.ledger.completion import Completion


class TgiClient:
    """A teacher behind Text Generation Inference.

    Requests go through a `wire` and not through `AsyncInferenceClient.text_generation`, which follows redirects, reads
    answers of any length, and retries without the parameters that a 400 names.

    Args:
        teacher (`Teacher`): Teacher with `api: tgi`; its `model` must have a tokenizer with a chat template.
        address (`str`, *optional*): One of its endpoints; defaults to the first.

    Raises:
        ConfigError: If the teacher needs a key or the Hub token and it is missing.
    """

    def __init__(self, teacher: Teacher, address: str | None = None) -> None:
        endpoint = Endpoint.of(teacher, address)
        self._endpoint = endpoint
        self._url = endpoint.url("/generate")
        self._tokenizer = TeacherTokenizer(teacher, download=True)
        self._wire = open_wire(endpoint, teacher.timeout, teacher.max_response_bytes)

    def __repr__(self) -> str:
        return f"TgiClient(model={self._endpoint.model!r}, endpoint={self._endpoint.address!r})"

    async def complete(self, request: Request) -> Completion:
        """Answers one request; see [`TeacherClient`]."""
        tokenizer = await self._tokenizer.load()
        prompt = without_begin(tokenizer, render(tokenizer, request.messages, request.more))
        body = encoded({"inputs": prompt, "parameters": _parameters(request)})
        reply = await exchange(self._wire, self._endpoint, "POST", self._url, body)
        try:
            completion = self._read(reply.content, request)
        except TeacherError as error:
            raise perhaps_charged(error) from None
        return await self._tokenizer.counted(request, completion)

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._wire.aclose()

    def _read(self, content: bytes, request: Request) -> Completion:
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            raise body_error(self._endpoint, content.decode("utf-8", "replace")) from None
        if isinstance(answer, list) and answer:  # from a server that accepts several inputs
            answer = answer[0]
        details: object = answer.get("details") if isinstance(answer, dict) else None
        if not isinstance(details, dict):
            if isinstance(answer, dict) and ("error" in answer or "error_type" in answer):
                raise body_error(self._endpoint, content.decode("utf-8", "replace"))
            raise RetryableError(
                "the answer has no `generated_text` with `details`; for a server other than TGI, set `api: chat`",
                attempts=3,
            )
        prefill = details.get("prefill")
        asked = len(prefill) if isinstance(prefill, list) else None
        usage = Usage(asked or None, count(details.get("generated_tokens")) or None)
        said = Said(answer.get("generated_text"), details.get("finish_reason"), usage=usage)
        return read_answer(said, request, self._endpoint.clean)


def _parameters(request: Request) -> dict[str, object]:
    sampling = request.sampling
    parameters: dict[str, object] = {
        "details": True,  # contains the finish reason and the number of tokens
        "do_sample": not sampling.is_greedy,
        "max_new_tokens": sampling.max_tokens,
        "return_full_text": False,
    }
    if request.seed is not None:
        parameters["seed"] = request.seed
    if sampling.stop:
        parameters["stop"] = list(sampling.stop)
    if not sampling.is_greedy:  # TGI refuses a temperature of 0 and a `top_p` of 1
        if sampling.temperature is not None:
            parameters["temperature"] = sampling.temperature
        if sampling.top_p is not None and sampling.top_p < 1:
            parameters["top_p"] = sampling.top_p
    more = request.more
    more.pop("chat_template_kwargs", None)  # the template is rendered locally
    form = more.pop("response_format", None)
    return parameters | more | ({} if form is None else {"grammar": _grammar(form)})


def _grammar(form: Mapping[str, object]) -> dict[str, object]:
    """Converts a `response_format` to TGI's `grammar`.

    Raises:
        RowError: If TGI has no equivalent.
    """
    schema = form.get("json_schema")
    if form.get("type") == "json_schema" and isinstance(schema, Mapping) and "schema" in schema:
        return {"type": "json", "value": schema["schema"]}
    if form.get("type") in ("json", "regex") and "value" in form:
        return dict(form)
    raise RowError(
        f"`response_format` of type {form.get('type')!r} has no counterpart in `api: tgi`; use json_schema, or "
        "`api: chat`"
    )
