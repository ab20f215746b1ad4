"""What is written into folders: the table, the shards, the facts."""

import datetime
import decimal
import itertools
import json
import re
from random import Random

import numpy as np
import pyarrow as pa
import pytest
import yaml
from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset

from persyn_hf import load_personalized
from persyn_hf.errors import DataError, MissingColumnError, PublishError
from persyn_hf.personalize import Kept, count_kept, personalize
from persyn_hf.publishing import cards
from persyn_hf.publishing.checks import license_warnings
from persyn_hf.publishing.contents import read_facts
from persyn_hf.publishing.leaks import find_in_tables, find_in_text
from persyn_hf.publishing.parquet import digest, plan_shards
from persyn_hf.publishing.personalized import save_personalized
from persyn_hf.publishing.provenance import Provenance, TeacherShare, gather, run_costs
from persyn_hf.tables import pieces
from tests.publishing.conftest import make_answers, make_data
from tests.publishing.routers import PERSYN


def test_personalize_keeps_only_whole_answers(answers):
    data = personalize(answers)
    assert set(data.column_names) == {
        "prompt", "completion", "prompt_id", "teacher", "route_scores", "finish_reason", "prompt_tokens",
        "completion_tokens",
    }  # fmt: skip
    assert data[0]["prompt"] == [{"role": "user", "content": "one?"}]
    assert data[1]["completion"] == [{"role": "assistant", "content": "Two, that is."}]
    assert list(data["prompt_id"]) == ["1", "2"] and list(data["teacher"]) == ["terse", "wordy"]
    assert count_kept(answers) == Kept(rows=2, failed=1, truncated=1, empty=1)
    assert count_kept(answers).share == 0.4
    assert list(personalize(answers, keep_truncated=True)["prompt_id"]) == ["1", "2", "3"]


@pytest.mark.parametrize("number", ["turn", "sample", "attempt"])
def test_the_numbers_of_rows_go_where_the_rows_go(answers, number, tmp_path):
    numbered = answers.add_column(number, [0, 3, 0, 0, 0])
    data = personalize(numbered)
    assert data[number][:] == [0, 3]
    assert data.remove_columns(number).to_list() == personalize(answers).to_list()
    splits = DatasetDict({"train": numbered.select([1]), "test": numbered.select([0])})
    save_personalized(splits, tmp_path, license="mit")
    loaded = load_personalized(tmp_path, cache_dir=tmp_path / "cache").dataset
    assert (loaded["train"][number][:], loaded["test"][number][:]) == ([3], [0])


def test_messages_stay_messages(answers):
    talk = [[{"role": "system", "content": "s"}, {"role": "user", "content": text}] for text in answers["prompt"]]
    data = personalize(answers.remove_columns("prompt").add_column("prompt", talk))
    assert data[0]["prompt"] == talk[0]


def test_nothing_left_is_an_error(answers):
    with pytest.raises(DataError, match="all 3 failed, were empty or were truncated"):
        personalize(answers.select([2, 3, 4]))
    with pytest.raises(MissingColumnError):
        personalize(Dataset.from_dict({"prompt": ["x"]}))


def test_an_empty_prompt_is_an_error():
    with pytest.raises(DataError, match="A prompt is empty"):
        personalize(make_answers([("1", " \u2003", "terse", "One.", "stop", 4, 2, None)]))


def test_the_folder_loads_and_the_snippets_of_its_cards_run(answers, router, tmp_path, capsys):
    save_personalized(answers, tmp_path / "run", router=router, license="mit", language=("en",))
    data = load_dataset(str(tmp_path / "run" / "dataset"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(data) == 2 and data[1]["completion"] == [{"role": "assistant", "content": "Two, that is."}]
    for kind in ("dataset", "router"):
        for snippet in re.findall(r"```python\n(.*?)```", (tmp_path / f"run/{kind}/README.md").read_text(), re.DOTALL):
            exec(snippet, {})
    printed = capsys.readouterr().out
    assert "One." in printed and printed.count("'label': 'terse'") == 2
    assert re.search(r"\['(terse|wordy)', '(terse|wordy)'\]", printed)


def test_a_folder_gives_everything_back(answers, router, tmp_path):
    run = {"generations": 60, "generations_all": 120, "prompts_source": "org/prompts"}
    save_personalized(answers, tmp_path / "run", router=router, run=run)
    loaded = load_personalized(tmp_path / "run", cache_dir=tmp_path / "cache")
    assert loaded.dataset.to_list() == personalize(answers).to_list()
    assert loaded.dataset.features == personalize(answers).features
    assert loaded.router.metadata == PERSYN and loaded.revision is None
    facts = gather({"train": personalize(answers)}, PERSYN, **run, dropped=loaded.provenance.dropped,
                   router_repo_id=str(tmp_path / "run/router"))  # fmt: skip
    assert loaded.provenance == facts
    assert loaded.provenance.saved == 2.0 and loaded.provenance.student == "org/student"
    with pytest.raises(PublishError, match="one of the configurations"):
        load_personalized(tmp_path / "run", "student-b")


def test_two_runs_do_not_share_a_cache(answers, tmp_path):
    for name, rows in (("one", [0]), ("two", [1])):
        save_personalized(answers.select(rows), tmp_path / name)
    cache = str(tmp_path / "cache")
    loaded = [
        load_dataset(str(tmp_path / name / "dataset"), split="train", cache_dir=cache)["teacher"][:]
        for name in ("one", "two")
    ]
    assert loaded == [["terse"], ["wordy"]]


def test_a_failed_save_leaves_the_old_folder(answers, router, tmp_path, monkeypatch):
    save_personalized(answers, tmp_path, router=router)
    before = (tmp_path / "dataset/README.md").read_text()

    def broken(*_, **__):
        raise PublishError("no card")

    monkeypatch.setattr(cards, "dataset_body", broken)
    with pytest.raises(PublishError):
        save_personalized(answers, tmp_path, router=router, license="mit")
    assert (tmp_path / "dataset/README.md").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "router"]


def test_the_digest_is_of_rows_and_features_alone():
    data = make_data(*(f"text {n}" for n in range(30)))
    chunked = concatenate_datasets([data.select(range(7)), data.select(range(7, 30))])
    assert digest(chunked) == digest(data) == digest(data.select(list(range(29, -1, -1))).select(range(29, -1, -1)))
    assert digest(data.select(range(29))) != digest(data) != digest(data.rename_column("teacher", "who"))


_CELLS = {
    "text": (pa.string(), ["", "a", "ab", None]),
    "long": (pa.large_string(), ["x", "", None]),
    "bytes": (pa.binary(), [b"", b"\0", None]),
    "flag": (pa.bool_(), [True, False, None]),
    "number": (pa.int16(), [0, 1, -1, None]),
    "score": (pa.float32(), [0.0, 1.5, float("nan"), None]),
    "when": (pa.timestamp("us"), [datetime.datetime(2025, 1, 1), None]),
    "money": (pa.decimal128(6, 2), [decimal.Decimal("1.10"), decimal.Decimal(0), None]),
    "pair": (pa.list_(pa.int64(), 2), [[1, 2], [2, 1], None]),
    "chat": (
        pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        [
            [],
            [{"role": "user", "content": None}],
            [{"role": "a", "content": "b"}, {"role": "", "content": "ab"}],
            None,
        ],
    ),
}


def test_the_digest_sees_every_cell_and_no_chunk():
    random = Random(0)
    schema = pa.schema({name: kind for name, (kind, _) in _CELLS.items()})
    for _ in range(40):
        rows = [{name: random.choice(cells) for name, (_, cells) in _CELLS.items()} for _ in range(17)]
        whole = pa.Table.from_pylist(rows, schema=schema)
        found = digest(Dataset(whole))
        cuts = sorted(random.randrange(18) for _ in range(4))
        parts = [whole.slice(start, end - start) for start, end in itertools.pairwise([0, *cuts, 17])]
        assert digest(Dataset(pa.concat_tables(parts))) == found
        row, name = random.randrange(17), random.choice(list(_CELLS))
        others = [cell for cell in _CELLS[name][1] if repr(cell) != repr(rows[row][name])]
        rows[row] = rows[row] | {name: random.choice(others)}
        assert digest(Dataset(pa.Table.from_pylist(rows, schema=schema))) != found, name


@pytest.mark.parametrize("size", [300, 10**9])
def test_pieces_are_the_table_whatever_it_is_made_of(size, tmp_path, monkeypatch):
    monkeypatch.setattr("persyn_hf.tables.PIECE_BYTES", size)
    monkeypatch.setattr("persyn_hf.publishing.parquet._PIECE_BYTES", size)
    memory = make_data(*(f"text {n}" for n in range(40)))
    memory.save_to_disk(tmp_path / "mapped")
    mapped = Dataset.load_from_disk(tmp_path / "mapped")
    assert mapped.cache_files
    changed = mapped.remove_columns("teacher").add_column("teacher", [f"t{n}" for n in range(40)])
    both = concatenate_datasets([mapped, changed.cast(mapped.features), memory])
    for data in (memory, mapped, changed, both, both.select([5, 3, 100, 7]), mapped.select(range(7, 30))):
        assert [row for table in pieces(data) for row in table.to_pylist()] == data.to_list()
        assert digest(data) == digest(Dataset.from_list(data.to_list(), features=data.features))
        shards = plan_shards({"train": data})["train"]
        (path,) = shards.write(tmp_path / data._fingerprint).values()
        assert Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache")).to_list() == data.to_list()


def test_shards_are_cut_by_size_and_hold_every_row(tmp_path):
    data = make_data(*(f"text {n}" for n in range(100)))
    shards = plan_shards({"train": data}, shard_bytes=data._estimate_nbytes() // 4)["train"]
    written = shards.write(tmp_path)
    assert len(shards.paths) == 5 and list(written) == list(shards.paths)
    assert all(path.startswith("data/train-0000") and "-of-00005-" in path for path in shards.paths)
    again = [row for path in shards.paths for row in Dataset.from_parquet(str(tmp_path / path)).to_list()]
    assert again == data.to_list()
    assert len(plan_shards({"train": data.select([0])}, shard_bytes=1)["train"].paths) == 1


def test_splits_need_names_rows_and_the_same_features(answers, tmp_path):
    whole = personalize(answers)
    save_personalized(DatasetDict(train=whole, test=whole.select([0])), tmp_path)
    loaded = load_dataset(str(tmp_path / "dataset"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 2, "test": 1}
    for data, message in [
        (DatasetDict(train=whole, test=whole.remove_columns("prompt_id")), "the same features"),
        (DatasetDict({"a-b": whole}), "A split's name"),
        (DatasetDict(train=whole.select([])), "must have at least one row"),
        (DatasetDict(), "at least one split"),
    ]:
        with pytest.raises(DataError, match=message):
            save_personalized(data, tmp_path / "wrong")


def test_facts_of_a_later_version_or_damaged_ones_are_refused():
    with pytest.raises(PublishError, match="upgrade"):
        read_facts('{"format": 2, "configs": {}}', "facts")
    for text in ("{", "[]", '{"format": 1}', '{"format": 1, "configs": {"default": {}}}'):
        with pytest.raises(PublishError):
            read_facts(text, "facts")


def test_what_a_run_cost(answers):
    prices = {"terse": (1.0, 10.0), "wordy": (2.0, 20.0)}
    data = personalize(answers)
    shares = gather({"train": data}, PERSYN, prices=prices).teachers
    assert [share.cost for share in shares] == pytest.approx([24e-6, 108e-6])
    paid, everything = run_costs((answers, answers.select([0])), prices, 10)
    # one and five cost 24 and 14 millionths of a dollar, two and three 108 and 68; the refused one nothing
    assert paid == pytest.approx(214e-6)
    assert everything == pytest.approx(10 * (19e-6 + 88e-6))
    assert run_costs((answers,), {}, 10) == (None, None)
    # The same answer in two tables is one; another sample of it is paid for again.
    again = answers.select([0, 0]).add_column("sample", [0, 1])
    assert run_costs((answers, again), prices, 10)[0] == pytest.approx((214 + 24) * 1e-6)


def test_strengths_are_linear_in_the_reward():
    scored = Dataset.from_dict(
        {
            "prompt_id": ["a", "a", "b", "b", "c"], "teacher": ["t", "u", "t", "u", "t"],
            "quality": [0.0, 1.0, 4.0, 2.0, None], "learnability": [-1.0, -3.0, -2.0, -2.5, -1.0],
            "reward": [0.4, 0.6, 1.0, 0.0, None],
        }
    )  # fmt: skip
    block = {"teachers": [{"name": "t"}, {"name": "u"}], "reward": {"alpha": 0.4, "normalization": "minmax"}}
    shares = gather({"train": make_data("x", teacher="t")}, block, scored=scored).teachers
    first, second = (share.strength for share in shares)
    assert (first.answers, first.quality, first.learnability) == (2, 2.0, -1.5)
    assert (first.normalized_quality, first.normalized_learnability) == (0.5, 1.0)
    for strength in (first, second):
        mixed = 0.6 * strength.normalized_quality + 0.4 * strength.normalized_learnability
        assert strength.reward == pytest.approx(mixed)
    rsr = scored.add_column("learnability_metric", ["rsr"] * 5)
    flipped = gather({"train": make_data("x", teacher="t")}, block, scored=rsr).teachers[0].strength
    assert flipped.normalized_learnability == 0.0


def test_card_metadata_and_facts(answers, router, tmp_path):
    run = {"generations": 60, "generations_all": 120, "cost": 0.5, "cost_all": 12.0, "prompts_source": "org/prompts"}
    save_personalized(answers, tmp_path, router=router, license="mit", language=("en",), run=run)
    _, metadata, body = (tmp_path / "dataset/README.md").read_text().split("---\n", 2)
    facts = yaml.safe_load(metadata)
    assert facts["license"] == "mit" and facts["size_categories"] == ["n<1K"] and "persyn" in facts["tags"]
    assert facts["task_categories"] == ["text-generation"] and facts["language"] == ["en"]
    assert facts["dataset_info"]["splits"][0]["num_examples"] == 2
    link = f"[org/small](https://huggingface.co/org/small/tree/{'b' * 40})"
    assert f"| terse | {link} | bbbbbbbbbbbb | apache-2.0 | 1 | 50.0% | 2 | – |" in body
    assert "- 1 answer: cut by max" in body and "2.0 times as many" in body
    assert "The answers cost \\$0.5; generate-then-select would have cost about \\$12.00" in body
    assert "| PerSyn router | 0.550 | 0.450 to 0.650 |" in body
    _, metadata, body = (tmp_path / "router/README.md").read_text().split("---\n", 2)
    facts = yaml.safe_load(metadata)
    assert facts["pipeline_tag"] == "text-classification" and facts["library_name"] == "transformers"
    assert facts["base_model"] == "org/backbone"
    (result,) = facts["model-index"][0]["results"]
    assert [metric["value"] for metric in result["metrics"]] == [0.55, 0.5, 0.4, 0.8, 0.17]
    assert result["dataset"]["type"] == "org/prompts"
    assert json.loads((tmp_path / "router/config.json").read_text())["persyn"]["student"] == "org/student"


def test_leaks_are_found_at_any_depth_and_only_leaks():
    data = make_data("risky sk-business and hf_short", *["x" * 500] * 3, "key: AKIA" + "Q7" * 8)
    (leak,) = find_in_tables({"train": data})
    assert leak.where == "split train, row 4 (prompt 4), column completion" and leak.kind == "an AWS access key"
    pem = "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEow9fQ2xLw8Zr41TnbV7cKd" * 3 + "\n-----END"
    many = make_data(*["sk-" + "a1" * 12] * 30)
    assert len(find_in_tables({"train": many}, limit=5)) == 5
    assert [leak.kind for leak in find_in_text(f"{pem}\n ghp_" + "aB3" * 12, "f")] == [
        "a GitHub token", "a private key",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "theirs, ours, words",
    [
        ("cc-by-nc-4.0", "mit", "forbids commercial use; the dataset's is mit"),
        ("cc-by-nc-4.0", "cc-by-nc-4.0", None),
        ("cc-by-nd-4.0", "mit", "forbids sharing derived works"),
        ("cc-by-sa-4.0", None, "requires the same licence for derived works; the dataset's is not given"),
        ("Llama3.1", "mit", "have “Llama” in their name"),
        ("apache-2.0", "mit", None),
        (None, "mit", None),
    ],
)
def test_licences_that_do_not_go_together(theirs, ours, words):
    teacher = TeacherShare(name="t", rows=1, share=1.0, completion_tokens=1, license=theirs)
    sentences = license_warnings(ours, [teacher, TeacherShare("idle", 0, 0.0, 0, license="llama3")])
    assert sentences == [] if words is None else words in sentences[0] and len(sentences) == 1


def test_provenance_survives_json():
    shares = [TeacherShare("t", 1, 1.0, 2, sampling={"stop": ["x"]})]
    provenance = Provenance(shares, 1, {"train": 1}, PERSYN, cost=float(np.float64(1.5)))
    again = Provenance.from_dict(json.loads(json.dumps(provenance.to_dict() | {"of_a_later_version": 1})))
    assert again == provenance
