"""Finish reasons: the names that servers use, and their meaning for the answer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from persyn_hf.text import tame

#: The server sent no reason, and its token counts do not reveal one.
NOT_GIVEN = "not given"
#: The server interrupted the answer, so the text is incomplete.
BROKEN_OFF = "broken off"
#: Maximum length of an unknown reason in the table, in characters.
_LONGEST = 60

#: Reason in the table → names that servers use for it, in lower case and without `_`.
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
    """Finish reason of an answer.

    Args:
        reason (`str`): One of `columns.FINISH_REASONS`, [`BROKEN_OFF`], [`NOT_GIVEN`], or the server's own name of an
            unknown reason.
        given (`str`): Reason as sent by the server, for errors.
    """

    reason: str
    given: str


def read_finish(
    given: object, made: int | None, max_tokens: int, size: int, clean: Callable[[str], str] = tame
) -> Finish:
    """Reads a server's finish reason.

    Case, `_`, `-` and the name of an enumeration before a dot (`FinishReason.MAX_TOKENS`) are ignored. A mapping is
    read by its `type` (SGLang and TGI: `{"type": "length", "length": 9}`). Without a reason, the token count shows
    whether `max_tokens` truncated the answer; a text has no more tokens than bytes.

    Args:
        given (`object`): Reason in the answer; `None` if there is none.
        made (`int`, *optional*): Number of tokens of the answer, if known.
        max_tokens (`int`): Requested maximum number of tokens.
        size (`int`): Size of the answer's text, in bytes.
        clean (`Callable[[str], str]`): Function that makes a server's text safe for the table and for errors.

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
    """Fills in a missing finish reason, once the tokens have been counted."""
    return _by_count(made, max_tokens, max_tokens) if reason == NOT_GIVEN else reason


def _named(given: Mapping[str, object]) -> object:
    keys = [key for key in ("type", "reason") if key in given]
    return next((given[key] for key in keys if given[key]), None) if keys or not given else given
