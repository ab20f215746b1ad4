"""Shards: how a table is cut, and the same bytes for the same rows."""

import pyarrow as pa
import pytest
from datasets import Dataset, Features, Value, concatenate_datasets

from persyn_hf.run.shards import ShardedTable, cuts, read_files, write_shard


@pytest.mark.parametrize(
    ("ids", "rows", "parts"),
    [
        ("abcdefg", 3, ["abc", "def", "g"]),
        ("abcdef", 3, ["abc", "def"]),
        ("", 3, [""]),
        ("aaabbc", 1, ["aaa", "bb", "c"]),
        ("abbbc", 2, ["abbb", "c"]),
        ("aaaa", 2, ["aaaa"]),
    ],
)
def test_the_rows_of_a_prompt_stay_together(ids, rows, parts):
    data = Dataset.from_dict({"prompt_id": list(ids)}, features=Features({"prompt_id": Value("string")}))
    assert ["".join(part["prompt_id"][:]) for part in cuts(data, rows)] == parts


def test_the_same_rows_give_the_same_bytes_however_they_lie_in_memory(tmp_path):
    rows = {"prompt_id": [f"{number:05d}" for number in range(3000)], "score": [number / 7 for number in range(3000)]}
    whole = Dataset.from_dict(rows)
    pieces = concatenate_datasets([Dataset(whole.data.table.slice(start, 7)) for start in range(0, 3000, 7)])
    shuffled = whole.select(range(2999, -1, -1)).select(range(2999, -1, -1))
    assert pieces.data.column(0).num_chunks > 400
    digests = set()
    for name, data in (("whole", whole), ("pieces", pieces), ("shuffled", shuffled)):
        out = ShardedTable(tmp_path / f"{name}.parquet")
        digests.add(write_shard(data, out, 0, {"made": "of"}, 0.0).digest)
        assert out.intact(0, out.record(0)) and out.record(0).rows == 3000
    assert len(digests) == 1


def test_types_survive_a_trip_through_a_shard(tmp_path):
    features = Features({"prompt": [{"role": Value("string"), "content": Value("string")}], "empty": Value("float64")})
    data = Dataset.from_dict(
        {"prompt": [[{"role": "user", "content": "Hi"}], []], "empty": [None, None]}, features=features
    )
    out = ShardedTable(tmp_path / "t.parquet")
    write_shard(data, out, 0, {}, 0.0)
    for read in (out.read(tmp_path / "cache"), out.read(tmp_path / "cache", 0)):
        assert read.features == data.features and read.to_list() == data.to_list()


def test_errors_are_counted_in_the_column_that_says_so(tmp_path):
    data = Dataset.from_dict({"prompt_id": ["a", "b"], "error": ["no", None]})
    out = ShardedTable(tmp_path / "t.parquet")
    assert write_shard(data, out, 0, {}, 0.0, errors="error").errors == 1
    assert write_shard(data, out, 0, {}, 0.0, errors="quality_error").errors == 0
    assert write_shard(data, out, 0, {}, 0.0).errors == 0


def test_a_table_of_no_rows_has_a_shard_with_its_columns(tmp_path):
    data = Dataset.from_dict({"prompt_id": []}, features=Features({"prompt_id": Value("string")}))
    out = ShardedTable(tmp_path / "t.parquet")
    write_shard(next(cuts(data, 5)), out, 0, {}, 0.0)
    assert read_files(out.shards(), None).features == data.features
    assert out.read(tmp_path / "cache").num_rows == 0


def test_surplus_shards_are_removed_with_their_records(tmp_path):
    data = Dataset.from_dict({"prompt_id": ["a"]})
    out = ShardedTable(tmp_path / "t.parquet")
    for index in range(3):
        write_shard(data, out, index, {}, 0.0)
    out.cut(1)
    assert [file.name for file in sorted(out.path.iterdir())] == [".part-00000.json", "part-00000.parquet"]
    assert pa.parquet.read_table(out.path).num_rows == 1
