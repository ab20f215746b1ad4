"""Rows of one prompt that `turn`, `sample` and `attempt` tell apart; what is not numbered is as it always was."""

import pytest
from datasets import Dataset, Value
from starlette.responses import JSONResponse

from persyn_hf import columns
from persyn_hf.config import Sampling, Teacher
from persyn_hf.errors import DataError, DuplicatePromptError
from persyn_hf.generation.client import Request
from persyn_hf.generation.generate import generate_parallel, generate_routed, persyn_generate
from persyn_hf.generation.jobs import completion_key, resolved, row_seed
from persyn_hf.generation.lane import RetryPolicy
from persyn_hf.ledger.ledger import Ledger
from tests.generation.servers import Teacher as Double
from tests.generation.servers import free_port, serve

#: Computed by version 0.1: the run's seed, the prompt, the row's seed, and the key for a model `org/m` at `v1`.
OLD = [
    (0, "Hi", 434269040, "f34a1fd80cd7f7bfd05740a33db0dd976687323cb948e2c4ee64db1adb937ac1"),
    (3, "Grüße", 809972425, "74298af01403266e0ab7f1eefc0350a3412e02c86cee21f8c62b9a05ef2f5651"),
    (2**31 - 1, "Hi", 486310675, "f7a1a183abd073afa5a38c5d8218fd736a9c5bc5b64bf479d0e259e7d9b309a3"),
]


@pytest.fixture
def server():
    with serve(Double()) as running:
        yield running


def teachers(server, *names, **settings):
    return [{"name": name, "model": name, "endpoint": server.url, **settings} for name in names or ("a", "b")]


def request(prompt, seed, numbers=columns.UNNUMBERED):
    identity = columns.prompt_id(prompt)
    messages = ({"role": "system", "content": "Be."}, {"role": "user", "content": prompt})
    sampling = Sampling(temperature=0.7, top_p=0.9, max_tokens=40, stop=("END",))
    return Request(identity, messages, sampling, row_seed(seed, identity, numbers), numbers)


@pytest.mark.parametrize(("seed", "prompt", "row", "key"), OLD)
def test_seeds_and_keys_of_rows_without_numbers_are_those_of_version_0_1(seed, prompt, row, key):
    assert row_seed(seed, columns.prompt_id(prompt)) == row
    assert completion_key("org/m", "v1", request(prompt, seed)) == key
    assert completion_key("org/m", "v1", request(prompt, seed, (0, 0, 0))) == key


def test_each_number_has_a_seed_and_a_key_of_its_own():
    numbers = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (11, 0, 0), (0, 11, 0), (1, 10, 0)]
    asked = [request("Hi", 0, each) for each in numbers]
    assert len({each.seed for each in asked}) == len(numbers)
    assert len({completion_key("m", "", each) for each in asked}) == len(numbers)
    # Also where two seeds are the same by chance.
    same = [Request("p", asked[0].messages, asked[0].sampling, 7, each) for each in numbers]
    assert len({completion_key("m", "", each) for each in same}) == len(numbers)


def test_samples_are_asked_one_by_one_and_found_again(server, tmp_path):
    once = generate_parallel(["one", "two"], teachers(server), ledger=tmp_path / "l", progress=False)
    assert len(server.bodies) == 4
    rows = [{"prompt": text, "sample": sample} for text in ("one", "two") for sample in (0, 1, 2)]
    table = generate_parallel(rows, teachers(server), ledger=tmp_path / "l", progress=False)
    assert len(server.bodies) == 4 + 8
    assert table.column_names == ["prompt_id", "prompt", "sample", *once.column_names[2:]]
    assert table["sample"][:] == [0, 0, 1, 1, 2, 2] * 2 and table["teacher"][:] == ["a", "b"] * 6
    assert len(set(table["seed"])) == 6 and set(table["seed"]) >= set(once["seed"])
    assert [row["completion"] for row in table if row["sample"] == 0] == once["completion"][:]
    for row in table:
        assert row["completion"] == f"user:{row['prompt']}|seed={row['seed']}|t=1.0"
        assert row["seed"] == row_seed(0, row["prompt_id"], (0, row["sample"], 0))
    assert len(set(columns.row_keys(table))) == 12
    with Ledger(tmp_path / "l") as ledger:
        assert len(ledger) == 12
    again = generate_parallel(rows[::-1], teachers(server), ledger=tmp_path / "l", progress=False)
    assert len(server.bodies) == 12
    assert sorted(map(str, again)) == sorted(map(str, table))


@pytest.mark.parametrize("unset", [{"sample": 0}, {"turn": None, "sample": None, "attempt": None}, {"attempt": 0.0}])
def test_zero_and_null_are_as_good_as_absent(server, tmp_path, unset):
    first = generate_parallel(["one"], teachers(server), ledger=tmp_path / "l", progress=False)
    second = generate_parallel([{"prompt": "one", **unset}], teachers(server), tmp_path / "l", progress=False)
    assert len(server.bodies) == 2
    assert second.remove_columns(list(unset)).to_list() == first.to_list()
    assert all(second.features[name] == Value("int64") for name in unset)
    assert second.column_names[:2] == ["prompt_id", "prompt"]


def test_turns_and_attempts_are_told_apart_too(server):
    rows = [{"prompt": "x", "attempt": 1}, {"prompt": "x", "turn": 1}, {"prompt": "x"}, {"prompt": "x", "sample": 1}]
    table = generate_parallel(rows, teachers(server, "a"), progress=False)
    assert len(server.bodies) == 4 and len(set(table["seed"])) == 4
    assert columns.row_numbers(table) == [(0, 0, 1), (1, 0, 0), (0, 0, 0), (0, 1, 0)]
    assert table[2]["seed"] == row_seed(0, columns.prompt_id("x"))


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        ([{"prompt": "a", "sample": 2}] * 2, DuplicatePromptError, "1 rows repeat .* first [0-9a-f]{16}, sample 2. "),
        ([{"prompt": "a", "sample": 0}, {"prompt": "a"}], DuplicatePromptError, "number them in the column `sample`"),
        ([{"prompt": "a", "turn": "first"}], DataError, "Row 0: `turn` must be a whole number .* got 'first'"),
        ([{"prompt": "b"}, {"prompt": "a", "attempt": -1}], DataError, "Row 1: `attempt` must be .* got -1"),
    ],
)
def test_bad_numbers_are_refused_before_anything_is_asked(server, rows, error, words):
    with pytest.raises(error, match=words):
        generate_parallel(rows, teachers(server), progress=False)
    assert server.bodies == []


@pytest.mark.parametrize("batched", [False, True])
def test_the_map_function_asks_the_same(server, tmp_path, batched):
    prompts = Dataset.from_dict({"prompt": ["x", "x", "y"], "sample": [0, 4, None], "route": ["a", "b", "b"]})
    whole = generate_routed(prompts, teachers(server), ledger=tmp_path / "l", progress=False)
    assert len(server.bodies) == 3
    kwargs = {"teachers": teachers(server), "ledger": str(tmp_path / "l")}
    mapped = prompts.map(persyn_generate, batched=batched, fn_kwargs=kwargs)
    assert len(server.bodies) == 3
    assert mapped["sample"][:] == whole["sample"][:] == [0, 4, None]
    for name in ("prompt_id", "teacher", "completion", "seed"):
        assert mapped[name][:] == whole[name][:]
    by_teacher = {"teacher": teachers(server)[1], "ledger": str(tmp_path / "l")}
    assert prompts.map(persyn_generate, batched=batched, fn_kwargs=by_teacher)[1]["seed"] == whole[1]["seed"]
    assert len(server.bodies) == 3 + 1


def test_samples_of_one_prompt_are_rerouted_each_by_its_own_scores(tmp_path):
    rows = {
        "prompt": ["x"] * 6,
        "sample": list(range(6)),
        "route": ["dead"] * 4 + ["b", "c"],
        "route_scores": [[9.0, n % 2 + 0.0, (n + 1) % 2 + 0.0] for n in range(6)],
    }
    nobody = f"http://127.0.0.1:{free_port()}"
    policy = RetryPolicy(attempts=2, base_delay=0.01, down_after=0.3, down_after_unseen=0.3)
    with serve(Double()) as server:
        dead = {"name": "dead", "model": "m", "endpoint": nobody, "preflight": False, "on_teacher_down": "reroute"}
        asked = [dead, *teachers(server, "b", "c")]
        table = generate_routed(Dataset.from_dict(rows), asked, tmp_path / "l", progress=False, policy=policy)
        assert table["error"][:] == [None] * 6
        assert table["teacher"][:] == ["c", "b", "c", "b", "b", "c"]
        assert table["rerouted_from"][:] == ["dead"] * 4 + [None] * 2
        assert sorted((body["model"], body["seed"]) for body in server.bodies) == sorted(
            zip(table["teacher"], table["seed"], strict=True)
        )
        assert len(set(table["seed"])) == 6


def test_a_failure_is_of_its_own_sample(tmp_path):
    bad = row_seed(0, columns.prompt_id("x"), (0, 1, 0))
    behave = lambda n, body: JSONResponse({"error": "no"}, 422) if body["seed"] == bad else None  # noqa: E731
    with serve(Double(behave)) as server:
        rows = [{"prompt": "x", "sample": n} for n in range(3)]
        table = generate_parallel(rows, teachers(server, "a"), progress=False)
    assert table["error"][:] == [None, "HTTP 422: no", None]


def test_a_tokenizer_that_renders_here_is_part_of_the_key_and_no_other(tmp_path):
    def key(**settings):
        teacher = Teacher(name="t", model="m", endpoint="http://h", **settings)
        return resolved(teacher).job("Hi", "p", 7).key

    plain = key()
    assert key(tokenizer="org/tokenizer") == key(api="tgi") == plain  # `chat` renders nothing here
    named = key(api="tgi", tokenizer="org/tokenizer")
    assert len({plain, named, key(api="tgi", tokenizer="org/other")}) == 3
    (tmp_path / "tokenizer.json").write_text("{}")
    local = key(api="tgi", tokenizer=str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{ }")
    assert key(api="tgi", tokenizer=str(tmp_path)) != local
