"""What commands, progress and reports write: names and servers' words move no terminal and end no run."""

import io
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from starlette.responses import JSONResponse

from persyn_hf import cli
from persyn_hf.config import Teacher
from persyn_hf.demo.strengths import print_strengths
from persyn_hf.doctor import check_endpoints
from persyn_hf.errors import ConfigError, ScoringError
from persyn_hf.generation.generate import generate_parallel
from persyn_hf.generation.progress import Tally, say
from persyn_hf.run.report import RunReport, TeacherLine, name_missing, print_report
from tests.generation.servers import Teacher as Double
from tests.generation.servers import serve, serve_app

#: Ends a run where markup is read, and clears the screen where sequences are obeyed.
NAME = "a[/red]\x1b[2J\x9b5m[b]"
SHOWN = "a[/red][b]"
#: What rich writes of its own accord: colours, the cursor, and whole lines that are written over.
_RICH = re.compile(r"\x1b\[[0-9;?]*[mKAhl]")


def is_tame(text):
    return all(line.isprintable() for line in re.split(r"[\r\n]", _RICH.sub("", text)))


def written(show):
    console = Console(file=io.StringIO(), width=200)
    show(console)
    return console.file.getvalue()


def test_a_run_goes_on_whatever_its_teachers_are_called(monkeypatch, capfd):
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, to rich
    behave = lambda n, body: JSONResponse({"error": "\x1b[2Jno\x07"}, 422) if n == 2 else None  # noqa: E731
    with serve(Double(behave)) as server:
        teacher = {"name": NAME, "model": "m", "endpoint": server.url, "max_concurrency": 1}
        table = generate_parallel(["one", "two"], [teacher], progress=True)
    assert sorted(map(str, table["error"][:])) == ["HTTP 422: no", "None"]
    seen = capfd.readouterr().err
    assert SHOWN in _RICH.sub("", seen)
    assert "\x1b[2J" not in seen and is_tame(seen)


def test_what_is_said_at_the_end_of_a_run(capfd):
    say("Interrupted.", Tally(NAME, 3))
    assert capfd.readouterr().err.splitlines() == ["Interrupted.", f"{SHOWN}: 0 of 3 rows, 0 + 0 tokens"]


def test_the_report_shows_names_as_they_are(tmp_path):
    line = TeacherLine(NAME, 1, 1, 0, 0, None, None, None)
    report = RunReport([line], {"prompts": 1}, NAME, f"{NAME} gets every prompt", 1, 2)
    seen = written(lambda console: print_report(report, console))
    assert seen.count(SHOWN) == 2 and is_tame(seen)
    rows = {"prompt_id": ["p"], "teacher": [NAME], "error": ["HTTP 500: \x1b]0;title\x07[/b]"]}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    assert name_missing(tmp_path / "t.parquet") == [
        f"  {SHOWN}: 1 without an answer (prompts p)",
        "    1 x HTTP 500: [/b]",
    ]
    assert SHOWN in written(lambda console: print_strengths({"kind": {NAME: 0.5}}, console))


@pytest.mark.parametrize(("kind", "code"), [(ConfigError, 2), (ScoringError, 1)])
def test_the_command_writes_no_error_as_it_came(monkeypatch, capsys, kind, code):
    def fails():
        raise kind("two problems:\n  \x1b[2Jone [/red]\n  \x9b5mtwo\u202e")

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == code
    assert capsys.readouterr().err.endswith("two problems:\n  one [/red]\n  two\n")


def test_the_doctor_repeats_no_sequence_of_a_server():
    async def app(scope, receive, send):
        listed = {"data": [{"id": "\x1b[2Jother\x07\u202e[/red]"}]}
        await JSONResponse(listed)(scope, receive, send)

    with serve_app(app) as url:
        (finding,) = check_endpoints([Teacher(name="t", model="m", endpoint=url)], patience=0.2)
    assert f"{url} serves `other[/red]`, but `model` is `m`." in finding.message
    assert finding.state == "fail" and is_tame(finding.message)
