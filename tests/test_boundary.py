"""What is easily passed in the place of a table is refused with a sentence that says what to pass."""

from pathlib import Path

import pandas
import pyarrow
import pytest
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

import persyn_hf
from persyn_hf.errors import DataError

TABLE = {"prompt": ["How do tides work?", "Name a river."], "id": [1, 2]}
SPLITS = DatasetDict({"train": Dataset.from_dict(TABLE), "test": Dataset.from_dict(TABLE)})
STREAM = IterableDataset.from_generator(lambda: iter([{"prompt": "Hi"}]))


class _Frame:
    """A stand-in for the frames of polars, which the tests do without."""

    columns = ("prompt", "id")

    def __iter__(self):
        return iter(self.columns)


_Frame.__module__, _Frame.__name__ = "polars.dataframe.frame", "DataFrame"

GIVEN = {
    "splits": (SPLITS, r'holds the splits train, test; pass one of them, `NAME\["train"\]`'),
    "streamed splits": (IterableDatasetDict({"dev": STREAM}), r'holds the splits dev; pass one .* `NAME\["dev"\]`'),
    "pandas": (pandas.DataFrame(TABLE), r"is a pandas DataFrame; pass `Dataset\.from_pandas\(NAME\)`"),
    "polars": (_Frame(), r"is a polars DataFrame; pass `Dataset\.from_polars\(NAME\)`"),
    "arrow": (pyarrow.table(TABLE), r"is a pyarrow Table; pass `Dataset\(NAME\)`"),
    "columns": (TABLE, r"is a mapping with the keys prompt, id; pass `Dataset\.from_dict\(NAME\)` if"),
    "text": ("abc", r'is a str; pass a `Dataset`: .*`load_dataset\(\.\.\., split="train"\)`'),
    "path": (Path("p.jsonl"), r"is a path; pass a `Dataset`"),
    "nothing": (None, r"is None; pass a `Dataset`"),
}

CALLS = {
    "generate_parallel": (lambda given: persyn_hf.generate_parallel(given, [{}]), "prompts"),
    "generate_routed": (lambda given: persyn_hf.generate_routed(given, [{}]), "routed"),
    "score": (lambda given: persyn_hf.score(given, "student", None), "answers"),
    "train_router": (lambda given: persyn_hf.train_router(given, "backbone"), "scored"),
    "allocate": (lambda given: persyn_hf.allocate(given, ["a", "b"]), "routed"),
    "personalize": (persyn_hf.personalize, "answers"),
    "train_student": (lambda given: persyn_hf.train_student(given, "student", "out"), "data"),
    "save_personalized": (lambda given: persyn_hf.save_personalized(given, "out"), "data"),
}


@pytest.fixture(autouse=True)
def plain_teachers(monkeypatch):
    """Teachers are checked before the table; here they are of no interest."""
    monkeypatch.setattr("persyn_hf.generation.generate._teachers", lambda teachers: [])
    monkeypatch.setattr("persyn_hf.students.train.resolve_revision", lambda student, revision: "r")


@pytest.mark.parametrize("kind", GIVEN)
@pytest.mark.parametrize("call", CALLS)
def test_no_table_is_refused(call, kind):
    given, said = GIVEN[kind]
    if call == "save_personalized" and "splits" in kind:
        pytest.skip("splits are pushed as splits")
    if call == "train_student" and kind in ("text", "path"):
        pytest.skip("it reads where a table is")
    work, name = CALLS[call]
    stage = "push" if call == "save_personalized" else call
    with pytest.raises(DataError, match=f"^{stage}: `{name}` {said.replace('NAME', name)}"):
        work(given)


@pytest.mark.parametrize("call", ["score", "personalize", "train_student", "allocate"])
def test_rows_and_streams_are_refused_where_a_dataset_is_needed(call):
    work, name = CALLS[call]
    with pytest.raises(DataError, match=rf"is a list; pass a `Dataset`, for rows `Dataset\.from_list\(list\({name}"):
        work([{"prompt": "Hi"}])
    with pytest.raises(DataError, match=rf"`{name}` is .*`Dataset\.from_list\(list\({name}\)\)`"):
        work(STREAM)


@pytest.mark.parametrize("given", [SPLITS, SPLITS["train"], pandas.DataFrame(TABLE), "abc", None])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("persyn_route", {"router": "r"}),
        ("persyn_learnability", {"student": "s"}),
        ("persyn_quality", {"verifier": "math"}),
        ("persyn_generate", {"teacher": {}}),
    ],
)
def test_map_functions_say_that_they_are_for_map(name, options, given):
    with pytest.raises(DataError, match=rf"^{name}: expected a row or a batch of rows, got a .*dataset\.map\({name},"):
        getattr(persyn_hf, name)(given, **options)


def test_a_prompt_that_ends_with_an_answer_is_refused_by_every_function():
    talk = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    said = "A prompt ends with an assistant's turn, '4'"
    with pytest.raises(DataError, match=said):
        persyn_hf.prompt_id(talk)
    with pytest.raises(DataError, match=said):
        persyn_hf.generate_parallel([{"prompt": talk}], [{}])
