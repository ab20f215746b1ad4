"""Runs whose prompts and answers are cleaned, and whose answers are asked for until they are good enough."""

import json

import pytest
from starlette.responses import JSONResponse

from persyn_hf import RunConfig, run
from persyn_hf.errors import DataError
from persyn_hf.generation import preflight
from tests.generation.servers import Teacher as Double
from tests.generation.servers import chat_body, serve
from tests.publishing.routers import TinyRouter
from tests.run.tables import stage_table


@pytest.fixture(autouse=True)
def _no_endpoint_is_known() -> None:
    preflight._passed.clear()


def number(body):
    return int(body["messages"][-1]["content"].split()[1])


@pytest.fixture
def settings(tmp_path):
    """Starts a double per teacher; gives the settings of a run with a router of random weights, and the doubles."""
    running = []

    def start(prompts, *behaviours):
        doubles = [Double(behave=behave) for behave in behaviours]
        for double in doubles:
            running.append(serve(double))
            running[-1].__enter__()
        (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
        names = ("terse", "wordy")
        TinyRouter(teachers=[{"name": name, "model": name} for name in names]).save_pretrained(tmp_path / "router")
        return {
            "output_dir": str(tmp_path / "run"),
            "prompts": {"source": str(tmp_path / "prompts.jsonl")},
            "teachers": [
                {"name": name, "model": name, "endpoint": double.url}
                for name, double in zip(names, doubles, strict=True)
            ],
            "router": {"pretrained": str(tmp_path / "router"), "device": "cpu"},
        }, doubles

    yield start
    for context in running:
        context.__exit__(None, None, None)


def says(*texts, otherwise="Fine."):
    said = dict(enumerate(texts))
    return lambda n, body: JSONResponse(chat_body(said.get(number(body), otherwise)))


PROMPTS = [{"prompt": f"Case {row} of the long list about the sea", "answer": "yes"} for row in range(6)]


def test_duplicates_and_benchmarks_leave_before_anything_is_asked(settings, tmp_path):
    (tmp_path / "bench.txt").write_text("case 3 of the long list\n")
    plain, doubles = settings([*PROMPTS, PROMPTS[1], PROMPTS[1]], says(), says())
    config = RunConfig.from_dict(
        plain | {"hygiene": {"decontaminate": [str(tmp_path / "bench.txt")], "ngram_size": 6}}
    )
    result = run(config, progress=False)
    assert sorted(number(body) for double in doubles for body in double.bodies) == [0, 1, 2, 4, 5]
    assert result.report.dropped == {"duplicate": 2, "contaminated": 1}
    assert json.loads((result.folder / "report.json").read_text())["dropped"] == {"duplicate": 2, "contaminated": 1}
    assert len(stage_table(result.folder, "generate")) == 5
    card = (result.folder / "dataset" / "README.md").read_text()
    assert "- 2 prompts: duplicate of an earlier prompt\n- 1 prompt: overlaps with a benchmark\n" in card


def test_a_repeated_prompt_is_an_error_where_it_is_asked_for(settings):
    plain, doubles = settings([*PROMPTS, PROMPTS[1]], says(), says())
    with pytest.raises(DataError, match="row 6"):
        run(RunConfig.from_dict(plain | {"hygiene": {"dedup": None}}), progress=False)
    assert [double.bodies for double in doubles] == [[], []]


def test_answers_that_refuse_or_copy_leave_the_published_set(settings):
    teacher = says("I'm sorry, but I can't help with that.", PROMPTS[1]["prompt"], "A", "B", "C", "D")
    plain, _ = settings(PROMPTS, teacher, teacher)
    config = RunConfig.from_dict(plain | {"hygiene": {"drop_refusals": True, "max_copied": 0.8}})
    result = run(config, progress=False)
    assert {name: count for name, count in result.report.kept.items() if count} == {
        "rows": 4,
        "refused": 1,
        "copied": 1,
    }
    assert sorted(filter(None, stage_table(result.folder, "clean")["left_out"])) == ["copied", "refused"]
    published = stage_table(result.folder, "clean").filter(lambda reason: reason is None, input_columns="left_out")
    assert len(published) == 4
    card = (result.folder / "dataset" / "README.md").read_text()
    assert "- 1 answer: refuses the request\n" in card and "- 1 answer: copies its prompt\n" in card


def test_attempts_go_on_until_an_answer_passes_and_a_rerun_pays_nothing(settings):
    plain, doubles = settings(
        PROMPTS, says(*["yes", "no", "no"] * 2), says(*["no", "yes", "no"] * 2)
    )  # two prompts of six are right by neither
    config = RunConfig.from_dict(plain | {"quality": {"verifier": "exact"}, "accept": {"min_quality": 1.0}})
    result = run(config, progress=False)
    attempts = stage_table(result.folder, "generate")
    right = attempts.filter(lambda accepted: accepted, input_columns="accepted")
    assert sorted(prompt.split()[1] for prompt in right["prompt"]) == ["0", "1", "3", "4"]
    assert len(attempts) == len(set(zip(attempts["prompt_id"], attempts["teacher"], attempts["attempt"], strict=True)))
    assert result.report.kept["rows"] == 4 and result.report.kept["not_accepted"] == 2
    asked = sum(len(double.bodies) for double in doubles)
    assert asked == len(attempts) == result.report.generations
    again = run(config, progress=False)
    assert all(stage.reused for stage in again.stages) and again.report == result.report
    assert sum(len(double.bodies) for double in doubles) == asked
    more = run(config.model_copy(update={"accept": config.accept.model_copy(update={"attempts": 4})}), progress=False)
    assert more.report.kept["rows"] == 4
    assert sum(len(double.bodies) for double in doubles) == asked + 2  # one more for each that was given up


def test_the_run_stops_at_its_target(settings):
    plain, doubles = settings(PROMPTS, says(otherwise="yes"), says(otherwise="yes"))
    accept = {"min_quality": 1.0, "target_rows": 2}
    result = run(RunConfig.from_dict(plain | {"quality": {"verifier": "exact"}, "accept": accept}), progress=False)
    assert result.report.kept["rows"] == 2
    assert sorted(number(body) for double in doubles for body in double.bodies) == [0, 1]
