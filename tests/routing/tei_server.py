"""A double of Text Embeddings Inference: a real router, and requests and answers held to the published API.

The shapes are those of its OpenAPI description, version 1.7: `PredictRequest`, `PredictResponse`, `Info` and
`ErrorResponse`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import jsonschema
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from persyn_hf.routing.router import PersynRouter

TEXTS = {"type": "array", "items": {"type": "string"}}
PREDICT_REQUEST = {
    "type": "object",
    "required": ["inputs"],
    "additionalProperties": False,
    "properties": {
        "inputs": {
            "oneOf": [
                {"type": "string"},
                {**TEXTS, "minItems": 2, "maxItems": 2},  # a pair, not a batch
                {"type": "array", "items": {**TEXTS, "minItems": 1, "maxItems": 2}},
            ]
        },
        "raw_scores": {"type": "boolean"},
        "truncate": {"type": ["boolean", "null"]},
        "truncation_direction": {"enum": ["Left", "Right"]},
    },
}
PREDICTION = {
    "type": "object",
    "required": ["score", "label"],
    "properties": {"label": {"type": "string"}, "score": {"type": "number"}},
}
PREDICTIONS = {"type": "array", "items": PREDICTION}
PREDICT_RESPONSE = {"oneOf": [PREDICTIONS, {"type": "array", "items": PREDICTIONS}]}
INFO = {
    "type": "object",
    "required": ["model_id", "model_dtype", "model_type", "max_concurrent_requests", "max_input_length",
                 "max_batch_tokens", "max_client_batch_size", "auto_truncate", "tokenization_workers", "version"],
    "properties": {"model_type": {"type": "object"}, "model_sha": {"type": ["string", "null"]}},
}  # fmt: skip
ERROR = {
    "type": "object",
    "required": ["error", "error_type"],
    "properties": {"error_type": {"enum": ["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer"]}},
}


class TeiDouble:
    """The server. `failures` are statuses that it answers first; `seen` are the bodies and headers of requests."""

    def __init__(
        self, router: PersynRouter, batch_size: int = 4, sha: str | None = None, key: str | None = None
    ) -> None:
        self.router, self.batch_size, self.sha, self.key = router, batch_size, sha, key
        self.kind = "classifier"
        self.failures: list[int] = []
        self.seen: list[tuple[dict[str, Any], dict[str, str]]] = []
        self.lock = threading.Lock()
        self.url = ""

    async def info(self, request: Request) -> Response:
        labels = dict(enumerate(self.router.teachers))
        described = {"id2label": {str(k): v for k, v in labels.items()}, "label2id": {v: k for k, v in labels.items()}}
        body = {
            "model_id": "org/router", "model_sha": self.sha, "model_dtype": "float32",
            "model_type": {self.kind: described if self.kind == "classifier" else {"pooling": "cls"}},
            "max_concurrent_requests": 512, "max_input_length": 512, "max_batch_tokens": 16384,
            "max_client_batch_size": self.batch_size, "auto_truncate": False, "tokenization_workers": 1,
            "version": "1.7.1",
        }  # fmt: skip
        jsonschema.validate(body, INFO)
        return JSONResponse(body)

    async def predict(self, request: Request) -> Response:
        body = await request.json()
        with self.lock:
            self.seen.append((body, dict(request.headers)))
            status = self.failures.pop(0) if self.failures else 200
        jsonschema.validate(body, PREDICT_REQUEST)
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return Response(status_code=401)
        if status != 200:
            kind = {429: "Overloaded", 424: "Backend", 422: "Tokenizer"}.get(status, "Backend")
            error = {"error": "said by the server", "error_type": kind}
            jsonschema.validate(error, ERROR)
            return JSONResponse(error, status_code=status)
        inputs = body["inputs"]
        assert isinstance(inputs, list) and all(isinstance(text, list) and len(text) == 1 for text in inputs)
        if len(inputs) > self.batch_size:
            return JSONResponse({"error": "batch size", "error_type": "Validation"}, status_code=413)
        with self.lock:
            logits = torch.from_numpy(self.router.scores([text for (text,) in inputs]))
        scores = logits if body.get("raw_scores") else logits.softmax(dim=1)
        answer = [
            sorted(
                ({"label": name, "score": score} for name, score in zip(self.router.teachers, row, strict=True)),
                key=lambda one: -one["score"],
            )
            for row in scores.tolist()
        ]
        jsonschema.validate(answer, PREDICT_RESPONSE)
        return JSONResponse(answer)


@contextlib.contextmanager
def served(double: TeiDouble) -> Iterator[TeiDouble]:
    app = Starlette(routes=[Route("/info", double.info), Route("/predict", double.predict, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.01)
    double.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield double
    finally:
        server.should_exit = True
        thread.join(10)
