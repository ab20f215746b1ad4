"""How a decoder reads a prompt: as a user's message, up to the first words of the answer.

A decoder's head reads the state of the last token. At the end of a bare prompt that is a full stop or a question
mark. Behind the model's chat template it is where the model is about to answer, and behind the first words of an
answer it is where the kind of the answer is to be decided: a list, a recipe, a reason. That tells teachers apart
better.

The template becomes part of the tokenizer, so that whoever loads the checkpoint reads prompts likewise with no code
of ours.
"""

from __future__ import annotations

from typing import Any

#: The answer's first words.
OPENING = "Here is"
#: Stands for the prompt where the template is taken apart; templates strip blanks, so it has none at its ends.
_MARK = "<<persyn prompt>>"


def as_chat(tokenizer: Any) -> Any:
    """A tokenizer that puts every text where the user speaks in the model's chat template, and begins the answer.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Of a decoder; stays as it is.

    Returns:
        `PreTrainedTokenizerBase`: The given one where that has no chat template, or one that cannot be had (it is not
            a fast tokenizer, or its template takes no single message).
    """
    around = _around(tokenizer)
    if around is None:
        return tokenizer
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    pieces, special = [], []
    for name, text in zip(("<before>", "<after>"), around, strict=True):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids:
            pieces.append(name)
            special.append({"id": name, "ids": ids, "tokens": tokenizer.convert_ids_to_tokens(ids)})
    pieces.insert(pieces.index("<after>"), "$A")
    backend.post_processor = TemplateProcessing(single=" ".join(pieces), special_tokens=special)
    # The plain class: a model's own may make a post-processor of its own when it is loaded.
    named = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=tokenizer.model_max_length, **named)


def _around(tokenizer: Any) -> tuple[str, str] | None:
    """What stands before and behind a prompt."""
    from jinja2 import TemplateError

    if not tokenizer.is_fast or not tokenizer.chat_template:
        return None
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": _MARK}], tokenize=False, add_generation_prompt=True
        )
    except (TemplateError, TypeError, ValueError):  # one for other messages, or several of which none is the default
        return None
    before, found, after = text.partition(_MARK)
    return (before, after + OPENING) if found and _MARK not in after else None


def shown(tokenizer: Any) -> str:
    """What a router reads of a prompt, for people: `"<|im_start|>user\\n{prompt}<|im_end|>…"`."""
    whole: str = tokenizer.decode(tokenizer("{prompt}")["input_ids"])
    return whole
