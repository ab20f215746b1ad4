"""The comparison from one YAML to its table: teachers asked once, cells found again, and what does not fit refused."""

import json
import multiprocessing
import os
import signal
from contextlib import ExitStack

import pytest
import yaml
from starlette.responses import JSONResponse
from typer.testing import CliRunner

from persyn_hf import RunConfig, verifier
from persyn_hf.cli import app
from persyn_hf.comparison import cells as cells_module
from persyn_hf.comparison.compare import compare
from persyn_hf.config import POLICIES
from persyn_hf.errors import ConfigError, DataError, StudentError
from tests.generation.servers import Teacher, chat_body, serve

TRAINING, HELD_OUT = 24, 6
CUT = "Say 5."


def _says(name):
    """`plain` and `cousin` are right on even numbers, `grand` always and at length, `grand` is cut on one prompt."""

    def behave(_, body):
        prompt = body["messages"][-1]["content"]
        number = int(prompt.split()[1].rstrip("."))
        right = name == "grand" or number % 2 == (name == "cousin")
        words = f"{number}" if right else "none"
        text = f"Well, let me see, what it says is {words}" if name == "grand" else words
        return JSONResponse(chat_body(text, "length" if name == "grand" and prompt == CUT else "stop"))

    return behave


@verifier
def ends_right(prompt, completion, answer):
    return float(completion.split()[-1] == answer)


@verifier
def kills_workers(prompt, completion, answer):
    if multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return ends_right(prompt, completion, answer)


@pytest.fixture
def teachers():
    with ExitStack() as stack:
        yield {name: stack.enter_context(serve(Teacher(_says(name)))) for name in ("grand", "cousin", "plain")}


@pytest.fixture
def settings(tmp_path, tiny_lm, teachers):
    for name, numbers in (("train", range(TRAINING)), ("held-out", range(100, 100 + HELD_OUT))):
        rows = [{"prompt": f"Say {number}.", "answer": str(number)} for number in numbers]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "output_dir": str(tmp_path / "out"),
        "prompts": {"source": str(tmp_path / "train.jsonl"), "answer_column": "answer"},
        "probe": {"size": 10},
        "teachers": [
            {"name": name, "model": name, "endpoint": double.url, "preflight": False,
             "family": "Grand" if name == "grand" else "Small"}
            for name, double in teachers.items()
        ],
        "student": {"model": str(tiny_lm), "dtype": "float32"},
        "quality": {"verifier": "tests.comparison.test_compare:ends_right"},
        "router": {"backbone": str(tiny_lm), "folds": 2, "fallback": "none"},
        "training": {"max_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1,
                     "learning_rate": 1e-3, "max_length": 256},
        "compare": {
            "students": [{"name": "tiny", "model": str(tiny_lm), "family": "Small", "dtype": "float32"}],
            "held_out": {"source": str(tmp_path / "held-out.jsonl"), "answer_column": "answer"},
            "policies": list(POLICIES),
            "seeds": [0, 1],
            "decodings": [{"name": "greedy", "temperature": 0, "max_tokens": 3},
                          {"name": "sampled", "temperature": 1.0, "max_tokens": 3}],
        },
    }  # fmt: skip


def run(settings):
    return compare(RunConfig.from_dict(settings), progress=False)


def test_every_policy_is_trained_and_judged_and_teachers_are_asked_once(settings, teachers, tmp_path, tiny_lm):
    second = {"name": "twin", "model": str(tiny_lm), "dtype": "float32", "family": "Small"}
    settings["compare"] |= {"students": [*settings["compare"]["students"], second], "seeds": [0]}
    settings["compare"]["nll_teachers"] = ["grand", "plain"]
    result = run(settings)
    # Both students' probes, all policies and the oracle: each teacher answers each training prompt once.
    assert {name: len(double.bodies) for name, double in teachers.items()} == {
        "grand": TRAINING + HELD_OUT, "cousin": TRAINING, "plain": TRAINING + HELD_OUT,
    }  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * len(POLICIES) * 3 * HELD_OUT
    assert {row["evaluation"] for row in rows} == {"greedy", "sampled", "nll"}
    facts = {fact.policy: fact for fact in result.facts if fact.student == "tiny"}
    # The cut answer makes its prompt unusable for Strong, and so for everyone.
    assert {(fact.rows, fact.left_out) for fact in facts.values()} == {(TRAINING - 1, 1)}
    assert facts["strong"].shares == {"grand": 1.0} and facts["strong"].same_as is None
    assert set(facts["mix"].shares) == {"grand", "cousin"} or set(facts["mix"].shares) == {"grand", "plain"}
    assert set(facts["family-strong"].shares) <= {"cousin", "plain"}
    best = facts["oracle"].reward
    assert all(fact.reward <= best + 1e-12 for fact in facts.values())
    # The twins are one model: what is true of one is true of the other.
    values = {(cell.student, cell.policy, cell.evaluation): cell.value for cell in result.summary.cells}
    assert all(values["tiny", *rest] == values["twin", *rest] for _, *rest in values)
    page = (tmp_path / "out/comparison.md").read_text()
    assert "## tiny" in page and "## twin" in page and "| oracle |" in page
    assert not list((tmp_path / "out/cells").rglob("*.safetensors"))


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on_and_ends_the_same(settings, teachers, tmp_path, monkeypatch):
    settings["compare"]["policies"] = ["strong", "random", "persyn"]
    whole = run(settings)
    trained = []
    train = cells_module.train_student

    def interrupt(data, student, output_dir, *arguments, **keywords):
        trained.append(output_dir.parent.name)
        if len(trained) == 4:
            raise KeyboardInterrupt
        return train(data, student, output_dir, *arguments, **keywords)

    monkeypatch.setattr(cells_module, "train_student", interrupt)
    settings["output_dir"] = str(tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        run(settings)
    asked = {name: len(double.bodies) for name, double in teachers.items()}
    resumed = run(settings)
    assert {name: len(double.bodies) for name, double in teachers.items()} == asked
    assert resumed.facts == whole.facts
    assert resumed.outcomes == whole.outcomes
    # Only the cell that was interrupted is seen twice.
    assert [name for name in trained if trained.count(name) > 1] == [trained[3]] * 2
    before = len(trained)
    assert run(settings).outcomes == resumed.outcomes and len(trained) == before
    # Another evaluation trains again only because no weights were kept; another seed trains only its own cells.
    settings["compare"]["seeds"] = [0, 1, 2]
    run(settings)
    assert {name.rpartition("-")[2] for name in trained[before:]} == {"2"}


@pytest.mark.slow
def test_edited_prompts_are_asked_anew_under_every_policy(settings, teachers, tmp_path):
    settings["compare"] |= {"policies": ["strong", "random"], "seeds": [0], "nll_teachers": []}
    first = run(settings)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    for number in (0, 3, 7):  # none of them the one whose answer is cut
        rows[number] = {"prompt": f"Say {50 + number}.", "answer": str(50 + number)}
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    second = run(settings)
    assert [(fact.rows, fact.left_out) for fact in first.facts] == [(TRAINING - 1, 1)] * 2
    assert [(fact.rows, fact.left_out) for fact in second.facts] == [(TRAINING - 1, 1)] * 2
    asked = {body["messages"][-1]["content"] for double in teachers.values() for body in double.bodies}
    assert {"Say 50.", "Say 53.", "Say 57."} <= asked


@pytest.mark.slow
def test_what_a_recipe_or_a_judge_reads_counts_with_its_content(settings, tmp_path, tiny_lm, monkeypatch):
    template = tmp_path / "template.jinja"
    template.write_text((tiny_lm / "chat_template.jinja").read_text())
    (tmp_path / "judges_of_mine.py").write_text(
        "from persyn_hf import verifier\n\n\n@verifier\ndef judge(prompt, completion, answer):\n    return 1.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings["training"]["chat_template"] = str(template)
    settings["compare"] |= {"policies": ["strong"], "seeds": [0], "nll_teachers": []}
    settings["compare"]["quality"] = {"verifier": "judges_of_mine:judge"}
    settings["compare"]["decodings"] = [{"name": "greedy", "temperature": 0, "max_tokens": 3}]
    trained = []
    train = cells_module.train_student
    monkeypatch.setattr(cells_module, "train_student", lambda *a, **k: trained.append(a[2]) or train(*a, **k))
    assert {score for outcome in run(settings).outcomes for score in outcome.scores} == {1.0}
    run(settings)
    assert len(trained) == 1
    (tmp_path / "judges_of_mine.py").write_text(
        "from persyn_hf import verifier\n\n\n@verifier\ndef judge(prompt, completion, answer):\n    return 0.0\n"
    )
    assert {score for outcome in run(settings).outcomes for score in outcome.scores} == {0.0}
    assert trained[0] == trained[1]  # the same student, whose weights were not kept, judged anew
    template.write_text(template.read_text() + "\n")
    run(settings)
    assert len({path.parent.name for path in trained}) == 2


@pytest.mark.slow
def test_processes_side_by_side_find_what_one_finds(settings, tmp_path):
    settings["compare"] |= {"policies": ["strong", "persyn"], "seeds": [0, 1]}
    one = run(settings)
    settings["output_dir"] = str(tmp_path / "two")
    settings["compare"]["processes"] = 2
    two = run(settings)
    assert two.facts == one.facts
    assert [(outcome.policy, outcome.seed, outcome.ids) for outcome in two.outcomes] == [
        (outcome.policy, outcome.seed, outcome.ids) for outcome in one.outcomes
    ]
    for ours, theirs in zip(two.outcomes, one.outcomes, strict=True):  # another number of threads adds otherwise
        assert ours.scores == pytest.approx(theirs.scores, abs=1e-3)


@pytest.mark.slow
def test_a_process_that_is_killed_is_explained(settings, tmp_path):
    settings["compare"] |= {"policies": ["strong", "random"], "seeds": [0], "processes": 2}
    settings["quality"] = {"verifier": "tests.comparison.test_compare:kills_workers"}
    with pytest.raises(StudentError, match="training processes was killed"):
        run(settings)
    assert not list((tmp_path / "out/cells").rglob("evaluation-*.json"))
    settings["quality"] = {"verifier": "tests.comparison.test_compare:ends_right"}
    assert {outcome.policy for outcome in run(settings).outcomes} == {"strong", "random"}


def test_the_command_prints_the_table(settings, tmp_path):
    settings["compare"] |= {"policies": ["strong", "persyn"], "nll_teachers": [], "seeds": [3]}
    file = tmp_path / "compare.yaml"
    file.write_text(yaml.safe_dump(settings))
    done = CliRunner().invoke(app, ["compare", str(file), "--quiet"])
    assert done.exit_code == 0, done.output
    assert "PerSyn router minus" in done.stdout and "Results: " in done.stdout
    numbers = json.loads((tmp_path / "out/comparison.json").read_text())
    assert [cell["policy"] for cell in numbers["summary"]["cells"]] == ["strong", "persyn"] * 2


def test_a_comparison_that_cannot_be_honest_is_refused(settings, tmp_path):
    seen = settings["compare"]["held_out"]
    settings["compare"]["held_out"] = settings["prompts"]
    with pytest.raises(DataError, match="24 held-out prompts are also training prompts"):
        run(settings)
    settings["compare"]["held_out"] = seen
    settings["compare"]["nll_teachers"] = ["nobody"]
    with pytest.raises(ConfigError, match="nobody"):
        run(settings)
    settings["compare"] = None
    with pytest.raises(ConfigError, match="`compare` is required"):
        run(settings)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seeds": [1, 1]}, "`seeds` names 1 more than once"),
        ({"seeds": [-1]}, "seeds must be in"),
        ({"policies": ["best"]}, "compare.policies"),
        ({"students": [{"name": "a/b", "model": "m"}]}, "compare.students"),
        ({"decodings": [{"name": "greedy", "temprature": 0}]}, "unknown key; this section has extra_body"),
    ],
)
def test_wrong_sections_are_explained(settings, change, words):
    settings["compare"] |= change
    with pytest.raises(ConfigError, match=words):
        RunConfig.from_dict(settings)
