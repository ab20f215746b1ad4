import json

import pytest
from datasets import Dataset

from persyn_hf.config import Prompts
from persyn_hf.errors import ConfigError, DataError, DuplicatePromptError
from persyn_hf.prompts.reading import load_prompts, random_probe


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_strings_and_answers(tmp_path):
    source = _write(tmp_path / "p.jsonl", [{"q": "one", "a": "1"}, {"q": "two", "a": "2"}, {"q": "three", "a": "3"}])
    data = load_prompts(Prompts(source=source, column="q", answer_column="a", limit=2))
    assert data.column_names == ["prompt_id", "prompt", "answer"]
    assert list(data["prompt"]) == ["one", "two"] and list(data["answer"]) == ["1", "2"]


def test_messages_and_saved_folders(tmp_path):
    talk = [
        [{"role": "user", "content": "one"}],
        [{"role": "system", "content": "s"}, {"role": "user", "content": "t"}],
    ]
    Dataset.from_dict({"prompt": talk}).save_to_disk(tmp_path / "saved")
    data = load_prompts(Prompts(source=str(tmp_path / "saved")))
    assert list(data["prompt"]) == talk


def test_empty_and_repeated_prompts_name_the_row(tmp_path):
    with pytest.raises(DataError, match="row 1: A prompt is empty"):
        load_prompts(Prompts(source=_write(tmp_path / "a.jsonl", [{"prompt": "x"}, {"prompt": " "}])))
    with pytest.raises(DuplicatePromptError, match="1 rows repeat"):
        load_prompts(Prompts(source=_write(tmp_path / "b.jsonl", [{"prompt": "x"}, {"prompt": "x"}])))


def test_unreadable_sources(tmp_path):
    (tmp_path / "c.jsonl").write_text("{nonsense")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_prompts(Prompts(source=str(tmp_path / "c.jsonl")))
    (tmp_path / "d.docx").write_text("x")
    with pytest.raises(ConfigError, match="must end in"):
        load_prompts(Prompts(source=str(tmp_path / "d.docx")))


def test_the_probe_is_seeded_and_in_order(tmp_path):
    rows = [{"prompt": str(index)} for index in range(100)]
    data = load_prompts(Prompts(source=_write(tmp_path / "e.jsonl", rows)))
    probe = [int(prompt) for prompt in random_probe(data, 20, seed=1)["prompt"]]
    assert probe == sorted(probe) and len(set(probe)) == 20
    assert probe == [int(prompt) for prompt in random_probe(data, 20, seed=1)["prompt"]]
    assert probe != [int(prompt) for prompt in random_probe(data, 20, seed=2)["prompt"]]
