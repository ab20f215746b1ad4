"""What a run says before it pays: every kind of mistake planted, the first answers, and answers bought again."""

import json
import re
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from persyn_hf import RunConfig, run
from persyn_hf.doctor.configuration import check_configuration
from persyn_hf.errors import ConfigError, DataError, PersynError
from persyn_hf.ledger.ledger import Ledger
from persyn_hf.run import readiness
from tests.generation.servers import chat_body, free_port, serve_app
from tests.run.tables import stage_table

PROMPTS, PROBE = 8, 4
pytestmark = pytest.mark.filterwarnings("ignore")


class Double:
    """A chat server that lists one model and counts what it is asked for; `reply` gives a response or a text."""

    def __init__(self, model, reply, key=None):
        self.model, self.reply, self.key, self.asked = model, reply, key, []
        self.url = ""

    def _refused(self, request):
        return self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}"

    async def listed(self, request):
        if self._refused(request):
            return Response(status_code=401)
        return JSONResponse({"object": "list", "data": [{"id": self.model, "object": "model"}]})

    async def chat(self, request):
        self.asked.append(await request.json())
        made = self.reply(self.asked[-1]) if callable(self.reply) else self.reply
        return JSONResponse(chat_body(made)) if isinstance(made, str) else made

    def app(self):
        routes = [Route("/v1/models", self.listed), Route("/v1/chat/completions", self.chat, methods=["POST"])]
        return Starlette(routes=routes)


def number(body):
    return re.findall(r"\d+", str(body["messages"][-1]["content"]))[0]


@pytest.fixture
def doubles():
    made = {
        "odd": Double("odd", lambda body: number(body) if int(number(body)) % 2 else "none"),
        "even": Double("even", lambda body: "none" if int(number(body)) % 2 else number(body)),
        "judge": Double("judge", "Score: 7"),
    }
    with ExitStack() as stack:
        for double in made.values():
            double.url = stack.enter_context(serve_app(double.app()))
        yield made


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(readiness, "PATIENCE", 0.2)


@pytest.fixture
def settings(tmp_path, tiny_lm, doubles):
    write(tmp_path, [{"prompt": f"Say {one}.", "answer": str(one)} for one in range(PROMPTS)])
    return {
        "output_dir": str(tmp_path / "run"),
        "prompts": {"source": str(tmp_path / "prompts.jsonl"), "answer_column": "answer"},
        "probe": {"size": PROBE},
        "teachers": [
            {"name": name, "model": name, "endpoint": doubles[name].url, "sampling": {"max_tokens": 64}}
            for name in ("odd", "even")
        ],
        "student": {"model": str(tiny_lm), "dtype": "float32"},
        "quality": {"verifier": "exact"},
        "router": {"backbone": str(tiny_lm), "folds": 2, "fallback": "none"},
    }


def write(folder, rows):
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def go(settings, until="score", **options):
    return run(RunConfig.from_dict(settings), progress=False, until=until, **options)


def edit(settings, key, value):
    """Sets a dotted key."""
    *path, last = key.split(".")
    for part in path:
        settings = settings[int(part)] if part.isdecimal() else settings.setdefault(part, {})
    settings[last] = value


def rows(settings, changes):
    """Changes rows of the prompts."""
    file = Path(settings["prompts"]["source"])
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for row, change in changes.items():
        lines[row] |= change
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def judged(url, **more):
    return {"judge": {"url": url, "model": "judge", "attempts": 1} | more}


#: A mistake by name: what plants it (given settings, doubles and a folder), and what is said.
MISTAKES = {
    "verifier misspelt": (lambda s, d, t: edit(s, "quality.verifier", "maths"), "`math`, `exact`"),
    "verifier's module": (lambda s, d, t: edit(s, "quality.verifier", "no_such.module:judge"), "cannot find"),
    "verifier's function": (lambda s, d, t: edit(s, "quality.verifier", "json:judge"), "cannot find"),
    "unlike scales": (
        lambda s, d, t: edit(s, "quality", {"sources": [{"verifier": "exact"}, judged(d["judge"].url)]}),
        "different scales",
    ),
    "references": (
        lambda s, d, t: rows(s, {2: {"answer": None}, 5: {"answer": None}}),
        r"2 of 8 references cannot be read.*\n  rows 2, 5: `exact` needs a reference",
    ),
    "too long for the student": (
        lambda s, d, t: rows(s, {3: {"prompt": "Say 3. " * 100}}),
        r"1 of 8 prompts cannot be read.*\n  rows 3: the student reads 511 tokens of a prompt; it has 7",
    ),
    "student": (lambda s, d, t: edit(s, "student.model", str(t / "nobody")), "nobody"),
    "student's server": (
        lambda s, d, t: edit(
            s, "student.endpoint", {"url": f"http://127.0.0.1:{free_port()}", "attempts": 1}
        ),
        "127.0.0.1",
    ),
    "student's server is none": (
        lambda s, d, t: edit(s, "student.endpoint", {"url": d["judge"].url, "attempts": 1}),
        "/v1/completions",
    ),
    "ranks": (
        lambda s, d, t: (
            edit(s, "student.endpoint", {"url": "http://127.0.0.1:9", "api": "echo", "attempts": 1}),
            edit(s, "reward.learnability_metric", "rsr"),
        ),
        "`rsr` needs ranks",
    ),
    "judge is away": (lambda s, d, t: edit(s, "quality", judged(f"http://127.0.0.1:{free_port()}")), "judge"),
    "judge's key": (
        lambda s, d, t: edit(s, "quality", judged(d["judge"].url, api_key_env="NO_SUCH_KEY")),
        "NO_SUCH_KEY",
    ),
    "judge's template": (
        lambda s, d, t: edit(s, "quality", judged(d["judge"].url, template="{{ prompt }} {{ response }}")),
        "`judge.template`: 'response' is undefined",
    ),
    "teachers that are one": (
        lambda s, d, t: (
            edit(s, "teachers.1.model", "odd"),
            edit(s, "teachers.1.endpoint", s["teachers"][0]["endpoint"]),
        ),
        "`odd` and `even` have the same `model`",
    ),
    "teachers that could be one": (
        lambda s, d, t: edit(s, "teachers.1.model", "odd"),
        r"at different addresses \(http",
    ),
    "teacher is away": (
        lambda s, d, t: edit(s, "teachers.1.endpoint", f"http://127.0.0.1:{free_port()}"),
        "teacher `even`: .*does not answer",
    ),
    "teacher's name": (lambda s, d, t: edit(s, "teachers.1.model", "odds"), "serves `even`, but `model` is `odds`"),
    "teacher's key": (lambda s, d, t: edit(s, "teachers.1.api_key_env", "NO_SUCH_KEY"), "NO_SUCH_KEY"),
    "no prices": (lambda s, d, t: edit(s, "max_cost", 3.0), "`max_cost` needs prices"),
    "no prices for a budget": (lambda s, d, t: edit(s, "allocation.budget", 3.0), "`allocation.budget` needs prices"),
    "least shares": (lambda s, d, t: edit(s, "allocation.min_share", 0.7), "sum to 1.4, above 1"),
    "greatest shares": (lambda s, d, t: edit(s, "allocation.max_share", 0.3), "sum to 0.6, below 1"),
    "shares of one teacher": (
        lambda s, d, t: edit(s, "allocation", {"min_share": {"odd": 0.5}, "max_share": {"odd": 0.4}}),
        "of odd is 0.5, above its `max_share` 0.4",
    ),
    "no such family": (
        lambda s, d, t: edit(s, "allocation", {"policy": "family-strong", "student_family": "Qwen"}),
        "no teacher has that `family`",
    ),
    "probe": (lambda s, d, t: edit(s, "probe.size", 9), "probe.size: must be at most the number of prompts, 8, got 9"),
    "repository": (lambda s, d, t: edit(s, "publish.dataset_repo_id", "me/my data"), "`publish.dataset_repo_id`"),
    "repository without an owner": (
        lambda s, d, t: edit(s, "publish.dataset_repo_id", "data"), "must include the owner, such as `me/data`"
    ),
    "folder": (
        lambda s, d, t: edit(s, "output_dir", s["prompts"]["source"] + "/run"), "is not writable; set another"
    ),
    "backbone": (lambda s, d, t: edit(s, "router.backbone", str(t / "nobody")), "nobody"),
    "no answer passes": (
        lambda s, d, t: edit(s, "accept", {"min_quality": 2.0}),
        "`accept.min_quality` is 2, but exact gives 0 to 1, so no answer passes",
    ),
    "every answer passes": (
        lambda s, d, t: (edit(s, "quality", judged(d["judge"].url)), edit(s, "hygiene.min_quality", 0.5)),
        "`hygiene.min_quality` is 0.5, but judge gives 1 to 10, so every answer passes",
    ),
    "no answer passes any more": (
        lambda s, d, t: (
            edit(s, "quality", {"sources": [{"verifier": "exact"}, judged(d["judge"].url)], "normalize": "range"}),
            edit(s, "hygiene.min_quality", 7.0),
        ),
        r"`hygiene.min_quality` is 7, but exact \+ judge gives 0 to 1",
    ),
    "no scale": (
        lambda s, d, t: (edit(s, "quality.normalize", "rank"), edit(s, "hygiene.min_quality", 0.5)),
        "`quality.normalize: rank` leaves no scale for `hygiene.min_quality`",
    ),
    "the same answer again": (
        lambda s, d, t: (
            edit(s, "accept", {"min_quality": 1.0, "retry": "same"}),
            edit(s, "teachers.0.sampling.temperature", 0.0),
            edit(s, "teachers.1.sampling.seed", 7),
        ),
        "`accept.retry: same` asks the same teacher again, but odd, even would give the same answer",
    ),
    "more rows than prompts": (
        lambda s, d, t: edit(s, "accept", {"min_quality": 1.0, "target_rows": 9}),
        "accept.target_rows: must be at most the number of prompts, 8, .* got 9",
    ),
    "no section to compare with": (
        lambda s, d, t: edit(s, "hygiene.decontaminate", ["compare"]),
        r"`hygiene.decontaminate: \[compare\]` needs `compare`",
    ),
    "reward model": (
        lambda s, d, t: edit(s, "quality", {"reward_model": s["student"]["model"]}), "must have one label"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_no_answer_is_paid_for_before_a_mistake_is_told(name, settings, doubles, tmp_path):
    plant, says = MISTAKES[name]
    plant(settings, doubles, tmp_path)
    with pytest.raises(PersynError) as caught:
        go(settings, until="publish")
    assert re.search(says, str(caught.value), re.DOTALL), str(caught.value)
    assert {name: len(double.asked) for name, double in doubles.items()} == {"odd": 0, "even": 0, "judge": 0}


def test_all_mistakes_are_told_at_once_with_their_keys(settings, doubles, tmp_path):
    for name in ("verifier misspelt", "teacher's name", "student", "least shares", "repository"):
        MISTAKES[name][0](settings, doubles, tmp_path)
    rows(settings, {1: {"prompt": "x" * 600}})
    settings["teachers"].append({"name": "here", "model": settings["router"]["backbone"], "backend": "local"})
    with pytest.raises(ConfigError) as caught:
        go(settings, until="publish")
    text = str(caught.value)
    assert text.startswith("configuration has 6 problems. No requests were sent; fix all of them and run again:")
    assert re.findall(r"^  (\d)\. `", text, re.MULTILINE) == ["1", "2", "3", "4", "5", "6"]
    for said in (
        "`allocation.min_share`: the teachers' shares sum to",
        "`publish.dataset_repo_id`: ",
        "`student.model`: ",
        "`quality.verifier`: ",
        "`teachers[1].endpoint`: teacher `even`: ",
        "`prompts.source`: 1 of 8 prompts cannot be read",
    ):
        assert said in text, text
    assert not doubles["odd"].asked


def test_an_extra_that_is_missing_is_told_before_anything_is_paid_for(settings, doubles, monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    settings["quality"] = {"verifier": "math"}
    with pytest.raises(ImportError, match=r"pip install 'persyn-hf\[math\]'"):
        go(settings)
    assert not doubles["odd"].asked


def test_all_extras_that_are_missing_are_told_at_once_and_with_the_prompts(settings, doubles, monkeypatch):
    for module in ("datasketch", "lm_eval", "jsonschema"):
        monkeypatch.setitem(sys.modules, module, None)
    source = settings["prompts"]["source"]
    settings |= {
        "quality": {"verifier": "json-schema"},
        "hygiene": {"dedup": "near", "decontaminate": ["compare"]},
        "compare": {
            "students": [{"name": "s", "model": "org/s"}], "held_out": {"source": source}, "lm_eval": {"tasks": ["x"]}
        },
    }  # fmt: skip
    rows(settings, {2: {"prompt": "x" * 600}})
    with pytest.raises(ConfigError) as caught:
        go(settings, until="publish")
    for said in ("datasketch", "lm-eval", "jsonschema", "1 of 8 prompts cannot be read"):
        assert said in str(caught.value)
    assert not doubles["odd"].asked


def test_what_retries_cannot_change_or_go_beyond_is_a_note(settings):
    edit(settings, "accept", {"min_quality": 1.0, "retry": "same"})
    edit(settings, "teachers.0.sampling.temperature", 0.0)
    edit(settings, "allocation.max_share", 0.75)
    notes = [one for one in check_configuration(RunConfig.from_dict(settings)) if one.state == "note"]
    said = {one.key: one.message for one in notes if one.topic == "settings"}
    assert said["accept.retry"].startswith("`accept.retry: same` asks odd once only")
    assert said["allocation.max_share"].startswith(
        "`allocation.max_share`: of the routes, which are the first attempts"
    )
    edit(settings, "accept", {"min_quality": 1.0})
    edit(settings, "teachers.1.sampling.temperature", 0.0)
    notes = {one.key: one.message for one in check_configuration(RunConfig.from_dict(settings))}
    assert "`accept.attempts` is 3, but a prompt has at most 2 different answers" in notes["accept.attempts"]


@pytest.mark.parametrize(
    ("section", "key"), [({"min_quality": 0.5}, "hygiene.min_quality"), ({"min_tokens": 2}, "hygiene.min_tokens")]
)
def test_hygiene_without_what_it_needs_is_told(settings, section, key):
    del settings["student"], settings["quality"]
    settings |= {"hygiene": section, "router": {"pretrained": settings["router"]["backbone"]}}
    failures = [one for one in check_configuration(RunConfig.from_dict(settings)) if one.state == "fail"]
    assert key in [one.key for one in failures]


def test_a_full_disk_is_told_before_anything_is_paid_for(settings, doubles, monkeypatch):
    from collections import namedtuple

    from persyn_hf.doctor import contradictions

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(contradictions.shutil, "disk_usage", lambda folder: usage(10**9, 10**9, 1000))
    with pytest.raises(ConfigError, match=r"`output_dir`: 0\.0 GB free .* the run writes at most about 2\.5e-05 GB"):
        go(settings)
    edit(settings, "accept", {"min_quality": 1.0})  # 8 probe answers of 64 tokens, and 3 attempts at 8 prompts
    with pytest.raises(ConfigError, match=r"the run writes at most about 4\.9e-05 GB"):
        go(settings)
    assert not doubles["odd"].asked


def test_a_finished_run_needs_no_server_and_no_key(settings, doubles, tmp_path, monkeypatch):
    doubles["judge"].key = "sk-1"
    monkeypatch.setenv("JUDGE_KEY", "sk-1")
    settings["quality"] = judged(doubles["judge"].url, api_key_env="JUDGE_KEY")
    go(settings)
    before = len(doubles["odd"].asked)
    for place in (0, 1):
        edit(settings, f"teachers.{place}.endpoint", f"http://127.0.0.1:{free_port()}")
    edit(settings, "quality.judge.url", f"http://127.0.0.1:{free_port()}")
    assert [stage.reused for stage in go(settings).stages] == [True, True]
    assert len(doubles["odd"].asked) == before


def test_a_judge_that_refuses_the_key_is_told_before_anything_is_paid_for(settings, doubles, monkeypatch):
    doubles["judge"].key = "sk-right"
    monkeypatch.setenv("JUDGE_KEY", "sk-wrong")
    settings["quality"] = judged(doubles["judge"].url, api_key_env="JUDGE_KEY")
    with pytest.raises(ConfigError, match="refused the key") as caught:
        go(settings)
    assert "sk-wrong" not in str(caught.value)
    assert not doubles["odd"].asked and not doubles["judge"].asked


# The first answers ----------------------------------------------------------------------------------------------


def test_a_teacher_that_refuses_everything_is_found_after_three_prompts(settings, doubles):
    doubles["even"].reply = lambda body: JSONResponse({"error": {"message": "no such parameter"}}, 400)
    with pytest.raises(ConfigError, match=r"teacher `even` gave no answer to 3 prompts: .*no such parameter"):
        go(settings)
    assert (len(doubles["odd"].asked), len(doubles["even"].asked)) == (1, 3)


def test_several_teachers_that_refuse_say_that_first_answers_were_requested(settings, doubles):
    for name in ("odd", "even"):
        doubles[name].reply = lambda body: JSONResponse({"error": {"message": "no such parameter"}}, 400)
    with pytest.raises(ConfigError) as caught:
        go(settings)
    assert str(caught.value).startswith("configuration has 2 problems. Only the first answers were requested; fix all")
    assert (len(doubles["odd"].asked), len(doubles["even"].asked)) == (3, 3)


def test_one_refused_prompt_stops_nothing_and_no_answer_is_paid_for_twice(settings, doubles):
    first, reply = [], doubles["even"].reply

    def refuses_the_first(body):
        first.append(number(body))
        refused = JSONResponse({"error": {"message": "flagged"}}, 400)
        return refused if number(body) == first[0] else reply(body)

    doubles["even"].reply = refuses_the_first
    go(settings, until="probe")
    table = stage_table(settings["output_dir"], "probe")
    assert sum(error is not None for error in table["error"]) == 1
    assert sorted(map(number, doubles["odd"].asked)) == sorted({number(body) for body in doubles["odd"].asked})


def test_a_judge_without_a_number_is_found_after_one_answer_of_each_teacher(settings, doubles):
    doubles["judge"].reply = "I like it."
    settings["quality"] = judged(doubles["judge"].url)
    with pytest.raises(ConfigError, match=r"the first 2 answers got no score: .*I like it"):
        go(settings)
    assert (len(doubles["odd"].asked), len(doubles["even"].asked)) == (1, 1)
    doubles["judge"].reply = "Score: 7"
    go(settings)
    assert (len(doubles["odd"].asked), len(doubles["even"].asked)) == (PROBE, PROBE)


def test_a_teacher_without_preflight_is_not_tried(settings, doubles):
    doubles["even"].reply = lambda body: JSONResponse({"error": {"message": "no"}}, 400)
    edit(settings, "teachers.1.preflight", False)
    result = go(settings, until="probe")
    assert result.missing == PROBE


# Answers that are bought again -----------------------------------------------------------------------------------

PRICE = {"price_per_million_prompt_tokens": 1e5, "price_per_million_completion_tokens": 1e5}


def priced(settings):
    settings["teachers"] = [teacher | PRICE for teacher in settings["teachers"]]


def test_a_changed_setting_says_what_it_costs_and_wants_a_yes(settings, doubles, caplog):
    priced(settings)
    go(settings, until="probe")
    edit(settings, "teachers.0.sampling.max_tokens", 65)
    with pytest.raises(ConfigError) as caught:
        go(settings, until="probe")
    # 3 prompt and 5 completion tokens for each of 4 answers, 0.1 USD each.
    line = "teachers[0].sampling.max_tokens: 64 → 65: 4 answers of `odd` are requested again (about 3.20 USD)"
    assert line in str(caught.value) and line in caplog.messages
    assert "--yes" in str(caught.value) and "No requests were sent" in str(caught.value)
    assert len(doubles["odd"].asked) == PROBE
    asked = []
    with pytest.raises(ConfigError, match="No requests were sent"):
        go(settings, until="probe", confirm=lambda question: asked.append(question))
    assert asked == ["Requesting answers again will cost about 3.2 USD. Continue?"]
    go(settings, until="probe", yes=True)
    assert (len(doubles["odd"].asked), len(doubles["even"].asked)) == (2 * PROBE, PROBE)
    caplog.clear()
    go(settings, until="probe")
    assert not [message for message in caplog.messages if "requested again" in message]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("teachers.0.system_prompt", "Be.", 'teachers[0].system_prompt: null → "Be.": 4 answers of `odd`'),
        ("teachers.0.revision", "v2", 'teachers[0].revision: null → "v2": 4 answers of `odd`'),
        ("teachers.0.sampling.temperature", 0.5, "teachers[0].sampling.temperature: 1.0 → 0.5: 4 answers of `odd`"),
    ],
)
def test_the_line_names_the_setting(key, value, says, settings, doubles, caplog):
    go(settings, until="probe")
    edit(settings, key, value)
    go(settings, until="probe")
    (line,) = [message for message in caplog.messages if "requested again" in message]
    assert line == f"{says} are requested again (no price is configured)"


def test_a_sum_below_the_limit_and_new_prompts_need_no_yes(settings, doubles, caplog):
    priced(settings)
    go(settings, until="probe")
    edit(settings, "probe.size", PROMPTS)
    go(settings, until="probe")
    assert not [message for message in caplog.messages if "requested again" in message]
    edit(settings, "teachers.1.sampling.max_tokens", 65)
    settings["confirm_above"] = 6.4
    go(settings, until="probe")
    assert [message for message in caplog.messages if "8 answers of `even` are requested again" in message]
    with Ledger(f"{settings['output_dir']}/ledger.sqlite") as ledger:
        assert len(ledger) == 3 * PROMPTS


# Bad prompts, the report -----------------------------------------------------------------------------------------


def test_bad_prompts_are_dropped_and_counted(settings, doubles):
    rows(settings, {3: {"prompt": "Say 3. " * 100}, 5: {"answer": None}, 6: {"prompt": "  "}, 7: {"prompt": "Say 0."}})
    with pytest.raises(DataError):
        go(settings, until="probe")
    edit(settings, "prompts.on_bad_prompt", "drop")
    result = go(settings, until="probe")
    assert dict(result.report.dropped) == {
        "A prompt is empty; every prompt needs at least one character that is not white space.": 1,
        "duplicate": 1,
        "the student reads 511 tokens of a prompt; it has 714": 1,
        "`exact` needs a reference, but the prompt has none (null)": 1,
    }
    assert sorted(stage_table(settings["output_dir"], "prompts")["prompt"]) == ["Say 0.", "Say 1.", "Say 2.", "Say 4."]
    report = json.loads((Path(settings["output_dir"]) / "report.json").read_text())
    assert report["dropped"] == dict(result.report.dropped)
    assert [stage.reused for stage in go(settings, until="probe").stages] == [True]


def test_a_run_folder_is_not_locked_where_there_are_no_locks(settings, doubles, monkeypatch, caplog):
    monkeypatch.setattr(sys.modules["persyn_hf.run.folder"], "fcntl", None)
    go(settings, until="probe")
    said = "cannot be locked on this system; run one process at a time in it"
    assert f"{settings['output_dir']} {said}" in caplog.messages
