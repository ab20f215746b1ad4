"""Servers on loopback: a tiny real student behind two protocols, held to their published schemas, and a judge."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jsonschema
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent


@lru_cache
def _schemas(file: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((HERE / file).read_text(encoding="utf-8"))
    return read


def check(value: Any, file: str, name: str) -> Any:
    """Holds a request or a response to a published schema."""
    schema = _schemas(file) | {"$ref": f"#/$defs/{name}"}
    jsonschema.Draft202012Validator(schema).validate(value)
    return value


@dataclass
class Double:
    """What a double was asked. `behave(n, body)` may answer the n-th request in its place."""

    behave: Callable[[int, dict[str, Any]], Response | None] | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    in_flight: int = 0
    peak: int = 0

    async def answer(self, request: Request, respond: Callable[[dict[str, Any]], Response]) -> Response:
        body = await request.json()
        self.bodies.append(body)
        count = len(self.bodies)
        self.headers.append(dict(request.headers))
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            await asyncio.sleep(0.01)
            special = self.behave(count, body) if self.behave else None
            return special or respond(body)
        finally:
            self.in_flight -= 1


class Student(Double):
    """A student that reports what it thinks of its prompt, through `/generate` and `/v1/completions`."""

    def __init__(self, folder: str, token_ids: bool = True, prefill: bool = True, extension: bool = True) -> None:
        super().__init__()
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.token_ids, self.prefill, self.extension = token_ids, prefill, extension

    @property
    def app(self) -> Starlette:
        return Starlette(routes=[
            Route("/generate", partial(self.answer, respond=self.generate), methods=["POST"]),
            Route("/v1/completions", partial(self.answer, respond=self.completions), methods=["POST"]),
        ])  # fmt: skip

    def read(self, ids: list[int]) -> tuple[list[float | None], list[int | None], int, float]:
        """Log-probability and rank of every token given those before it, and the likeliest next one."""
        with torch.no_grad():
            logprobs = torch.log_softmax(self.model(torch.tensor([ids])).logits[0].double(), dim=-1)
        own = logprobs[:-1].gather(1, torch.tensor(ids[1:])[:, None])
        ranks = (logprobs[:-1] > own).sum(1) + 1
        best = logprobs[-1].max(0)
        return [None, *own[:, 0].tolist()], [None, *ranks.tolist()], int(best.indices), float(best.values)

    def generate(self, body: dict[str, Any]) -> Response:
        check(body, "tgi_schemas.json", "GenerateRequest")
        asked = body["parameters"]
        assert asked["details"] and asked["decoder_input_details"] and asked["max_new_tokens"] == 1
        ids = self.tokenizer(body["inputs"])["input_ids"]
        logprobs, _, following, value = self.read(ids)
        texts = [self.tokenizer.decode([token]) for token in (*ids, following)]
        prefill = [{"id": a, "text": b, "logprob": c} for a, b, c in zip(ids, texts, logprobs, strict=False)]
        answer = {
            "generated_text": texts[-1],
            "details": {
                "finish_reason": "length",
                "generated_tokens": 1,
                "seed": None,
                "prefill": prefill if self.prefill else [],
                "tokens": [{"id": following, "text": texts[-1], "logprob": value, "special": False}],
            },
        }
        return JSONResponse(check(answer, "tgi_schemas.json", "GenerateResponse"))

    def completions(self, body: dict[str, Any]) -> Response:
        check(body, "completions_schemas.json", "CompletionRequest")
        ids = body["prompt"]
        logprobs, ranks, following, value = self.read(ids)
        choice: dict[str, Any] = {"index": 0, "text": "", "finish_reason": "length", "logprobs": None}
        if body.get("prompt_logprobs") is not None and self.extension:
            choice["prompt_logprobs"] = [
                None if logprob is None else {str(token): {"logprob": logprob, "rank": rank, "decoded_token": "?"}}
                for token, logprob, rank in zip(ids, logprobs, ranks, strict=True)
            ]
        if body.get("echo"):
            named = self.token_ids and body.get("return_tokens_as_token_ids")
            tokens = [f"token_id:{one}" if named else self.tokenizer.decode([one]) for one in (*ids, following)]
            choice["logprobs"] = {
                "tokens": tokens,
                "token_logprobs": [*logprobs, value],
                "text_offset": [0] * len(tokens),
                "top_logprobs": None,
            }
        answer = {
            "id": "cmpl-1", "object": "text_completion", "created": 0, "model": body["model"], "choices": [choice],
            "usage": {"prompt_tokens": len(ids), "completion_tokens": 1, "total_tokens": len(ids) + 1},
        }  # fmt: skip
        return JSONResponse(check(answer, "completions_schemas.json", "CompletionResponse"))


@dataclass
class Judge(Double):
    """A chat server whose every reply is `reply(request text)`."""

    reply: Callable[[str], str] = lambda text: "7"

    @property
    def app(self) -> Starlette:
        path = "/v1/chat/completions"
        return Starlette(routes=[Route(path, partial(self.answer, respond=self.chat), methods=["POST"])])

    def chat(self, body: dict[str, Any]) -> Response:
        message = {"role": "assistant", "content": self.reply(body["messages"][-1]["content"])}
        return JSONResponse({
            "id": "1", "object": "chat.completion", "created": 0, "model": body["model"], "system_fingerprint": "",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        })  # fmt: skip


@contextlib.contextmanager
def serve(double: Student | Judge) -> Iterator[str]:
    """Runs a double in a thread; gives its URL."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(double.app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < end
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
        listener.close()
