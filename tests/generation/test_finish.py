"""Finish reasons of real services: which are an end, which a cut, which no answer at all."""

import pytest

from persyn_hf import columns
from persyn_hf.generation.finish import BROKEN_OFF, NOT_GIVEN, read_finish, settled


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # OpenAI, Anthropic, Gemini, TGI, llama.cpp, LM Studio, Cohere
        ("stop", "stop"), ("end_turn", "stop"), ("stop_sequence", "stop"), ("STOP", "stop"), ("eos_token", "stop"),
        ("eosFound", "stop"), ("COMPLETE", "stop"), ("FinishReason.STOP", "stop"), ("stop-sequence", "stop"),
        ("length", "length"), ("max_tokens", "length"), ("MAX_TOKENS", "length"),
        ("maxPredictedTokensReached", "length"),
        ("model_context_window_exceeded", "length"), ("max_output_tokens", "length"), ("incomplete", "length"),
        ("FinishReason.MAX_TOKENS", "length"), ({"type": "length", "length": 9}, "length"),
        ({"type": "stop", "matched": 151645}, "stop"), ({"reason": "max_output_tokens"}, "length"),
        ("content_filter", "content_filter"), ("RECITATION", "content_filter"),
        ("PROHIBITED_CONTENT", "content_filter"),
        ("ERROR_TOXIC", "content_filter"), ("guardrail_intervened", "content_filter"), ("sensitive", "content_filter"),
        ("tool_calls", "tool_calls"), ("function_call", "tool_calls"), ("tool_use", "tool_calls"),
        # DeepSeek, Zhipu, vLLM, SGLang
        ("insufficient_system_resource", BROKEN_OFF), ("network_error", BROKEN_OFF), ("abort", BROKEN_OFF),
        ("error", BROKEN_OFF), ({"type": "abort", "message": "out of memory"}, BROKEN_OFF), ("timeout", BROKEN_OFF),
        ("MALFORMED_FUNCTION_CALL", BROKEN_OFF),
        # nobody's
        ("OTHER", "OTHER"), ("pause_turn", "pause_turn"), ("bored\x1b[31m\n now", "bored now"), (7, "7"),
        ({"type": "dream"}, "dream"), ({"a": 1}, '{"a": 1}'), ({}, "stop"), ([], "[]"), ("?" * 200, "?" * 60 + "…"),
    ],
)  # fmt: skip
def test_a_reason_has_the_meaning_that_its_service_gives_it(given, expected):
    assert read_finish(given, 5, 64, 20).reason == expected


@pytest.mark.parametrize("given", [None, "", {"type": None}])
def test_where_no_reason_is_given_the_counts_tell(given):
    assert read_finish(given, 63, 64, 900).reason == "stop"
    assert read_finish(given, 64, 64, 900).reason == "length"
    assert read_finish(given, None, 64, 63).reason == "stop"  # a text has no more tokens than bytes
    assert read_finish(given, None, 64, 64).reason == NOT_GIVEN
    assert [settled(NOT_GIVEN, made, 64) for made in (None, 63, 64)] == [NOT_GIVEN, "stop", "length"]
    assert settled("length", 3, 64) == "length"


def test_only_an_end_that_is_understood_is_one():
    reasons = ("stop", None, "length", "content_filter", "tool_calls", "OTHER", NOT_GIVEN)
    assert [columns.is_cut(reason) for reason in reasons] == [False, False, True, True, True, True, True]
