"""The student behind a server: the same numbers as in process, of the same tokens, and no token of the user's."""

import asyncio

import pytest
from starlette.responses import JSONResponse

from persyn_hf.errors import ConfigError, ScoringError
from persyn_hf.scoring.learnability import persyn_learnability
from persyn_hf.scoring.score import score
from tests.scoring import models
from tests.scoring.servers import Student, check, serve

BATCH = {
    "prompt": ["hello the hello", "what is the the?", "hello the hello", "what?", "hello"],
    "completion": ["hello there hello", "hell", "", None, "no way, the hell " * 4],
    "finish_reason": ["stop", "stop", "stop", "stop", "length"],
}


@pytest.fixture(autouse=True)
def a_token(monkeypatch):
    """A token of the user's, which must stay at home."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")


@pytest.mark.parametrize("api", ["generate", "prompt_logprobs", "echo"])
def test_the_same_numbers_as_in_process(llama, api):
    metrics = ("mean-logprob", "perplexity", "completion_tokens") + (("rsr",) if api == "prompt_logprobs" else ())
    local = persyn_learnability(BATCH, student=llama, metrics=metrics)
    double = Student(llama)
    with serve(double) as url:
        endpoint = {"url": url, "api": api, "max_concurrency": 2}
        remote = persyn_learnability(BATCH, student=llama, metrics=metrics, student_endpoint=endpoint)
    assert remote.keys() == local.keys()
    for name, column in local.items():
        for found, expected in zip(remote[name], column, strict=True):
            assert found == (pytest.approx(expected, rel=1e-5) if isinstance(expected, float) else expected), name
    assert len(double.bodies) == 4
    assert double.peak == 2
    assert {headers.get("authorization") for headers in double.headers} == {None}


def test_tokens_by_their_texts_where_a_server_has_no_ids(llama):
    double = Student(llama, token_ids=False)
    with serve(double) as url:
        remote = persyn_learnability(BATCH, student=llama, student_endpoint={"url": f"{url}/v1", "api": "echo"})
    local = persyn_learnability(BATCH, student=llama)
    assert remote["learnability"][:2] == pytest.approx(local["learnability"][:2], abs=1e-5)


def test_score_through_the_configuration(llama):
    from datasets import Dataset

    from persyn_hf.config import Student as Settings

    rows = {"prompt_id": list("ababc"), "teacher": ["t1", "t1", "t2", "t2", "t1"], "answer": ["hell"] * 5}
    answers = Dataset.from_dict(BATCH | rows)
    local = score(answers, llama, "exact", learnability_metric="rsr", progress=False)
    with serve(Student(llama)) as url:
        student = Settings(model=llama, endpoint={"url": url, "served_model": "tiny"})
        remote = score(answers, student, "exact", learnability_metric="rsr", progress=False)
    assert remote["reward"][:3] == pytest.approx(local["reward"][:3], abs=1e-5)
    assert remote["student_revision"][:] == local["student_revision"][:]


def test_a_key_that_is_named_is_sent_and_never_shown(llama, monkeypatch):
    monkeypatch.setenv("STUDENT_KEY", "sk-very-secret")
    double = Student(llama)
    double.behave = lambda count, body: JSONResponse({"error": "bad sk-very-secret"}, 422)
    with serve(double) as url, pytest.raises(ScoringError, match=r"row 0 of the batch: .*HTTP 422.*\*\*\*") as raised:
        endpoint = {"url": url, "api_key_env": "STUDENT_KEY"}
        persyn_learnability(BATCH, student=llama, student_endpoint=endpoint)
    assert double.headers[0]["authorization"] == "Bearer sk-very-secret"
    assert "very-secret" not in str(raised.value)


@pytest.mark.parametrize("api", ["generate", "prompt_logprobs"])
def test_overload_is_waited_out(llama, api):
    double = Student(llama)
    refusal = check({"error": "Model is overloaded", "error_type": "overloaded"}, "tgi_schemas.json", "ErrorResponse")
    double.behave = lambda count, body: JSONResponse(refusal, 429) if count <= 2 else None
    with serve(double) as url:
        remote = persyn_learnability(BATCH, student=llama, student_endpoint={"url": url, "api": api})
    local = persyn_learnability(BATCH, student=llama)
    assert remote["learnability"][:3] == pytest.approx(local["learnability"][:3], abs=1e-5)
    assert len(double.bodies) == 6


@pytest.mark.parametrize("api", ["generate", "prompt_logprobs", "echo"])
def test_a_server_with_other_tokens_is_refused(llama, tmp_path, api):
    other = models.save(tmp_path, "llama", models.tokenizer())
    double = Student(other, token_ids=False)
    if api == "generate":
        double.tokenizer = models.tokenizer(merges=models.MERGES[:2])
    else:
        double.completions = shifted(double.completions)
    with serve(double) as url, pytest.raises(ScoringError, match=r"row 0 of the batch: the server reads other tokens"):
        persyn_learnability(BATCH, student=llama, student_endpoint={"url": url, "api": api})


def shifted(completions):
    """A server that reads every token as the next one of the vocabulary."""
    return lambda body: completions(body | {"prompt": [token + 1 for token in body["prompt"]]})


def test_a_server_that_cut_the_prompt_is_refused(llama):
    double = Student(llama)
    completions = double.completions
    double.completions = lambda body: completions(body | {"prompt": body["prompt"][:9]})
    with serve(double) as url, pytest.raises(ScoringError, match=r"reads 9 tokens, but the tokenizer of .* gives"):
        persyn_learnability(BATCH, student=llama, student_endpoint=url)


@pytest.mark.parametrize(
    ("api", "switch", "message"),
    [
        ("generate", {"prefill": False}, "--enable-prefill-logprobs"),
        ("prompt_logprobs", {"extension": False}, "does not support `prompt_logprobs`"),
    ],
)
def test_a_server_that_reports_nothing_says_what_to_change(llama, api, switch, message):
    with serve(Student(llama, **switch)) as url, pytest.raises(ScoringError, match=message):
        persyn_learnability(BATCH, student=llama, student_endpoint={"url": url, "api": api})


def test_a_text_that_cannot_be_tokenised_so_is_an_error_for_text_and_none_for_tokens(llama):
    row = {"prompt": "hello", "completion": "\n\nhello"}
    with serve(Student(llama)) as url:
        with pytest.raises(ScoringError, match="no text tokenizes"):
            persyn_learnability(row, student=llama, student_endpoint={"url": url, "api": "generate"})
        remote = persyn_learnability(row, student=llama, student_endpoint=url)
    assert remote["learnability"] == pytest.approx(persyn_learnability(row, student=llama)["learnability"], abs=1e-5)


def test_a_first_token_that_the_tokenizer_adds_is_not_sent_twice(tmp_path):
    folder = models.save(tmp_path, "llama", models.tokenizer("<|im_start|>" + models.CHATML, adds_bos=True))
    local = persyn_learnability(BATCH, student=folder)
    with serve(Student(folder)) as url:
        remote = persyn_learnability(BATCH, student=folder, student_endpoint={"url": url, "api": "generate"})
    assert remote["learnability"][:3] == pytest.approx(local["learnability"][:3], abs=1e-5)


def test_what_cannot_work_is_said_at_once(llama):
    with pytest.raises(ConfigError, match="`rsr` needs ranks"):
        persyn_learnability(
            BATCH, student=llama, metrics=("rsr",), student_endpoint={"url": "http://x", "api": "echo"}
        )
    with pytest.raises(ConfigError, match=r"student_endpoint: `url`"):
        persyn_learnability(BATCH, student=llama, student_endpoint="127.0.0.1:80")
    double = Student(llama)
    double.behave = lambda count, body: JSONResponse({"error": "no"}, 401)
    with serve(double) as url, pytest.raises(ScoringError, match=r"refused the key .HTTP 401: no.: name its variable"):
        persyn_learnability(BATCH, student=llama, student_endpoint=url)
    with pytest.raises(ScoringError, match=r"cannot connect to .* .2 attempts."):
        persyn_learnability(BATCH, student=llama, student_endpoint={"url": url, "attempts": 2})
    with pytest.raises(ConfigError, match="NO_SUCH_VARIABLE is not set"):
        persyn_learnability(BATCH, student=llama, student_endpoint={"url": url, "api_key_env": "NO_SUCH_VARIABLE"})


def test_inside_a_running_loop(llama):
    async def notebook(url):
        return persyn_learnability(BATCH, student=llama, student_endpoint=url)["learnability"][0]

    with serve(Student(llama)) as url:
        assert asyncio.run(notebook(url)) < 0


@pytest.mark.parametrize(
    "option", [{"dtype": "float32"}, {"device": "cpu"}, {"attn_implementation": "eager"}, {"token_budget": 64}]
)
def test_what_a_student_behind_a_server_would_ignore_is_refused(option):
    (name,) = option
    with pytest.raises(ConfigError, match=f"persyn_learnability: `{name}` cannot be set for a student behind a serv"):
        persyn_learnability(BATCH, student="s", student_endpoint="http://127.0.0.1:9", **option)
