"""Finish reasons: the names that servers give them, and what each one says of the answer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from persyn_hf.text import tame

#: The server gave none, and its counts do not tell either.
NOT_GIVEN = "not given"
#: The server gave up in the middle: the text is no answer.
BROKEN_OFF = "broken off"
#: Longest name of an unknown reason in the table.
_LONGEST = 60

#: The name by which the table knows a reason → the names by which servers do, in lower case and without `_`.
#: OpenAI, Anthropic, Gemini and Vertex, Mistral, DeepSeek, Zhipu, Cohere, Bedrock, TGI, vLLM, SGLang, llama.cpp,
#: Ollama, LM Studio, OpenRouter.
_NAMES = {
    "stop": """
        stop stopped eos eostoken eosfound eogtoken endturn endofturn endoftext stopsequence stopstring
        stopstringfound stoptoken stopword complete completed finish finished done
    """,
    "length": """
        length limit tokenlimit maxtokens maxlength maxoutputtokens maxcompletiontokens maxnewtokens
        maxpredictedtokensreached modellength modelcontextwindowexceeded contextlength contextlengthexceeded
        contextlengthreached contextwindowexceeded errorlimit incomplete
    """,
    "content_filter": """
        contentfilter contentfiltered safety imagesafety refusal recitation blocklist blocked prohibitedcontent spii
        errortoxic guardrail guardrails guardrailintervened moderation sensitive
    """,
    "tool_calls": "toolcall toolcalls tooluse functioncall functioncalls",
    BROKEN_OFF: """
        abort aborted cancel cancelled canceled usercancel userstopped disconnect error failed failure interrupted
        networkerror internalerror servererror timeout preempted overloaded insufficientsystemresource modelunloaded
        malformedfunctioncall unexpectedtoolcall malformedresponse
    """,
}
_KNOWN = {name: reason for reason, names in _NAMES.items() for name in names.split()}


@dataclass(frozen=True)
class Finish:
    """Why an answer ended.

    Args:
        reason (`str`): One of `columns.FINISH_REASONS`, [`BROKEN_OFF`], [`NOT_GIVEN`], or an unknown reason as the
            server gave it.
        given (`str`): What the server said, for errors.
    """

    reason: str
    given: str


def read_finish(
    given: object, made: int | None, max_tokens: int, size: int, clean: Callable[[str], str] = tame
) -> Finish:
    """Reads a server's finish reason.

    Case, `_`, `-` and the name of an enumeration before a dot do not count (`FinishReason.MAX_TOKENS`). A mapping is
    known by its `type` (SGLang and TGI: `{"type": "length", "length": 9}`). Where no reason is given, the number of
    tokens tells whether `max_tokens` cut the answer; a text has no more tokens than bytes.

    Args:
        given (`object`): The reason as it stands in the answer; `None` where there is none.
        made (`int`, *optional*): Tokens of the answer, where they are known.
        max_tokens (`int`): The most that were asked for.
        size (`int`): Bytes of the answer's text.
        clean (callable): Makes the server's own words fit for the table and for errors.

    Example:
        >>> read_finish("MAX_TOKENS", None, 64, 100).reason
        'length'
        >>> read_finish("bored", 5, 64, 100).reason
        'bored'
    """
    named = _named(given) if isinstance(given, Mapping) else given
    shown = _short(given, clean)
    if named is None or named == "":
        return Finish(_by_count(made, max_tokens, size), shown)
    known = _KNOWN.get(re.sub(r"[\W_]", "", str(named).rpartition(".")[2].casefold()))
    return Finish(known or _short(named, clean) or NOT_GIVEN, shown)


def _short(words: object, clean: Callable[[str], str]) -> str:
    told = clean(words if isinstance(words, str) else json.dumps(words, default=str))
    return tame(told, _LONGEST)


def _by_count(made: int | None, max_tokens: int, size: int) -> str:
    if made is not None:
        return "length" if made >= max_tokens else "stop"
    return "stop" if size < max_tokens else NOT_GIVEN


def settled(reason: str, made: int | None, max_tokens: int) -> str:
    """A finish reason that was not given, once the tokens have been counted."""
    return _by_count(made, max_tokens, max_tokens) if reason == NOT_GIVEN else reason


def _named(given: Mapping[str, Any]) -> object:
    keys = [key for key in ("type", "reason") if key in given]
    return next((given[key] for key in keys if given[key]), None) if keys or not given else given
