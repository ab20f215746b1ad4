"""What a run cost, by the ledger, the card and `plan --actual`, where thinking and cached prompts have prices."""

import json

import pytest
from datasets import Dataset
from starlette.responses import JSONResponse

from persyn_hf.config import RunConfig
from persyn_hf.generation.generate import generate_parallel
from persyn_hf.ledger.ledger import Ledger
from persyn_hf.planning.actual import read_actual
from persyn_hf.planning.plan import plan
from persyn_hf.publishing.load import load_personalized
from persyn_hf.publishing.personalized import save_personalized
from persyn_hf.publishing.provenance import run_costs
from persyn_hf.run.publish import Tables, _facts
from persyn_hf.run.report import build_report
from tests.generation.servers import Teacher as Double
from tests.generation.servers import chat_body, serve

PRICES = {
    "price_per_million_prompt_tokens": 10.0,
    "price_per_million_completion_tokens": 100.0,
    "price_per_million_cached_tokens": 1.0,
    "price_per_million_reasoning_tokens": 3000.0,
}
#: 12 tokens of prompt, 8 of them cached, and 5 + 40 of an answer.
ONE = (4 * 10 + 8 * 1 + 5 * 100 + 40 * 3000) / 1e6


def thinking(n, body):
    answer = chat_body(f"4 and {n}")
    answer["usage"] = {
        "prompt_tokens": 12, "completion_tokens": 45, "total_tokens": 57,
        "completion_tokens_details": {"reasoning_tokens": 40}, "prompt_tokens_details": {"cached_tokens": 8},
    }  # fmt: skip
    return JSONResponse(answer)


def configured(tmp_path, url, tiny_lm):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"q{n}", "answer": "4"}) + "\n" for n in range(6)))
    shared = {"model": "m", "endpoint": url, "preflight": False, "sampling": {"max_tokens": 64}}
    return RunConfig.from_dict(
        {
            "output_dir": str(tmp_path / "run"),
            "prompts": {"source": str(prompts)},
            "probe": {"size": 2},
            "teachers": [shared | PRICES | {"name": "deep"}, shared | {"name": "free", "model": "n"}],
            "student": {"model": str(tiny_lm)},
            "quality": {"verifier": "exact"},
            "router": {"backbone": str(tiny_lm)},
        }
    )


def written(config, **tables):
    from pathlib import Path

    stages = Path(config.output_dir) / "stages"
    stages.mkdir(parents=True)
    for name, table in tables.items():
        (stages / f"{name}.parquet").mkdir()
        table.to_parquet(stages / f"{name}.parquet" / "part-00000.parquet")
        (stages / f"{name}.json").write_text(json.dumps({"seconds": 1.0}))


class NamedRouter:
    digest = None


def test_ledger_card_and_plan_agree_on_what_thinking_costs(tmp_path, tiny_lm):
    with serve(Double(thinking)) as server:
        config = configured(tmp_path, server.url, tiny_lm)
        probe = generate_parallel(["q0", "q1"], config.teachers, tmp_path / "l", progress=False)
        rest = generate_parallel(["q1", "q2", "q3"], config.teachers[:1], tmp_path / "l", progress=False)
    written(config, probe=probe, generate=rest)
    with Ledger(tmp_path / "l") as ledger:
        assert ledger.spent() == pytest.approx(4 * ONE)
    report = build_report(config, probe, probe, None, None, rest, None)
    facts = _facts(config, 6, Tables(probe=probe, generated=rest), NamedRouter(), report)
    assert facts["cost"] == pytest.approx(4 * ONE)
    assert facts["cost_all"] == pytest.approx(6 * ONE)
    actual = read_actual(config)
    assert sum(line.cost for line in actual.lines) == pytest.approx(4 * ONE)
    save_personalized(rest, tmp_path / "data", run=facts)
    (share,) = load_personalized(tmp_path / "data").provenance.teachers
    assert (share.name, share.cost) == ("deep", pytest.approx(3 * ONE))


def test_a_plan_of_a_sample_knows_its_thinking_and_one_of_lengths_says_that_it_does_not(tmp_path, tiny_lm):
    config = configured(tmp_path, "http://127.0.0.1:9", tiny_lm)
    rows = [
        {"teacher": name, "completion_tokens": made, "cached_tokens": 0, "reasoning_tokens": thought}
        for name, made, thought in (("deep", 50, 40), ("deep", 30, None), ("deep", None, None), ("free", 5, None))
    ]
    (line, *_) = plan(config, sample=Dataset.from_list(rows)).lines
    assert line.teacher == "deep"
    asked = line.prompt_tokens * 10
    assert line.cost == pytest.approx((asked + 2 * (20 * 100 + 20 * 3000)) / 1e6)  # mean 40 tokens, 20 of thinking
    told = plan(config, 40)
    assert any("of deep is reasoning" in note and "not known" in note for note in told.notes)
    assert told.lines[0].cost == pytest.approx((asked + 2 * 40 * 100) / 1e6)
    bound = plan(config)  # nothing is longer than `max_tokens`, nor dearer than all of it thought
    assert bound.lines[0].cost == pytest.approx((asked + 2 * 64 * 3000) / 1e6)
    assert not any("reasoning" in note for note in bound.notes)


def test_every_sample_of_a_prompt_is_paid_for(tmp_path, tiny_lm):
    config = configured(tmp_path, "http://127.0.0.1:9", tiny_lm)
    row = {"prompt_id": "a", "teacher": "deep", "prompt_tokens": 12, "completion_tokens": 45, "error": None}
    paid = row | {"cached_tokens": 8, "reasoning_tokens": 40}
    probe = Dataset.from_list([paid | {"sample": 0, "attempt": 0}, paid | {"sample": 1, "attempt": 0}])
    rest = Dataset.from_list([paid | {"sample": 1, "attempt": 0}, paid | {"sample": 1, "attempt": 1}])
    written(config, probe=probe, generate=rest)
    lines = {(line.stage, line.teacher): line for line in read_actual(config).lines}
    assert (lines["probe", "deep"].generations, lines["generate", "deep"].generations) == (2, 1)
    assert sum(line.cost for line in lines.values()) == pytest.approx(3 * ONE)
    assert run_costs((probe, rest), {"deep": config.teachers[0].prices}, 6)[0] == pytest.approx(3 * ONE)
