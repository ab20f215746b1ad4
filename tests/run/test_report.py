"""Whose answers a report counts."""

from datasets import Dataset, Value

from persyn_hf import RunConfig
from persyn_hf.run.report import build_report

CONFIG = RunConfig.from_dict(
    {
        "output_dir": "run",
        "prompts": {"source": "p.jsonl"},
        "teachers": [{"name": name, "model": name, "endpoint": "http://127.0.0.1:9"} for name in ("a", "b")],
        "router": {"pretrained": "router"},
    }
)


def table(rows):
    names = ("prompt_id", "teacher", "sample", "finish_reason", "error")
    data = Dataset.from_dict(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    return data.cast_column("error", Value("string")).cast_column("sample", Value("int64"))


def test_an_answer_that_is_used_again_counts_once_and_every_sample_by_itself():
    probe = table([("p", "a", 0, "stop", None), ("p", "a", 1, "length", None), ("p", "b", 0, None, "HTTP 500")])
    routed = table([("p", "a", None, "stop", None), ("p", "a", 2, "stop", None), ("q", "a", 0, "stop", None)])
    prompts = Dataset.from_dict({"prompt_id": ["p", "q"]})
    report = build_report(CONFIG, prompts, probe, None, None, routed, None)
    assert [(line.answered, line.failed, line.truncated) for line in report.teachers] == [(4, 0, 1), (0, 1, 0)]
    assert (report.generations, report.generations_all) == (4, 4)
    without = build_report(
        CONFIG,
        prompts,
        probe.remove_columns("sample").select([0, 2]),
        None,
        None,
        routed.remove_columns("sample").select([0, 2]),
        None,
    )
    assert [(line.answered, line.failed) for line in without.teachers] == [(2, 0), (0, 1)]
