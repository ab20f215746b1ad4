"""A server's refusal of a request: the setting that it speaks of, and when equal refusals are enough."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Any

from persyn_hf.errors import RowError, TeacherDownError

#: Equal refusals in a row, with no answer between: of a server that has not answered yet, and of one that has, or
#: whose words may be about the prompt.
_ENOUGH, _ENOUGH_OF_PROMPTS = 8, 32
#: Refusals in a row that read as if they were meant for every request (403, 404), before that is believed: before the
#: server's first answer, and after it. Moderation and firewalls refuse single prompts so.
_FIRST_DOUBTS, _DOUBTS = 3, 16
#: Words that a refusal of one prompt has, and not of every request.
_OF_A_PROMPT = re.compile(
    r"context.{0,12}(length|window|size)|prompt|too (long|many tokens)|moderat|flagged|policy|filter|safety|harmful"
    r"|inappropriate|unsafe|unicode|image|audio",
    re.IGNORECASE,
)
#: What differs between two refusals for one reason: identifiers of requests, times.
_IDENTIFIERS = re.compile(r"\b(?=[\w-]*\d)[\w-]{8,}\b")

#: Words with which a server refuses a parameter by its name, and not for its value.
_UNKNOWN = re.compile(
    r"unsupported|(not|n't|only) support|unknown|unrecogni[sz]ed|unexpected|not (allowed|permitted|a valid|exist)"
    r"|forbidden|cannot (both|find field)|invalid (field|parameter|argument)|deprecated|instead|only the default"
    r"|must be (omitted|left out)|no longer",
    re.IGNORECASE,
)
#: Words of a server that answers in a stream of events only.
_STREAM_ONLY = re.compile(
    r"only.{0,20}stream(ing)? (mode|mod|is)|only.{0,12}support.{0,12}stream|stream.{0,12}false.{0,20}not"
    r"|stream.{0,40}(required|must be (true|enabled|set))|(must|please|should).{0,40}(enable|use|set).{0,12}stream"
    r"|non-?stream\w*.{0,40}(not|un)|for non-?stream",
    re.IGNORECASE,
)
_OF_TOP_P = re.compile(
    r"top_p.{0,20}must be.{0,20}< ?1|top_p.{0,40}cannot both|cannot both.{0,40}top_p", re.IGNORECASE
)
#: What to do, by the parameter that was refused; `{}` is where sampling settings stand.
_MEND = {
    "max_tokens": "set `{}max_tokens_field: max_completion_tokens`",
    "max_completion_tokens": "set `{}max_tokens_field: max_tokens`",
    "temperature": "set `{}temperature: null`",
    "top_p": "set `{}top_p: null`",
    "seed": "set `{}seed: null`",
    "random_seed": "set `{}seed: null`",
    "stop": "give fewer strings in `{}stop`, or none",
    "stream_options": "set `stream_usage: false`",
}
#: Keys that every request has.
_ALWAYS = frozenset({"model", "messages", "stream"})
_LIMITS = ("max_tokens", "max_completion_tokens")


def advice(words: str, named: Collection[str], sent: bytes | None, options: str) -> str:
    """Names the line of the configuration that mends a refusal.

    Args:
        words (`str`): The server's own.
        named (`Collection[str]`): Parameters that its error names beside the words.
        sent (`bytes`, *optional*): The request's body.
        options (`str`): Where sampling settings stand: `"sampling."` of a teacher, nothing of a service.

    Returns:
        `str`: The line, empty where the refusal names no parameter that was sent.

    Example:
        >>> advice("Unsupported parameter: 'seed'", [], b'{"seed": 1, "messages": []}', "sampling.")
        'set `sampling.seed: null`'
    """
    body = _body(sent)
    keys = sorted(set(body) - _ALWAYS, key=len, reverse=True)  # `stop` is a part of `stop_token_ids`
    if "messages" in body and body.get("stream") is not True and _STREAM_ONLY.search(words):
        return "set `stream: true`"
    if "top_p" in body and _OF_TOP_P.search(words):
        return _MEND["top_p"].format(options)
    by_name = _UNKNOWN.search(words) is not None
    spoken = [key for key in keys if key in named] or [key for key in keys if by_name and _names(words, key)]
    for key in spoken[:1]:
        if key in _LIMITS and not by_name:
            return f"lower `{options}max_tokens`"
        return _MEND.get(key, f"change or drop `{{}}extra_body.{key}`").format(options)
    return ""


def _body(sent: bytes | None) -> dict[str, Any]:
    try:
        body = json.loads(sent or b"{}")
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _names(words: str, key: str) -> bool:
    return re.search(rf"(?<![\w]){re.escape(key)}(?![\w])", words) is not None


def named_parameters(body: Any) -> Iterator[str]:
    """The parameters that an error's body names: OpenAI's `param`, the last key of FastAPI's `loc`."""
    if isinstance(body, list):
        for one in body:
            yield from named_parameters(one)
    elif isinstance(body, dict):
        if isinstance(body.get("param"), str):
            yield body["param"].partition(".")[0]
        location = body.get("loc")
        if isinstance(location, list) and len(location) >= 2 and isinstance(location[1], str):
            yield location[1]
        for key in ("error", "detail", "message"):
            if not isinstance(body.get(key), str):
                yield from named_parameters(body.get(key))


class Refusals:
    """Counts a server's equal refusals in a row.

    A server that refuses every request in the same words refuses the settings and not the prompts: after some of them
    nothing more is asked.

    Attributes:
        seen (`bool`): Whether the server has answered.
        doubts (`int`): Refusals since its last answer that may have been meant for all requests.
    """

    def __init__(self) -> None:
        self._words = ""
        self._count = 0
        self.doubts = 0
        self.seen = False

    def answered(self) -> None:
        """The server answered."""
        self._count, self.doubts, self.seen = 0, 0, True

    def believes(self, error: TeacherDownError) -> bool:
        """Whether a refusal of all requests is meant so: one that may be meant for its row has to come repeatedly."""
        self.doubts += 1
        return not error.doubtful or self.doubts >= (_DOUBTS if self.seen else _FIRST_DOUBTS)

    def refused(self, error: RowError) -> str | None:
        """The server refused a request; gives the reason to stop, once there is one."""
        if error.status is None or not 400 <= error.status < 500:
            return None
        words = _IDENTIFIERS.sub("#", str(error))
        self._count = self._count + 1 if words == self._words else 1
        self._words = words
        patient = self.seen or _OF_A_PROMPT.search(words) is not None
        if self._count < (_ENOUGH_OF_PROMPTS if patient else _ENOUGH):
            return None
        return f"{self._count} requests in a row were refused in the same words: {error}"
