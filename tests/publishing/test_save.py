import json
import re
import subprocess
import sys

import pytest
import yaml
from datasets import Dataset, load_dataset

from persyn_hf.errors import DataError, MissingColumnError, PublishError
from persyn_hf.publishing import cards
from persyn_hf.publishing.hub import save_personalized
from persyn_hf.publishing.personalize import Kept, count_kept, personalize
from persyn_hf.publishing.plots import plot_run
from persyn_hf.publishing.provenance import Provenance, TeacherShare


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


def test_messages_stay_messages(answers):
    talk = [[{"role": "system", "content": "s"}, {"role": "user", "content": text}] for text in answers["prompt"]]
    data = personalize(answers.remove_columns("prompt").add_column("prompt", talk))
    assert data[0]["prompt"] == talk[0]


def test_nothing_left_is_an_error(answers):
    with pytest.raises(DataError, match="of 3, all failed, were empty or were cut"):
        personalize(answers.select([2, 3, 4]))
    with pytest.raises(MissingColumnError):
        personalize(Dataset.from_dict({"prompt": ["x"]}))


def _code(card):
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def test_the_folder_loads_and_its_snippets_run_without_us(answers, router, tmp_path):
    save_personalized(answers, tmp_path / "run", router=router, license="mit", language=("en",))
    data = load_dataset(str(tmp_path / "run" / "dataset"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(data) == 2 and data[1]["completion"] == [{"role": "assistant", "content": "Two, that is."}]
    card = (tmp_path / "run/dataset/README.md").read_text()
    snippet = _code(card)[0] + "\nimport sys; assert 'persyn_hf' not in sys.modules\n"
    done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Two" not in done.stderr and "One." in done.stdout and "terse" in done.stdout


def test_two_runs_do_not_share_a_cache(answers, tmp_path):
    for name, rows in (("one", [0]), ("two", [1])):
        save_personalized(answers.select(rows), tmp_path / name)
    cache = str(tmp_path / "cache")
    loaded = [
        load_dataset(str(tmp_path / name / "dataset"), split="train", cache_dir=cache)["teacher"][:]
        for name in ("one", "two")
    ]
    assert loaded == [["terse"], ["wordy"]]


def test_card_metadata_and_facts(answers, router, tmp_path):
    run = {"generations": 60, "generations_all": 120, "prompts_source": "org/prompts"}
    save_personalized(answers, tmp_path, router=router, license="mit", language=("en",), run=run)
    _, metadata, body = (tmp_path / "dataset/README.md").read_text().split("---\n", 2)
    facts = yaml.safe_load(metadata)
    assert facts["license"] == "mit" and facts["size_categories"] == ["n<1K"] and "persyn" in facts["tags"]
    assert "| terse | org/small | 1 | 50.0% | 2 |" in body
    assert "1 answer is left out: cut by max" in body and "2.0 times as many" in body
    assert "| this router | 0.550 | 0.450 to 0.650 |" in body
    _, metadata, _ = (tmp_path / "router/README.md").read_text().split("---\n", 2)
    facts = yaml.safe_load(metadata)
    assert facts["pipeline_tag"] == "text-classification" and facts["library_name"] == "transformers"
    assert facts["base_model"] == "org/backbone"
    assert json.loads((tmp_path / "router/config.json").read_text())["persyn"]["student"] == "org/student"


@pytest.mark.parametrize(
    "name", ["</details>", "---", "{{ 7 * 7 }}", "<script>", "\u202egnp.exe", "a\x00b", "x" * 10000, "$a$ | b"]
)
def test_hostile_names_stay_text(name, tmp_path):
    provenance = Provenance(teachers=[TeacherShare(name=name, rows=3, share=1.0, completion_tokens=9)], rows=3)
    card = cards.dataset_card(provenance, location="me/data", router_location=None, data_files="data/*")
    body = card.split("---\n", 2)[2]
    assert "</details>" not in body and "<script>" not in body and "49" not in body and "\u202e" not in body
    assert not any(line.strip() == "---" for line in body.splitlines())
    assert len(card) < 10_000
    plot_run(provenance, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_a_failed_save_leaves_the_old_folder(answers, router, tmp_path, monkeypatch):
    save_personalized(answers, tmp_path, router=router)
    before = (tmp_path / "dataset/README.md").read_text()

    def broken(*_, **__):
        raise PublishError("no card")

    monkeypatch.setattr(cards, "dataset_card", broken)
    with pytest.raises(PublishError):
        save_personalized(answers, tmp_path, router=router, license="mit")
    assert (tmp_path / "dataset/README.md").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "router"]


def test_size_categories():
    assert [cards.size_category(n) for n in (1, 999, 1000, 5 * 10**6, 10**8)] == [
        "n<1K", "n<1K", "1K<n<10K", "1M<n<10M", "10M<n<100M",
    ]  # fmt: skip
