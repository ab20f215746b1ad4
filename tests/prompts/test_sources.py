"""Every place that prompts are read from, and what is said where one cannot be read."""

import bz2
import gzip
import json
import lzma
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from persyn_hf.config import Prompts
from persyn_hf.errors import ConfigError, DataError, MissingPackageError
from persyn_hf.prompts import load_prompts

LINES = b'{"prompt": "One", "id": 1}\n\n{"prompt": "Two", "id": 2}\n'


def load(source, **settings):
    return load_prompts(Prompts(source=source if isinstance(source, list) else str(source), **settings))


def zstandard_frames(data):
    import zstandard

    half = len(data) // 2
    return b"".join(zstandard.ZstdCompressor().compress(part) for part in (data[:half], data[half:]))


@pytest.mark.parametrize(
    ("suffix", "packed"),
    [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstandard_frames)],
)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.jsonl", LINES),
        ("p.ndjson", b"\xef\xbb\xbf" + LINES),
        ("p.json", b'[{"prompt": "One", "id": 1}, {"prompt": "Two", "id": 2}]'),
        ("lines.json", LINES),
        ("p.csv", b"\xef\xbb\xbfprompt,id\r\nOne,1\r\n\r\nTwo,2\r\n"),
        ("p.tsv", b"prompt\tid\nOne\t1\nTwo\t2\n"),
        ("p.txt", b"One\n\n  \nTwo"),
    ],
)
def test_text_files_packed_or_not(name, text, suffix, packed, tmp_path):
    (tmp_path / f"{name}{suffix}").write_bytes(packed(text))
    data = load(tmp_path / f"{name}{suffix}")
    assert data["prompt"][:] == ["One", "Two"]
    kept = [1, 2] if "json" in name else ["1", "2"]
    assert name == "p.txt" or data["id"][:] == kept


def test_a_table_of_text_stays_text(tmp_path):
    (tmp_path / "p.csv").write_text('prompt,id,when,note\n"a\nb, ""c""",007,2020-01-01,\n1e5,NA,true,nan\n')
    data = load(tmp_path / "p.csv")
    assert data["prompt"][:] == ['a\nb, "c"', "1e5"] and data["id"][:] == ["007", "NA"]
    assert data["when"][:] == ["2020-01-01", "true"] and data["note"][:] == ["", "nan"]


def test_json_text_stays_text_too(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "answer": "2020-01-01", "x": 1}\n{"prompt": "b", "x": "1"}\n')
    data = load(tmp_path / "p.jsonl")
    assert data["answer"][:] == ["2020-01-01", None] and data["x"][:] == [1, "1"]


def test_cells_of_any_length_and_utf16(tmp_path):
    (tmp_path / "p.csv").write_text(f"prompt\n{'long ' * 60_000}\n")
    assert len(load(tmp_path / "p.csv")["prompt"][0]) == 300_000
    (tmp_path / "excel.csv").write_bytes("prompt\nça va\n".encode("utf-16"))
    assert load(tmp_path / "excel.csv")["prompt"][:] == ["ça va"]


def test_several_files_patterns_and_folders_of_shards(tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    for index in range(3):
        (shards / f"p-{index}.jsonl.gz").write_bytes(gzip.compress(json.dumps({"prompt": f"p{index}"}).encode()))
    pq.write_table(pa.table({"prompt": ["q"], "n": [1]}), tmp_path / "q.parquet")
    assert load(shards)["prompt"][:] == ["p0", "p1", "p2"]
    assert load(shards / "*.gz")["prompt"][:] == ["p0", "p1", "p2"]
    both = load([str(shards / "p-[12].jsonl.gz"), str(tmp_path / "q.parquet")])
    assert both["prompt"][:] == ["p1", "p2", "q"] and both["n"][:] == [None, None, 1]
    with pytest.raises(ConfigError, match=r"no file matches .*\*\.csv"):
        load(tmp_path / "*.csv")


def test_splits_and_configurations_of_a_folder(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(f"prompt,id\nof {split},007\n")
    assert load(tmp_path, split="test")[0]["prompt"] == "of test" and load(tmp_path)[0]["id"] == "007"
    with pytest.raises(ConfigError, match=r"there is no split `dev`; it has train, test"):
        load(tmp_path, split="dev")
    configs = "- config_name: main\n  data_files: train.csv\n- config_name: socratic\n  data_files: test.csv\n"
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    with pytest.raises(ConfigError, match=r"cannot be read: .*available configs: \['main', 'socratic'\]"):
        load(tmp_path)
    with pytest.raises(ConfigError, match=r"'other' not found. Available: \['main', 'socratic'\]"):
        load(tmp_path, config="other")
    assert load(tmp_path, config="socratic")["prompt"][:] == ["of test"]


def test_saved_datasets(tmp_path):
    one = Dataset.from_dict({"prompt": ["a"]})
    one.save_to_disk(tmp_path / "one")
    DatasetDict({"dev": one, "test": one}).save_to_disk(tmp_path / "two")
    assert load(tmp_path / "one")["prompt"][:] == load(tmp_path / "two", split="dev")["prompt"][:] == ["a"]
    with pytest.raises(ConfigError, match=r"two cannot be read: there is no split `train`; it has dev, test"):
        load(tmp_path / "two")


DAMAGED = {
    "broken.jsonl": (b'{"prompt": "a"}\n{"prompt": "b"\n', r"line 2, column 15: Expecting ',' delimiter"),
    "number.jsonl": (b'{"prompt": "a"}\n5\n', r"line 2 must hold an object, got a number"),
    "half.jsonl": (
        b'{"prompt": "a"}\n{"prompt": "\\ud83d"}\n',
        r"line 2 holds an unpaired surrogate, .*surrogates not",
    ),
    "half.json": (b'[{"prompt": "a"}, {"prompt": "\\ud83d"}]', r"row 1 holds an unpaired surrogate"),
    "latin.csv": ("prompt\na\nça va\n".encode("latin-1"), r"line 3 is not UTF-8: .*can't decode byte 0xe7 .*as UTF-8"),
    "latin.txt": ("ça va".encode("latin-1"), r"line 1 is not UTF-8"),
    "empty.jsonl": (b"\n\n", r"the file is empty"),
    "empty.csv": (b"prompt\n", r"the file is empty"),
    "empty.txt": (b"", r"the file is empty"),
    "dict.json": (
        b'{"version": 1, "data": [{"prompt": "a"}]}',
        r"list of rows or an object .*, got one object with the keys version, data",
    ),
    "broken.json": (b'[{"prompt": "a"},\n {"prompt" "b"}]', r"line 2, column 12: Expecting ':' delimiter"),
    "ragged.csv": (b"prompt,id\na,1\nb,2,3\n", r"line 3 has 3 cells, but the first line names 2 columns"),
    "quote.csv": (b'prompt\n"never closed\n', r"line 2: unexpected end of data"),
    "twice.csv": (b"prompt,prompt\na,b\n", r"line 1 names the column prompt more than once"),
    "cut.jsonl.gz": (gzip.compress(LINES)[:-9], r"compressed data is damaged: .*end-of-stream"),
    "no.jsonl.gz": (LINES, r"Not a gzipped file"),
    "no.jsonl.zst": (LINES, r"compressed data is damaged"),
    "no.parquet": (b"PAR1 junk", r"no.parquet cannot be read: "),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_why_a_file_cannot_be_read_is_said(name, tmp_path):
    content, said = DAMAGED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=said) as raised:
        load(tmp_path / name)
    assert str(raised.value).startswith(f"prompts.source: {tmp_path / name} cannot be read: ")


def test_a_damaged_file_of_many_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "b.jsonl").write_bytes(b"{")
    for source in (tmp_path, tmp_path / "*.jsonl"):
        with pytest.raises(ConfigError, match=r"b\.jsonl"):
            load(source)


def test_a_table_without_rows_holds_no_prompts(tmp_path):
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "p.parquet")
    with pytest.raises(DataError, match=r"p\.parquet holds no prompts"):
        load(tmp_path / "p.parquet")


def test_zstandard_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    if sys.version_info >= (3, 14):
        pytest.skip("Python reads it itself")
    (tmp_path / "p.jsonl.zst").write_bytes(zstandard_frames(LINES))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingPackageError, match=r"`zstandard` is needed to read p\.jsonl\.zst.*pip install"):
        load(tmp_path / "p.jsonl.zst")


def test_a_list_without_a_source_is_no_source():
    with pytest.raises(ValueError, match="source"):
        Prompts(source=[])


@pytest.mark.parametrize(
    "text",
    [
        "prompt;answer\nOne, two;1\nThree;2\n",
        '"prompt";"answer"\r\n"One, two";"1"\r\n"Three";"2"\r\n',
        "prompt\tanswer\nOne, two\t1\nThree\t2\n",
        "prompt | answer\nOne, two|1\nThree|2\n",
        'prompt, answer\n"One, two",1\nThree,2\n',
    ],
)
def test_cells_are_separated_as_the_first_line_shows(tmp_path, text):
    path = tmp_path / "p.csv"
    path.write_bytes(text.encode())
    made = load(path)
    assert made["prompt"][:] == ["One, two", "Three"]
    assert made["answer"][:] == ["1", "2"]


def test_one_column_may_hold_any_marks(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("prompt\nOne; two | three\n")
    assert load(path)["prompt"][:] == ["One; two | three"]


def test_a_list_over_many_lines_is_read_under_the_name_of_json_lines(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps([{"prompt": "One"}, {"prompt": "Two"}], indent=2), encoding="utf-8")
    assert load(path)["prompt"][:] == ["One", "Two"]
    path.write_text('[{"role": "user", "content": "One"}]\n[{"role": "user", "content": "Two"}]\n')
    assert [prompt[0]["content"] for prompt in load(path)["prompt"]] == ["One", "Two"]
