"""Everyone who asks a server, and a server that answers each of them until it is told to do otherwise."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from persyn_hf.config import Judge, StudentEndpoint
from persyn_hf.errors import DataError, RouterError, ScoringError
from persyn_hf.generation.generate import generate_parallel
from persyn_hf.generation.pool import RetryPolicy
from persyn_hf.models.rendering import Rendered
from persyn_hf.routing.tei import describe_endpoint
from persyn_hf.scoring.judge import judge_answers
from persyn_hf.scoring.remote import RemoteStudent, score_remotely
from tests.generation import faulty as f
from tests.generation.servers import chat_body

FAST = RetryPolicy(base_delay=0.005, max_delay=0.05, down_after=1.0, down_after_unseen=0.3)
#: "hello", with 'h' as the prompt: to the tokenizer below a token is a byte.
ANSWER = Rendered((104,), (101, 108, 108, 111))
TEACHERS = ("alpha", "beta")


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def __call__(self, text: str, verbose: bool = True) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}

    def decode(self, ids: Any, clean_up_tokenization_spaces: bool = False) -> str:
        return bytes(ids).decode()

    def convert_ids_to_tokens(self, token: int) -> str:
        return chr(token)


@dataclass
class Server(f.Faulty):
    """Answers whoever asks; `when(n, path, 0)` may name a fault for the n-th paid request instead."""

    api: str = "any"
    model: str = "m"
    when: Callable[[int, str, int], f.Fault | None] = lambda *_: None
    heads: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    @property
    def sent(self) -> list[dict[str, str]]:
        """The headers of every request."""
        lines = [[line.partition(": ") for line in head.split("\r\n")[1:] if line] for head in self.heads]
        return [{name.lower(): value for name, _, value in one} for one in lines]

    async def _answer(self, head: str, sent: str, writer: asyncio.StreamWriter) -> None:
        self.heads.append(head)
        path = head.split()[1]
        if path.startswith("http://"):  # as a proxy is asked
            path = "/" + path.split("/", 3)[3]
        if path in ("/info", "/v1/models"):
            writer.write(f.http("200 OK", json.dumps(INFO)))
            return
        self.times.append(time.monotonic())
        fault = self.when(len(self.times), path, 0)
        if fault is not None:
            await fault(self, writer)
            return
        writer.write(f.http("200 OK", json.dumps(good(path, json.loads(sent)))))


#: What a server says of itself: Text Embeddings Inference, and nothing to others.
INFO = {"model_type": {"classifier": {"id2label": dict(enumerate(TEACHERS))}}, "max_client_batch_size": 4}


def good(path: str, body: dict[str, Any]) -> Any:
    """The right answer at a path."""
    if path == "/v1/chat/completions":
        return chat_body("7")
    if path == "/predict":
        return [[{"label": name, "score": 0.5} for name in TEACHERS] for _ in body["inputs"]]
    ids = list(body["inputs"].encode()) if path == "/generate" else body["prompt"]
    logprobs = [None] + [-0.5] * (len(ids) - 1)
    if path == "/generate":
        prefill = [{"id": one, "text": chr(one), "logprob": value} for one, value in zip(ids, logprobs, strict=True)]
        details = {"finish_reason": "length", "generated_tokens": 1, "prefill": prefill}
        return {"generated_text": "7", "details": details}
    choice: dict[str, Any] = {"index": 0, "text": "", "finish_reason": "length", "logprobs": None}
    if body.get("echo"):
        choice["logprobs"] = {"tokens": [f"token_id:{one}" for one in ids], "token_logprobs": logprobs}
    else:
        choice["prompt_logprobs"] = [None] + [{str(one): {"logprob": -0.5, "rank": 1}} for one in ids[1:]]
    return {"choices": [choice]}


#: Asks for one answer; what went wrong as its words, `None` where nothing did.
Caller = Callable[..., str | None]


def _teacher(api: str) -> Caller:
    def ask(url: str, model: str = "m", **settings: Any) -> str | None:
        teacher = {"name": "t", "model": model, "endpoint": url, "api": api, "preflight": False, **settings}
        table = generate_parallel(["prompt 1"], [teacher], progress=False, policy=FAST)
        (row,) = table.to_list()
        return None if row["completion"] == "7" else row["error"] or "answered otherwise"

    return ask


def _judge(url: str, model: str = "m", **settings: Any) -> str | None:
    judge = Judge(url=url, model="m", **settings)
    try:
        (found,) = judge_answers(judge, ["hello"], ["there"], [None])
    except ScoringError as error:
        return str(error)
    assert isinstance(found, str) or found == 7.0
    return found if isinstance(found, str) else None


def _student(api: str) -> Caller:
    def ask(url: str, model: str = "m", **settings: Any) -> str | None:
        student = RemoteStudent("m", "r", Bytes(), None, StudentEndpoint(url=url, api=api, **settings))
        try:
            (score,) = score_remotely(student, [ANSWER], ["row 0"])
        except ScoringError as error:
            return str(error)
        assert (score.logprob, score.tokens) == (-2.0, 4)
        return None

    return ask


def _router(
    url: str, model: str = "m", max_response_bytes: int = 0, timeout: float = 0, **settings: Any
) -> str | None:
    try:
        scores = describe_endpoint(url, **settings).scores(["hello"], **settings)
    except (RouterError, DataError) as error:
        return str(error)
    assert scores.tolist() == [[0.5, 0.5]]
    return None


CALLERS: dict[str, Caller] = {
    "chat teacher": _teacher("chat"),
    "TGI teacher": _teacher("tgi"),
    "judge": _judge,
    "student by prompt_logprobs": _student("prompt_logprobs"),
    "student by echo": _student("echo"),
    "student by generate": _student("generate"),
    "router": _router,
}
