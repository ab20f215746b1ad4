"""Runs whose prompts and answers are cleaned, and whose answers are asked for until they are good enough."""

import json

import pytest
import yaml
from starlette.responses import JSONResponse
from typer.testing import CliRunner

from persyn_hf import RunConfig, run
from persyn_hf.cli import app
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


def no_answer(n, body):
    return JSONResponse({"error": {"message": "No answer to that."}}, 422)


def command(config, tmp_path):
    """`persyn-hf run` on a configuration."""
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    return CliRunner().invoke(app, ["run", str(tmp_path / "run.yaml"), "--quiet"])


def with_accept(plain, **accept):
    return plain | {"quality": {"verifier": "exact"}, "accept": {"min_quality": 1.0} | accept}


def test_shards_give_the_rows_that_one_shard_gives(settings, tmp_path):
    plain, _ = settings(PROMPTS, says(*["yes", "no", "no"] * 2), says(*["no", "yes", "no"] * 2))
    tables = []
    for shard in (100, 2):
        config = with_accept(plain) | {"output_dir": str(tmp_path / f"run-{shard}"), "rows_per_shard": shard}
        result = run(RunConfig.from_dict(config), progress=False)
        assert len(list((result.folder / "stages" / "generate.parquet").glob("part-*"))) == (1 if shard == 100 else 3)
        tables.append(stage_table(result.folder, "generate").to_list())
        assert (result.report.accept.accepted, result.report.accept.given_up) == (4, 2)
    assert tables[0] == tables[1]


def test_rows_that_are_wanted_are_counted_over_shards(settings):
    plain, doubles = settings(PROMPTS, says(*["yes", "no"] * 3), says(*["yes", "no"] * 3))
    config = with_accept(plain, target_rows=2) | {"rows_per_shard": 1}
    result = run(RunConfig.from_dict(config), progress=False)
    assert {number(body) for double in doubles for body in double.bodies} == {0, 1, 2}
    assert (
        stage_table(result.folder, "select")["prompt_id"][:] == stage_table(result.folder, "route")["prompt_id"][0:3:2]
    )
    assert "2 of 2 wanted accepted" in str(result.report.accept)


def test_what_nobody_answered_well_is_no_error_and_is_told(settings, tmp_path):
    teacher = says("yes", "yes", "yes", "yes", otherwise="no")
    plain, _ = settings(PROMPTS, teacher, teacher)
    done = command(with_accept(plain, attempts=2), tmp_path)
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "accept: 8 answers to 6 prompts, 4 accepted, 2 given up as no answer was good enough. Passed: " in said
    assert "4 of 6 answers are in the set; left out: 2 no attempt was good enough." in said
    report = json.loads((tmp_path / "run" / "report.json").read_text())["accept"]
    assert (report["answers"], report["failed"], report["accepted"], report["given_up"]) == (8, 0, 4, 2)
    assert sum(report["answers_of"].values()) == 8 and sum(report["accepted_of"].values()) == 4
    card = (tmp_path / "run" / "dataset" / "README.md").read_text()
    assert (
        "Up to 2 answers were asked for to each prompt, until one was whole and had a quality of at least 1.0:" in card
    )
    assert "4 of 6 prompts have one, and 2 were given up." in card
    assert all(f"- {name}: {report['accepted_of'][name]} of {count} answer" in card
               for name, count in report["answers_of"].items())  # fmt: skip


def test_what_nobody_answered_at_all_is_an_error(settings, tmp_path):
    def teacher(n, body):
        return no_answer(n, body) if number(body) == 3 else JSONResponse(chat_body("yes"))

    plain, _ = settings(PROMPTS, teacher, teacher)
    done = command(with_accept(plain), tmp_path)
    assert done.exit_code == 3, done.output
    said = " ".join(done.output.split())
    assert "5 accepted, 0 given up as no answer was good enough, 1 left for the next run." in said
    assert "1 rows of" in said and "No answer to that." in said
    assert "left out: 1 nobody answered or scored it yet." in said
    assert len(stage_table(tmp_path / "run", "select")) == 5


def test_money_that_ends_in_the_middle_leaves_a_table_that_can_be_used(settings, tmp_path):
    plain, doubles = settings(PROMPTS, says(otherwise="yes"), says(otherwise="yes"))
    for teacher in plain["teachers"]:  # an answer costs 8 USD; 3 + 64 + 4 + some bytes are set aside
        teacher |= {
            "price_per_million_prompt_tokens": 1e6, "price_per_million_completion_tokens": 1e6, "max_concurrency": 1,
            "sampling": {"max_tokens": 4},
        }  # fmt: skip
    done = command(with_accept(plain) | {"max_cost": 130.0}, tmp_path)
    assert done.exit_code == 3, done.output
    paid = sum(len(double.bodies) for double in doubles)
    assert 0 < paid < 6 and paid * 8 <= 130 and "`max_cost` (130 USD)" in done.output
    assert len(stage_table(tmp_path / "run", "select")) == paid
    done = command(with_accept(plain) | {"max_cost": 1000.0}, tmp_path)
    assert done.exit_code == 0, done.output
    assert sum(len(double.bodies) for double in doubles) == 6 and len(stage_table(tmp_path / "run", "select")) == 6


def test_a_share_of_nothing_keeps_a_teacher_out_of_the_retries(settings, tmp_path):
    plain, doubles = settings(PROMPTS, says(otherwise="no"), says(otherwise="yes"))
    config = with_accept(plain, attempts=2) | {"allocation": {"max_share": {"wordy": 0.0}}}
    said = (
        r"No answer is left to publish \(6 no attempt was good enough\)\. accept: 12 answers to 6 prompts, 0 accepted"
    )
    with pytest.raises(DataError, match=said):
        run(RunConfig.from_dict(config), progress=False)
    assert [len(double.bodies) for double in doubles] == [12, 0]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["accept"]["given_up"] == 6 and report["accept"]["answers_of"] == {"terse": 12}
