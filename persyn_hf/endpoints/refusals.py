"""Refusals of a server: the setting that each one concerns, and the number of equal ones that stops the requests."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator

from persyn_hf.errors import RowError, TeacherDownError

#: Consecutive equal refusals that stop the requests to a server: one that has not answered yet, and one that has
#: answered or whose message may be about the prompt.
_ENOUGH, _ENOUGH_OF_PROMPTS = 8, 32
#: Consecutive refusals that seem to apply to every request (403, 404) before they are taken to: before the server's
#: first answer, and after it. Moderation and firewalls refuse single prompts with the same statuses.
_FIRST_DOUBTS, _DOUBTS = 3, 16
#: Words that occur in refusals of a single prompt only.
_OF_A_PROMPT = re.compile(
    r"context.{0,12}(length|window|size)|prompt|too (long|many tokens)|moderat|flagged|policy|filter|safety|harmful"
    r"|inappropriate|unsafe|unicode|image|audio",
    re.IGNORECASE,
)
#: Parts that differ between two refusals with the same reason: request ids, times.
_IDENTIFIERS = re.compile(r"\b(?=[\w-]*\d)[\w-]{8,}\b")

#: Words of a server that does not accept a parameter with any value.
_UNKNOWN = re.compile(
    r"unsupported|(not|n't|only) support|unknown|unrecogni[sz]ed|unexpected|not (allowed|permitted|a valid|exist)"
    r"|forbidden|cannot (both|find field)|invalid (field|parameter|argument)|deprecated|instead|only the default"
    r"|must be (omitted|left out)|no longer",
    re.IGNORECASE,
)
#: Words of a server that only supports streamed answers.
_STREAM_ONLY = re.compile(
    r"only.{0,20}stream(ing)? (mode|mod|is)|only.{0,12}support.{0,12}stream|stream.{0,12}false.{0,20}not"
    r"|stream.{0,40}(required|must be (true|enabled|set))|(must|please|should).{0,40}(enable|use|set).{0,12}stream"
    r"|non-?stream\w*.{0,40}(not|un)|for non-?stream",
    re.IGNORECASE,
)
_OF_TOP_P = re.compile(
    r"top_p.{0,20}must be.{0,20}< ?1|top_p.{0,40}cannot both|cannot both.{0,40}top_p", re.IGNORECASE
)
#: The fix for each refused parameter; `{}` is the path of the sampling settings.
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
#: Keys of every request.
_ALWAYS = frozenset({"model", "messages", "stream"})
_LIMITS = ("max_tokens", "max_completion_tokens")


def advice(words: str, named: Collection[str], sent: bytes | None, options: str) -> str:
    """Finds the change to the configuration that fixes a refusal.

    Args:
        words (`str`): Message of the server.
        named (`Collection[str]`): Parameters that the error names outside the message.
        sent (`bytes`, *optional*): Body of the request.
        options (`str`): Path of the sampling settings: `"sampling."` for a teacher, empty for a service.

    Returns:
        `str`: The change; empty if the refusal names no parameter of the request.

    Example:
        >>> advice("Unsupported parameter: 'seed'", [], b'{"seed": 1, "messages": []}', "sampling.")
        'set `sampling.seed: null`'
    """
    body = _body(sent)
    keys = sorted(set(body) - _ALWAYS, key=len, reverse=True)  # `stop` is a substring of `stop_token_ids`
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


def _body(sent: bytes | None) -> dict[str, object]:
    try:
        body = json.loads(sent or b"{}")
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _names(words: str, key: str) -> bool:
    return re.search(rf"(?<![\w]){re.escape(key)}(?![\w])", words) is not None


def named_parameters(body: object) -> Iterator[str]:
    """Yields the parameters that the body of an error names: OpenAI's `param`, the second key of FastAPI's `loc`."""
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
    """Counts the consecutive equal refusals of a server.

    A server that refuses every request with the same message refuses the settings and not the prompts; after a number
    of them no more requests are sent.

    Attributes:
        seen (`bool`): Whether the server has answered.
        doubts (`int`): Number of refusals since its last answer that may apply to all requests.
    """

    def __init__(self) -> None:
        self._words = ""
        self._count = 0
        self.doubts = 0
        self.seen = False

    def answered(self) -> None:
        """Records an answer of the server."""
        self._count, self.doubts, self.seen = 0, 0, True

    def believes(self, error: TeacherDownError) -> bool:
        """Returns whether a refusal applies to all requests; one that may apply to its row only has to repeat."""
        self.doubts += 1
        return not error.doubtful or self.doubts >= (_DOUBTS if self.seen else _FIRST_DOUBTS)

    def refused(self, error: RowError) -> str | None:
        """Records the refusal of a request; returns the reason to stop, or `None` if there is none yet."""
        if error.status is None or not 400 <= error.status < 500:
            return None
        words = _IDENTIFIERS.sub("#", str(error))
        self._count = self._count + 1 if words == self._words else 1
        self._words = words
        patient = self.seen or _OF_A_PROMPT.search(words) is not None
        if self._count < (_ENOUGH_OF_PROMPTS if patient else _ENOUGH):
            return None
        return f"{self._count} requests in a row were refused in the same words: {error}"
