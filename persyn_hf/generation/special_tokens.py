"""Special tokens that leaked into an answer, and turns that the model invented after its own.

A server whose stop tokens differ from those of the model's template returns `42<|im_end|>`, or does not stop: the
model closes its turn, writes the user's next one and answers that too. An answer may also be *about* such tokens. So a
token counts only outside of code, and it is cut off only at the end of the answer or before a turn:

| found | cut | mark |
|---|---|---|
| an end-of-turn token at the end | yes | `end-token` |
| a role marker of a chat template, and text after it | from there | `invented-turn` |
| a role marker of the assistant at the very start | yes | `special-token` |
| an end-of-turn token in the middle, with no role after it | no | `special-token` |
| a line that starts with `User:`, `Human:` or `### Instruction` | no, unless configured | `turn-words` |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Mode = Literal["cut", "cut-words", "mark"]

#: Tokens that end a turn or a text: ChatML, Llama 2 to 4, Gemma, Phi, GLM, DeepSeek, Cohere, Granite, gpt-oss and
#: MiniMax.
_ENDS = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<|end|>",
    "<|return|>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|end_of_message|>",
    "<|assistant_end|>",
    "<end_of_turn>",
    "<eos>",
    "<turn|>",
    "</s>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
)
_ROLE = "(?i:user|human|assistant|model|chatbot|system|developer|tool|ipython|observation)"
#: Role markers, which open a turn.
_OPENINGS = (
    rf"<\|im_start\|>[ \t]*{_ROLE}\b",
    rf"<\|(?:start_header_id|header_start)\|>[ \t]*{_ROLE}[ \t]*<\|(?:end_header_id|header_end)\|>",
    rf"<\|start_of_role\|>[ \t]*{_ROLE}[ \t]*<\|end_of_role\|>",
    rf"<(?:start_of_turn>|\|turn>)[ \t]*{_ROLE}\b",
    rf"<\|start\|>[ \t]*{_ROLE}\b",
    rf"<\|START_OF_TURN_TOKEN\|>[ \t]*<\|{_ROLE}_TOKEN\|>",
    rf"<[|｜]{_ROLE}[|｜]>",
    r"(?:<s>[ \t]*)?(?<![A-Za-z_])\[/?INST\]",
    r"(?:<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<s>)(?=\s*\Z)",
)
_TOKEN = re.compile(rf"(?P<end>{'|'.join(map(re.escape, _ENDS))})|(?P<role>{'|'.join(_OPENINGS)})")
#: A role alone on a line: the rest of a marker whose tokens were dropped; counts only after an end-of-turn token.
_BARE = re.compile(rf"\s*{_ROLE}[ \t]*:?[ \t]*(?=\n|\Z)")
#: Markers before the answer, which some servers include.
_OWN = re.compile(r"(?i:assistant|model|chatbot)|\[/INST\]")
_WORDS = re.compile(
    r"^(?:(?:User|Human|USER|HUMAN)[ \t]*:|#{2,4}[ \t]*(?:Instruction|Human|User)\b[ \t]*:?)"
    r"|(?<=[.!?)\]\d\"*])assistant(?=\n\n\S)",
    re.MULTILINE,
)
#: Code, in which tokens do not count: fenced blocks (the last may be unclosed), spans and indented lines.
_CODE = re.compile(
    r"^[ \t]*(?P<fence>```+|~~~+)[\s\S]*?(?:^[ \t]*(?P=fence)[`~]*(?=[ \t]*(?:$|<|\[))|(?P<open>\Z))"
    r"|(?P<tick>`+)(?!`)[^\n]*?(?<!`)(?P=tick)(?!`)|^(?: {4}|\t).*$",
    re.MULTILINE,
)
#: Words of a text that is about such tokens.
_SPEAKS = re.compile(
    r"\b(?:special|control|stop|end|role|turn|delimiter|separator|marker|eos|bos)[- ]?tokens?\b|\btokeni[sz]"
    r"|\btokens? (?:that|which|ends?|is|are|for)\b|\b(?:which|what) tokens?\b|\bchatml\b|\bchat[- ]?templates?\b"
    r"|\bprompt (?:format|template)s?\b|\bend[- ]of[- ](?:turn|text|sequence|sentence)\b",
    re.IGNORECASE,
)
_NEAR = re.compile(r"\b(?:tokens?|markers?|tags?|delimiters?)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Stripped:
    """An answer without leaked tokens and invented turns.

    Args:
        text (`str`): Remaining text of the answer.
        leak (`str`, *optional*): Kind of leak, one of `columns.LEAKS`; `None` if none was found.
    """

    text: str
    leak: str | None = None


def without_leaks(text: str, prompt: Iterable[Mapping[str, object]] = (), mode: Mode = "cut") -> Stripped:
    """Cuts leaked tokens and invented turns off an answer, and names the kind of leak.

    Tokens that also occur in the prompt are kept. An invented turn in an answer about tokens or templates is marked,
    but kept.

    Args:
        text (`str`): Answer without reasoning.
        prompt (`Iterable[Mapping]`, *optional*): Messages of the prompt.
        mode (`str`, defaults to `"cut"`): `cut`, `cut-words` (also at a line that starts with `User:`) or `mark`.

    Example:
        >>> without_leaks("42<|im_end|>")
        Stripped(text='42', leak='end-token')
        >>> without_leaks("ChatML ends a turn with `<|im_end|>`")
        Stripped(text='ChatML ends a turn with `<|im_end|>`', leak=None)
    """
    words = _WORDS.search(text)
    if words is None and "<" not in text and "[" not in text:
        return Stripped(text)  # the common case
    shown = "\n".join(str(message.get("content")) for message in prompt)
    found = _found(text, shown)
    cleaned = _cut(text, found, _SPEAKS.search(shown) is not None, mode) if found else Stripped(text)
    if words is None or cleaned.leak == "invented-turn":
        return cleaned
    return _words(cleaned, shown, mode)


def _found(text: str, shown: str) -> list[re.Match[str]]:
    """Finds tokens and markers outside of code that are neither in the prompt nor HTML."""
    found = [match for match in _TOKEN.finditer(text) if match[0] not in shown and not _is_html(match, text)]
    code = list(_CODE.finditer(text)) if found else []
    return [match for match in found if not any(_holds(block, match, found, text) for block in code)]


def _holds(code: re.Match[str], match: re.Match[str], found: Sequence[re.Match[str]], text: str) -> bool:
    """Returns whether a token is part of a code block; the only token of an unclosed block, at its end, is not."""
    if not code.start() <= match.start() < code.end():
        return False
    alone = all(other is match or not code.start() <= other.start() < code.end() for other in found)
    return not (code["open"] is not None and match["end"] and alone and not text[match.end() :].strip())


def _is_html(match: re.Match[str], text: str) -> bool:
    """Returns whether `</s>` closes a `<s>` of the same answer."""
    return match[0] == "</s>" and text.count("<s>", 0, match.start()) >= text.count("</s>", 0, match.end())


def _cut(text: str, found: Sequence[re.Match[str]], asked: bool, mode: Mode) -> Stripped:
    start = _after_own_markers(text, found)
    found = [match for match in found if match.start() >= start]
    place = _turn(text, found, start)
    if place is None:
        place = _end(text, found, asked)
        leak = "end-token"
    else:
        leak = "invented-turn" if _goes_on(text, found, place) else "end-token"
        asked = asked or _SPEAKS.search(text, start, place) is not None
    before = text[start:] if place is None else text[start : _back(text, found, place)].rstrip()
    if place is not None:
        kept = mode == "mark" or (asked and (leak == "invented-turn" or not before.strip()))
        return Stripped(text if kept else before, leak)
    if not start and (asked or _NEAR.search(text) or not any(match["end"] for match in found)):
        return Stripped(text)
    return Stripped(text if mode == "mark" else before, "special-token")


def _after_own_markers(text: str, found: Sequence[re.Match[str]]) -> int:
    """Returns the start of the answer, after the markers of the assistant's own turn."""
    start = 0
    for match in found:
        if match["role"] is None or text[start : match.start()].strip() or not _OWN.search(match[0]):
            break
        start = match.end()
    return len(text) - len(text[start:].lstrip()) if start and text[start:].strip() else start


def _turn(text: str, found: Sequence[re.Match[str]], start: int) -> int | None:
    """Finds the start of another turn: a marker at a line start, right after the text or after an end of turn."""
    ends = {match.end() for match in found if match["end"]}
    for match in found:
        if match["end"]:
            if _BARE.match(text, match.end()):
                return match.start()
            continue
        before = text[start : match.start()]
        behind = len(text[: match.start()].rstrip()) in ends
        if before.strip() and (behind or not before[-1:].isspace() or before.rstrip(" \t").endswith("\n")):
            return match.start()
        spoken = match is not found[0] or _NEAR.search(before) is not None
        if before.strip() and not text[match.end() :].strip() and not spoken:
            return match.start()
    return None


def _goes_on(text: str, found: Sequence[re.Match[str]], place: int) -> bool:
    """Returns whether there is text after the markers of another turn."""
    for match in found:
        if match.start() >= place and text[place : match.start()].strip() == "":
            place = match.end()
            bare = _BARE.match(text, place) if match["end"] else None
            place = bare.end() if bare else place
    return bool(text[place:].strip())


def _end(text: str, found: Sequence[re.Match[str]], asked: bool) -> int | None:
    """Finds the end-of-turn token at the end; `None` if there is none, or the answer is about such tokens."""
    last = found[-1] if found else None
    if last is None or not last["end"] or text[last.end() :].strip():
        return None
    begins = _back(text, found, last.start())
    spaced = text[begins : last.start()] != "" and not text[begins : last.start()].startswith("\n")
    near = _NEAR.search(text, max(0, begins - 80), begins)
    return None if spaced and (asked or near is not None) else last.start()


def _back(text: str, found: Sequence[re.Match[str]], place: int) -> int:
    """Returns the end of the text before a position, without trailing white space and end-of-turn tokens."""
    while True:
        place = len(text[:place].rstrip())
        before = next((match.start() for match in found if match["end"] and match.end() == place), None)
        if before is None:
            return place
        place = before


def _words(cleaned: Stripped, shown: str, mode: Mode) -> Stripped:
    """Marks or cuts a turn that starts with plain words."""
    text = cleaned.text
    code = list(_CODE.finditer(text))
    for match in _WORDS.finditer(text):
        inside = any(block.start() <= match.start() < block.end() for block in code)
        if text[: match.start()].strip() and match[0] not in shown and not inside:
            kept = text[: match.start()].rstrip() if mode == "cut-words" else text
            return Stripped(kept, "turn-words")
    return cleaned
