"""A double of Text Generation Inference, native and chat, held on both sides to its published schema."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

_SCHEMA = json.loads((Path(__file__).parent / "tgi_schema.json").read_text())


@cache
def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator({**_SCHEMA, "$ref": f"#/$defs/{name}"})


@dataclass
class Tgi:
    """`behave(n, body)` answers the n-th paid request in another way; what breaks the schema is in `violations`."""

    model_id: str = "org/model"
    model_sha: str | None = None
    key: str | None = None
    cap: int = 128
    max_input_tokens: int = 1024
    max_total_tokens: int = 2048
    delay: float = 0.0
    behave: Callable[[int, dict[str, Any]], Response | None] | None = None
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    checked: int = 0
    in_flight: int = 0
    peak: int = 0
    url: str = ""

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/info", self.info),
                Route("/v1/models", self.models),
                Route("/generate", self.generate, methods=["POST"]),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
            ]
        )

    def _check(self, name: str, body: Any) -> bool:
        errors = [f"{name}: {error.json_path}: {error.message}" for error in validator(name).iter_errors(body)]
        self.violations += errors
        self.checked += 1
        return not errors

    def _json(self, name: str, body: Any, status: int = 200) -> Response:
        self._check(name, body)
        return JSONResponse(body, status)

    def error(self, status: int, kind: str, words: str) -> Response:
        return self._json("ErrorResponse", {"error": words, "error_type": kind}, status)

    async def info(self, request: Request) -> Response:
        return self._json(
            "Info",
            {
                "model_id": self.model_id, "model_sha": self.model_sha, "model_pipeline_tag": "text-generation",
                "max_concurrent_requests": self.cap, "max_best_of": 2, "max_stop_sequences": 4,
                "max_input_tokens": self.max_input_tokens, "max_total_tokens": self.max_total_tokens,
                "validation_workers": 2, "max_client_batch_size": 4, "router": "text-generation-router",
                "version": "3.3.6-dev0", "sha": None, "docker_label": None,
            },
        )  # fmt: skip

    async def models(self, request: Request) -> Response:
        return self._json("ModelInfo", {"id": self.model_id, "object": "model", "created": 0, "owned_by": "x"})

    async def generate(self, request: Request) -> Response:
        return await self._paid(request, "GenerateRequest", self._generated)

    async def chat(self, request: Request) -> Response:
        return await self._paid(request, "ChatRequest", self._chatted)

    async def _paid(self, request: Request, schema: str, answer: Callable[[dict[str, Any]], Response]) -> Response:
        self.headers.append(dict(request.headers))
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return Response(status_code=401)
        body = await request.json()
        self.requests.append((request.url.path, body))
        if self.in_flight >= self.cap:
            return self.error(429, "overloaded", "Model is overloaded")
        if not self._check(schema, body):
            return self.error(422, "validation", "Input validation error: the body is not of the schema")
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            await asyncio.sleep(self.delay)
            return (self.behave and self.behave(len(self.requests), body)) or answer(body)
        finally:
            self.in_flight -= 1

    def _generated(self, body: dict[str, Any]) -> Response:
        parameters = body["parameters"]
        size = len(body["inputs"])  # the tiny tokenizer's tokens are bytes
        if size > self.max_input_tokens or size + parameters["max_new_tokens"] > self.max_total_tokens:
            return self.error(422, "validation", "Input validation error: `inputs` must have fewer tokens")
        text = f"[{body['inputs']}] seed={parameters['seed']}"
        return self.generated(text, seed=parameters["seed"])

    def generated(self, text: str, reason: str = "eos_token", tokens: int = 5, seed: int = 1) -> Response:
        token = {"id": 1, "text": "x", "logprob": -0.5, "special": False}
        details = {
            "finish_reason": reason, "generated_tokens": tokens, "seed": seed, "prefill": [],
            "tokens": [token] * tokens,
        }  # fmt: skip
        return self._json("GenerateResponse", {"generated_text": text, "details": details})

    def _chatted(self, body: dict[str, Any]) -> Response:
        asked = "|".join(f"{message['role']}:{message['content']}" for message in body["messages"])
        return self.chatted(f"{asked}|seed={body['seed']}")

    def chatted(self, text: str, reason: str = "stop") -> Response:
        message = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
        return self._json(
            "ChatCompletion",
            {
                "id": "", "created": 0, "model": self.model_id, "system_fingerprint": "3.3.6-dev0-native",
                "choices": [choice], "usage": usage,
            },
        )  # fmt: skip
