"""Plans against numbers worked out by hand, and against what a run really took."""

import json
import subprocess
import sys
from io import StringIO

import pytest
from datasets import Dataset
from rich.console import Console
from typer.testing import CliRunner

from persyn_hf.cli import app
from persyn_hf.config import RunConfig
from persyn_hf.errors import ConfigError
from persyn_hf.planning.actual import read_actual
from persyn_hf.planning.plan import plan
from persyn_hf.planning.printing import print_plan

CLI = [sys.executable, "-c", "from persyn_hf.cli import main; main()"]


@pytest.fixture
def settings(tmp_path, tiny_lm):
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"prompt {number:02d}", "answer": "yes"} for number in range(20)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    teacher = {"backend": "local", "model": str(tiny_lm), "batch_size": 4}
    return {
        "output_dir": str(tmp_path / "run"),
        "prompts": {"source": str(prompts), "answer_column": "answer"},
        "probe": {"size": 5},
        "teachers": [
            teacher | {"name": "cheap", "price_per_million_completion_tokens": 1.0},
            teacher | {"name": "dear", "price_per_million_completion_tokens": 5.0, "system_prompt": "Be brief."},
        ],
        "student": {"model": str(tiny_lm), "dtype": "float32"},
        "quality": {"verifier": "exact"},
        "router": {"backbone": str(tiny_lm)},
    }


def test_generations_tokens_and_money_are_those_of_the_formula(settings):
    made = plan(RunConfig.from_dict(settings), completion_tokens=100, tokens_per_second=50)
    assert made.generations == 5 * 2 + (20 - 5)
    assert made.cost == pytest.approx((5 + 7.5) * 100 * 1e-6 * 1 + (5 + 7.5) * 100 * 1e-6 * 5)
    probe_dear = next(line for line in made.lines if (line.stage, line.teacher) == ("probe", "dear"))
    probe_cheap = next(line for line in made.lines if (line.stage, line.teacher) == ("probe", "cheap"))
    # "Be brief." is nine byte tokens more, five times.
    assert probe_dear.prompt_tokens - probe_cheap.prompt_tokens == 5 * 9
    assert probe_dear.seconds == pytest.approx(5 * 100 / (50 * 4))
    # Local teachers answer one after the other.
    assert made.seconds["probe"] == pytest.approx(probe_dear.seconds + probe_cheap.seconds)


def test_the_student_is_counted_without_its_weights(settings, tiny_lm):
    from transformers import AutoModelForCausalLM

    made = plan(RunConfig.from_dict(settings), completion_tokens=100)
    (student,) = made.scorers
    parameters = sum(weight.numel() for weight in AutoModelForCausalLM.from_pretrained(tiny_lm).parameters())
    assert student.parameters == parameters
    assert student.weight_bytes == 4 * parameters
    prompt = made.lines[0].prompt_tokens / 5
    assert student.flops == pytest.approx(2 * parameters * 5 * (prompt + 2 * 100))


def test_policies_and_break_even_probe(settings):
    made = plan(RunConfig.from_dict(settings), completion_tokens=100)
    policies = {policy.name: policy for policy in made.policies}
    assert policies["persyn"].generations == made.generations
    assert policies["persyn"].cost == pytest.approx(made.cost)
    assert policies["generate-then-select"].generations == 20 * 2
    assert policies["generate-then-select"].break_even == 20  # always cheaper
    assert policies["strong"].cost == pytest.approx(20 * 500e-6)  # the dearest, for want of a scored sample
    assert policies["mix"].cost == pytest.approx(10 * 500e-6 + 10 * 100e-6)
    # S (100 + 500) + (20 - S) 300 = 20 * 500  =>  S = (10000 - 6000) / 300
    assert policies["strong"].break_even == pytest.approx(4000 / 300)
    assert policies["mix"].break_even == 0


def test_policies_are_printed_by_their_labels(settings):
    console = Console(record=True, width=160, file=StringIO())
    print_plan(plan(RunConfig.from_dict(settings), completion_tokens=100), console)
    first = [line.split("│")[1].strip() for line in console.export_text().splitlines() if line.startswith("│")]
    assert first[-5:] == ["PerSyn router", "generate-then-select", "Strong", "Mix", "CAR"]


def test_a_scored_sample_gives_lengths_and_the_strongest(settings):
    sample = Dataset.from_dict(
        {"teacher": ["cheap", "dear", "cheap"], "completion_tokens": [10, 40, 30], "quality": [0.9, 0.5, 0.7]}
    )
    made = plan(RunConfig.from_dict(settings), sample=sample)
    assert [line.completion_tokens for line in made.lines if line.stage == "probe"] == [5 * 20, 5 * 40]
    assert any("Strong is cheap" in note for note in made.notes)


def test_shares_weigh_what_each_teacher_is_routed(settings):
    made = plan(RunConfig.from_dict(settings), completion_tokens=100, shares={"cheap": 1.0, "dear": 0.0})
    routed = {line.teacher: line.generations for line in made.lines if line.stage == "generate"}
    assert routed == {"cheap": 15.0, "dear": 0.0}


def test_without_lengths_max_tokens_is_the_bound_and_says_so(settings):
    made = plan(RunConfig.from_dict(settings))
    assert made.lines[0].completion_tokens == 5 * 1024
    assert any("upper bound" in note for note in made.notes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"completion_tokens": {"cheap": 10}}, "Every teacher needs an answer length; dear has none"),
        ({"completion_tokens": 0}, "above 0"),
        ({"shares": {"cheap": 0.7, "dear": 0.7}}, "sum to 1"),
        ({"tokens_per_second": 0}, "above 0"),
    ],
)
def test_wrong_arguments_are_refused(settings, arguments, message):
    with pytest.raises(ConfigError, match=message):
        plan(RunConfig.from_dict(settings), **arguments)


#: `cheap` passes in one of two answers (a cut one and a failed one among those that do not), `dear` in four of five.
SCORED = {
    "teacher": ["cheap"] * 4 + ["dear"] * 5,
    "completion_tokens": [100, 100, 100, None] + [100] * 5,
    "quality": [1.0, 1.0, 1.0, None] + [1.0] * 4 + [0.0],
    "finish_reason": ["stop", "stop", "length", None] + ["stop"] * 5,
}


def routed(made):
    return {line.teacher: line.generations for line in made.lines if line.stage == "generate"}


@pytest.mark.parametrize("where", ["sample", "run"])
def test_attempts_follow_from_the_pass_rates_of_the_probe(settings, tmp_path, where):
    config = RunConfig.from_dict(settings | {"accept": {"min_quality": 1.0, "attempts": 3}})
    given = {"sample": Dataset.from_dict(SCORED)}
    if where == "run":
        stages = tmp_path / "run" / "stages" / "score.parquet"
        stages.mkdir(parents=True)
        Dataset.from_dict(SCORED).to_parquet(stages / "part-00000.parquet")
        given = {"completion_tokens": 100}
    made = plan(config, **given)
    # Half of the prompts ask cheap, dear, cheap: 1, 0.5 and 0.1 times; half ask dear, cheap, dear: 1, 0.2 and 0.1.
    # Of the five prompts of the probe, each teacher's first answer is there already.
    assert routed(made) == pytest.approx({
        "cheap": 20 * (0.5 + 0.05 + 0.1) - 5 * (0.5 + 0.1), "dear": 20 * (0.25 + 0.5 + 0.05) - 5 * (0.25 + 0.5),
    })  # fmt: skip
    assert made.retries.rates == {"cheap": 0.5, "dear": 0.8}
    assert made.retries.accepted == pytest.approx(20 * (1 - 0.025 - 0.01))
    assert (made.retries.fewest, made.retries.most) == (15, 20 * 3 - 5 * 2)
    assert made.cost == pytest.approx((5 + 10) * 100e-6 + (5 + 12.25) * 500e-6)
    source = "the sample" if where == "sample" else "the run's scored probe"
    said = f"15 to 50 new answers, about 22 by the shares of good answers in {source} (cheap 50%, dear 80%)"
    assert any(said in note for note in made.notes)


def test_the_same_teacher_is_counted_again_and_one_whose_answer_is_fixed_is_not(settings):
    settings["teachers"][1]["sampling"] = {"temperature": 0.0}
    accept = {"min_quality": 1.0, "attempts": 2, "retry": "same"}
    made = plan(RunConfig.from_dict(settings | {"accept": accept}), sample=Dataset.from_dict(SCORED))
    assert routed(made) == pytest.approx({"cheap": 10 * 1.5 - 2.5, "dear": 10 - 2.5})


def test_a_target_ends_the_attempts_and_one_that_is_out_of_reach_is_told(settings):
    accept = {"min_quality": 1.0, "target_rows": 10}
    made = plan(RunConfig.from_dict(settings | {"accept": accept}), sample=Dataset.from_dict(SCORED))
    begun, known = 11, 5 * 11 / 20  # 10 / 0.965 prompts, of which so many are in the probe
    assert routed(made) == pytest.approx({"cheap": begun * 0.65 - known * 0.6, "dear": begun * 0.8 - known * 0.75})
    made = plan(RunConfig.from_dict(settings | {"accept": accept | {"target_rows": 20}}),
                sample=Dataset.from_dict(SCORED))  # fmt: skip
    assert any("fewer than `accept.target_rows` (20)" in note for note in made.notes)


def test_without_a_probe_the_range_of_attempts_is_told_and_the_table_has_the_most(settings):
    made = plan(RunConfig.from_dict(settings | {"accept": {"min_quality": 1.0}}), completion_tokens=100)
    assert made.retries.accepted is None and sum(routed(made).values()) == made.retries.most == 50
    assert any(
        "1 to 3 answers to a prompt: 15 to 50 new answers; the table has the most" in note for note in made.notes
    )
    assert made.policies[0].generations == 10 + 15  # beside the other ways, with one answer to a prompt


def test_what_judges_read_beside_the_probe_is_in_the_plan(settings):
    judge = {"url": "http://127.0.0.1:1", "model": "j", "price_per_million_prompt_tokens": 1.0}
    settings |= {"quality": {"judge": judge}}

    def judged(**more):
        made = plan(RunConfig.from_dict(settings | more), completion_tokens=100)
        return next((line.generations, line.cost) for line in made.lines if line.stage == "score")

    probe = judged()
    assert probe[0] == 10
    for more, answers in (({"hygiene": {"min_quality": 5.0}}, 15), ({"accept": {"min_quality": 5.0}}, 50)):
        count, cost = judged(**more)
        assert count == 10 + answers and cost / count == pytest.approx(probe[1] / 10)


def test_a_student_reads_routed_answers_where_all_are_scored(settings):
    plain = plan(RunConfig.from_dict(settings), completion_tokens=100).scorers[0].tokens
    more = plan(RunConfig.from_dict(settings | {"hygiene": {"min_quality": 1.0}}), completion_tokens=100)
    prompt = more.lines[0].prompt_tokens / 5
    assert more.scorers[0].tokens - plain == pytest.approx(15 * (prompt + 100))
    accept = plan(RunConfig.from_dict(settings | {"accept": {"min_quality": 1.0}}), completion_tokens=100)
    assert accept.scorers[0].tokens == plain  # it looks at the quality only


def test_actual_counts_every_attempt(settings, tmp_path):
    stages = tmp_path / "run" / "stages"
    stages.mkdir(parents=True)
    rows = [
        {"prompt_id": "a", "teacher": "cheap", "attempt": attempt, "completion_tokens": 10, "prompt_tokens": 1,
         "error": None}
        for attempt in range(3)
    ]  # fmt: skip
    for name, own in (("probe", rows[:1]), ("generate", rows)):
        Dataset.from_list(own).to_parquet(stages / f"{name}.parquet")
        (stages / f"{name}.json").write_text(json.dumps({"seconds": 3.0}))
    counts = {
        (line.stage, line.teacher): line.generations for line in read_actual(RunConfig.from_dict(settings)).lines
    }
    assert counts[("probe", "cheap")] == 1 and counts[("generate", "cheap")] == 2


def test_a_probe_larger_than_the_prompts_is_refused(settings):
    with pytest.raises(ConfigError, match=r"at most the number of prompts, 20, got 30"):
        plan(RunConfig.from_dict(settings | {"probe": {"size": 30}}))


def test_actual_counts_answers_once(settings, tmp_path):
    stages = tmp_path / "run" / "stages"
    stages.mkdir(parents=True)
    common = {"prompt_tokens": 7, "error": None}
    probe = [
        common | {"prompt_id": "a", "teacher": "cheap", "completion_tokens": 10},
        common | {"prompt_id": "a", "teacher": "dear", "completion_tokens": 20},
        {"prompt_id": "b", "teacher": "dear", "completion_tokens": None, "prompt_tokens": None, "error": "timeout"},
    ]
    generate = [probe[1], common | {"prompt_id": "b", "teacher": "cheap", "completion_tokens": 30}]
    for name, rows in (("probe", probe), ("generate", generate)):
        Dataset.from_list(rows).to_parquet(stages / f"{name}.parquet")
        (stages / f"{name}.json").write_text(json.dumps({"seconds": 3.0}))
    actual = read_actual(RunConfig.from_dict(settings))
    counts = {(line.stage, line.teacher): (line.generations, line.completion_tokens) for line in actual.lines}
    assert counts == {
        ("probe", "cheap"): (1, 10),
        ("probe", "dear"): (1, 20),
        ("generate", "cheap"): (1, 30),
        ("generate", "dear"): (0, 0),
    }
    assert sum(line.cost for line in actual.lines) == pytest.approx((10 * 1 + 20 * 5 + 30 * 1) / 1e6)
    assert actual.errors == 1


def test_actual_without_a_run_is_a_clear_error(settings):
    with pytest.raises(ConfigError, match="no finished `probe` or `generate` stage"):
        read_actual(RunConfig.from_dict(settings))


def test_the_command_plans_and_doctor_examines(settings, tmp_path):
    import yaml

    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings))
    planned = tmp_path / "out" / "plan.json"
    done = CliRunner().invoke(app, ["plan", str(file), "--completion-tokens", "100", "--output", str(planned)])
    assert done.exit_code == 0, done.output
    assert "break-even probe" in done.stdout
    assert json.loads(planned.read_text())["generations"] == 25
    assert not (tmp_path / "run").exists(), "planning writes nothing into the run folder"

    done = subprocess.run([*CLI, "doctor", str(file)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 in " in done.stdout
    file.write_text(yaml.safe_dump(settings | {"student": {"model": str(tmp_path / "nowhere")}}))
    done = CliRunner().invoke(app, ["doctor", str(file)])
    assert done.exit_code == 1
    assert "nowhere" in done.stdout
