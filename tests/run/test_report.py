"""Whose answers a report counts."""

from io import StringIO

from datasets import Dataset, Value
from rich.console import Console

from persyn_hf import RunConfig
from persyn_hf.run.report import RunReport, TeacherLine, build_report, print_report

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


def test_teachers_that_are_no_candidates_are_told():
    from io import StringIO

    from rich.console import Console

    from persyn_hf.run.report import print_report

    generated = table([("p", "a", 0, "stop", None), ("q", "b", 0, None, "HTTP 402")])
    routed = Dataset.from_dict({"prompt_id": ["p", "q"], "route": ["a", "b"]})
    block = {"left_out": {"c[/red]": "answered 4 of 30 prompts"}}
    report = build_report(CONFIG, routed, None, None, routed, generated, block)
    assert (report.generations, report.saved) == (1, 2.0) and report.to_dict()["left_out"] == block["left_out"]
    shown = StringIO()
    print_report(report, Console(file=shown, width=200))
    assert "c[/red] answered 4 of 30 prompts on the probe, so it is excluded" in shown.getvalue()


def test_at_80_columns_no_header_is_cut_and_the_rows_that_left_are_told():
    lines = [TeacherLine(name, 1234, 5678, 90, 12, 0.123, -1.234, 0.567) for name in ("a", "a-teacher-of-a-long-name")]
    held_out = {"prompts": 40, "router": {"mean": 0.5, "low": 0.4, "high": 0.6}}
    report = RunReport(
        lines, held_out, None, None, 3000, 9000,
        dropped={"it is too long": 3, "duplicate": 1},
        kept={"rows": 386, "failed": 4, "truncated": 90, "empty": 0},
    )  # fmt: skip
    console = Console(width=80, file=StringIO())
    print_report(report, console)
    said = console.file.getvalue()
    assert "…" not in said
    header = said.splitlines()[1].split()
    assert header[:3] == ["teacher", "prompts", "share"] and header[-3:] == ["quality", "learnability", "reward"]
    flat = " ".join(said.split())
    assert (
        "386 of 480 answers are in the set; left out: 4 without an answer, 90 cut at `max_tokens` "
        "(`publish.keep_truncated` keeps them)." in flat
    )
    assert "4 prompts were dropped: 3 × it is too long; 1 × duplicate of an earlier prompt." in flat
