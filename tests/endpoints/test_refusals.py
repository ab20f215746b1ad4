"""Refusals of a parameter: the line that mends them; and how many equal ones are enough."""

import json

import pytest

from persyn_hf.endpoints.endpoint import Endpoint
from persyn_hf.endpoints.faults import status_error
from persyn_hf.endpoints.refusals import Refusals
from persyn_hf.errors import RowError, TeacherDownError, UnavailableError

SENT = {
    "model": "m", "messages": [], "max_tokens": 9, "stream": False, "temperature": 0.7, "top_p": 1.0, "seed": 3,
    "stop": ["x"], "top_k": 20, "reasoning_effort": "low", "stop_token_ids": [1],
}  # fmt: skip
TEACHER = Endpoint("http://h", "m", options="sampling.")


def said(body, status=400, sent=SENT, endpoint=TEACHER):
    text = body if isinstance(body, str) else json.dumps(body)
    return str(status_error(endpoint, status, text, {}, None, json.dumps(sent).encode()))


def openai(message, param=None, code="unsupported_parameter"):
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (
            openai("Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' "
                   "instead.", "max_tokens"),
            "set `sampling.max_tokens_field: max_completion_tokens`",
        ),
        (
            openai("Unsupported value: 'temperature' does not support 0.7 with this model. Only the default (1) value "
                   "is supported.", "temperature", "unsupported_value"),
            "set `sampling.temperature: null`",
        ),
        (openai("Unsupported parameter: 'temperature' is not supported with this model.", "model"),
         "set `sampling.temperature: null`"),
        (openai("max_tokens is too large: 9. This model supports at most 4 completion tokens.", "max_tokens", None),
         "lower `sampling.max_tokens`"),
        (openai("`temperature` and `top_p` cannot both be specified for this model."), "set `sampling.top_p: null`"),
        (openai("Argument not supported on this model: stop"), "give fewer strings in `sampling.stop`, or none"),
        (openai("Unrecognized request argument supplied: reasoning_effort"),
         "change or drop `sampling.extra_body.reasoning_effort`"),
        ({"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]},
         "set `sampling.seed: null`"),
        ({"object": "error", "message": {"detail": [
            {"type": "extra_forbidden", "loc": ["body", "top_k"], "msg": "Extra inputs are not permitted"}]}},
         "change or drop `sampling.extra_body.top_k`"),
        ([{"error": {"code": 400, "message": 'Invalid JSON payload received. Unknown name "seed": Cannot find field.',
                     "status": "INVALID_ARGUMENT"}}], "set `sampling.seed: null`"),
        ({"error": "Input validation error: `top_p` must be > 0.0 and < 1.0", "error_type": "validation"},
         "set `sampling.top_p: null`"),
        (openai("This model only support stream mode, please enable the stream parameter to access the model."),
         "set `stream: true`"),
        ({"detail": "Stream must be set to true"}, "set `stream: true`"),
    ],
)  # fmt: skip
def test_the_first_refusal_of_a_parameter_names_the_line_to_change(body, line):
    for status in (400, 422):
        words = said(body, status)
        assert words.endswith(f"; {line}"), words
        assert f"HTTP {status}" in words


@pytest.mark.parametrize(
    "body",
    [
        openai("This model's maximum context length is 4096 tokens, however you requested 5000 tokens.", "messages"),
        openai("The prompt was flagged by our content policy.", None, "content_filter"),
        "Bad Request",
        {"error": {"message": "Unknown model"}},
        "",
    ],
)
def test_other_refusals_name_no_line(body):
    assert "; set" not in said(body) and "extra_body" not in said(body)


def test_what_was_not_sent_is_not_spoken_of_and_a_service_has_its_own_paths():
    body = openai("Unsupported parameter: 'temperature'", "temperature")
    assert "set" not in said(body, sent={"model": "m", "messages": []}).partition("temperature'")[2]
    assert said(body, endpoint=Endpoint("http://h", "m")).endswith("; set `temperature: null`")
    streamed = SENT | {"stream": True, "stream_options": {}}
    assert said(openai("Extra inputs are not permitted: stream_options"), sent=streamed).endswith(
        "; set `stream_usage: false`"
    )


def test_a_refused_key_under_400_and_a_gateway_s_dead_upstream_are_what_they_are():
    wrong = {"error": {"message": "Authentication Error, Invalid proxy server token passed", "type": "auth_error"}}
    error = status_error(TEACHER, 400, json.dumps(wrong), {})
    assert isinstance(error, TeacherDownError) and "refused the key" in str(error)
    dead = {"error": {"message": "litellm.InternalServerError: OpenAIException - Connection error.", "code": "500"}}
    assert isinstance(status_error(TEACHER, 500, json.dumps(dead), {}), UnavailableError)
    assert not isinstance(status_error(TEACHER, 500, '{"error": {"message": "CUDA error"}}', {}), UnavailableError)


def test_the_address_that_was_asked_is_named():
    url = "http://h/api/chat/completions"
    for status in (404, 405, 410, 501):
        error = status_error(TEACHER, status, "", {}, url)
        assert isinstance(error, TeacherDownError)
        assert str(error).startswith(f"{url} does not serve `m` there (HTTP {status}")


def _refusal(words, status=400):
    error = RowError(words)
    error.status = status
    return error


def _asked(refusals, words, most=100):
    """Refusals until the reason to stop."""
    for count in range(1, most + 1):
        if (reason := refusals.refused(_refusal(words(count)))) is not None:
            return count, reason
    return None, None


def test_equal_refusals_in_a_row_end_and_say_so():
    count, reason = _asked(Refusals(), lambda n: f"HTTP 400: no such parameter (request id 20260101{n:08d})")
    assert count == 8
    assert reason.startswith("8 requests in a row were refused in the same words: HTTP 400: no such parameter")


def test_refusals_that_may_be_of_a_prompt_or_come_after_answers_are_borne_longer():
    assert _asked(Refusals(), lambda n: "HTTP 400: flagged by moderation")[0] == 32
    answered = Refusals()
    answered.answered()
    assert _asked(answered, lambda n: "HTTP 400: no such parameter")[0] == 32


def test_other_words_an_answer_between_or_no_status_start_again():
    assert _asked(Refusals(), lambda n: f"HTTP 400: line {'abcdefgh'[n % 2]}")[0] is None
    refusals = Refusals()
    for _ in range(40):
        refusals.answered()
        assert refusals.refused(_refusal("HTTP 400: no")) is None
    silent = Refusals()
    assert all(silent.refused(RowError("all of `max_tokens` went into reasoning")) is None for _ in range(100))
