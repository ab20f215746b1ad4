"""Whatever a server answers, a caller gives an answer or a named error that moves no terminal, and nothing else."""

import asyncio
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persyn_hf.config import StudentEndpoint
from persyn_hf.endpoints.endpoint import Endpoint
from persyn_hf.errors import PersynError
from persyn_hf.routing.tei import RouterEndpoint
from persyn_hf.scoring.judge import _reply, parse_score
from persyn_hf.scoring.remote import _READERS, RemoteStudent, _summed
from tests.endpoints.callers import ANSWER, TEACHERS, Bytes

KEY = "sk-canary-0123456789"
ENDPOINT = Endpoint("http://host", "m", KEY, "MY_KEY")
thorough = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

text = st.text(max_size=8) | st.sampled_from(
    ["7", "token_id:5", "token_id:²", "token_id:" + "9" * 5000, "\x1b[2J", KEY]
)
plain = st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | text
names = st.sampled_from(["tokens", "token_logprobs", "prompt_logprobs", "logprob", "rank", "id", "label", "score"])
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=6) | st.dictionaries(names | text, inner, max_size=3), max_leaves=10
)
five = st.lists(values, min_size=5, max_size=5)
entries = st.dictionaries(st.sampled_from(["104", "101", "108", "111"]) | text, values, max_size=2)
logprobs = st.fixed_dictionaries({"tokens": five, "token_logprobs": five}) | values
choices = st.fixed_dictionaries({"logprobs": logprobs, "prompt_logprobs": st.lists(st.none() | entries) | values})
tokens = st.lists(st.fixed_dictionaries({"id": plain, "logprob": plain}), min_size=5, max_size=5) | values
answers = (
    st.fixed_dictionaries({"choices": st.lists(choices, max_size=2) | values})
    | st.fixed_dictionaries({"details": st.fixed_dictionaries({"prefill": tokens}) | values})
    | st.fixed_dictionaries({"choices": st.lists(st.fixed_dictionaries({"message": values}), max_size=2)})
    | values
)


def sent(answer):
    """As it comes over the wire; what JSON cannot say is left out."""

    async def send(url, body=None):
        return json.loads(json.dumps(answer).encode("utf-8", "surrogatepass"))

    return send


def named(error):
    assert str(error).isprintable() and KEY not in str(error)


@pytest.mark.parametrize("api", _READERS)
@thorough
@given(answer=answers)
def test_a_student(api, answer):
    student = RemoteStudent("m", "r", Bytes(), None, StudentEndpoint(url="http://host", api=api))
    try:
        found = asyncio.run(_READERS[api](student, ENDPOINT)(sent(answer), ANSWER))
        score = _summed(ANSWER, found, "row 0", ranks=api == "prompt_logprobs")
    except PersynError as error:
        named(error)
    else:
        assert score.tokens == 4 and abs(score.logprob) < 2**60


@thorough
@given(answer=answers)
def test_a_judge(answer):
    try:
        assert 1 <= parse_score(_reply(asyncio.run(sent(answer)("/"))), ENDPOINT.clean) <= 10
    except PersynError as error:
        named(error)


@thorough
@given(answer=st.lists(st.fixed_dictionaries({"label": st.sampled_from(TEACHERS) | values, "score": plain})) | values)
def test_a_router(answer):
    served = RouterEndpoint("http://host", TEACHERS, 4, None)
    try:
        assert len(served._row(ENDPOINT, asyncio.run(sent(answer)("/")))) == 2
    except PersynError as error:
        named(error)
