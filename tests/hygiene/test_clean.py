"""Prompts that leave before anything is asked."""

import numpy as np
import pytest
from datasets import Dataset
from model2vec import StaticModel
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers

from persyn_hf.columns import prompt_id
from persyn_hf.config import Hygiene
from persyn_hf.errors import ConfigError
from persyn_hf.hygiene.clean import clean_prompts
from persyn_hf.hygiene.contamination import Contamination
from persyn_hf.hygiene.duplicates import near_duplicates, same_meaning, signatures
from persyn_hf.hygiene.words import words
from persyn_hf.models.loading import load_static_model

STORY = "A long story about the sea and the wind and the ship that sails home at "


def prompts(*texts):
    return Dataset.from_dict({"prompt_id": [prompt_id(text) for text in texts], "prompt": list(texts)})


def test_words_are_folded_and_numbers_stay_whole():
    assert words("Ｗhat is 3.5 + ２?  Élan, l'été") == ["what", "is", "3.5", "2", "élan", "l", "été"]
    assert words("今天天气 good") == ["今", "天", "天", "气", "good"]


def test_a_repeated_prompt_leaves_and_the_first_one_stays():
    cleaned = clean_prompts(prompts("One", "Two", "One", "One"), Hygiene())
    assert cleaned.prompts["prompt"][:] == ["One", "Two"]
    assert [(drop.row, drop.reason, drop.repeats) for drop in cleaned.drops] == [
        (2, "duplicate", 0),
        (3, "duplicate", 0),
    ]
    assert cleaned.counts == {"duplicate": 2}


def test_without_dedup_nothing_leaves():
    table = prompts("One", "One")
    assert clean_prompts(table, Hygiene(dedup=None)).prompts is table


def test_near_duplicates_by_their_words():
    texts = [
        "What is 17 + 25?",
        "What is 18 + 25?",
        "what is 17+25",
        STORY + "night",
        STORY + "night again",
        "Hi",
        "?",
    ]
    assert near_duplicates(texts, 0.8) == {2: 0, 4: 3}
    assert near_duplicates(texts, 1.0) == {2: 0}


def test_signatures_of_shards_are_those_of_the_whole():
    texts = [STORY + str(number) for number in range(20)] + ["", "…"]
    whole = signatures(texts)
    assert whole.shape == (22, 128)
    assert np.array_equal(whole, np.concatenate([signatures(texts[:7]), signatures(texts[7:])]))
    assert near_duplicates(texts, 0.8, whole) == near_duplicates(texts, 0.8)


def test_near_duplicates_of_a_large_random_set_are_those_that_were_planted():
    drawn = np.random.default_rng(0)
    names = [f"word{chr(97 + a)}{chr(97 + b)}" for a in range(20) for b in range(20)]
    texts = [" ".join(drawn.choice(names, size=30)) for _ in range(400)]
    planted = [texts[row] + " please" for row in range(0, 400, 10)]
    assert near_duplicates(texts + planted, 0.8) == {400 + place: 10 * place for place in range(40)}


@pytest.fixture
def model(tmp_path):
    vocabulary = {"[UNK]": 0, "cat": 1, "feline": 2, "runs": 3, "stock": 4, "market": 5}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    vectors = np.eye(6, 8, dtype=np.float32)
    vectors[2] = vectors[1] + 0.05 * vectors[5]
    StaticModel(vectors, tokenizer).save_pretrained(str(tmp_path / "model"))
    return str(tmp_path / "model")


def test_near_duplicates_by_their_meaning(model):
    assert same_meaning(["cat runs", "stock market", "feline runs"], 0.9, load_static_model(model, "m")) == {2: 0}
    cleaned = clean_prompts(
        prompts("cat runs", "stock market", "feline runs"),
        Hygiene(dedup="near", dedup_threshold=0.9, dedup_model=model),
        encoder=load_static_model(model, "m"),
    )
    assert [(drop.row, drop.reason, drop.repeats) for drop in cleaned.drops] == [(2, "near_duplicate", 0)]


def test_a_model_that_is_none_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"`hygiene\.dedup_model`"):
        load_static_model(str(tmp_path / "nowhere"), "`hygiene.dedup_model`")


def test_a_long_benchmark_text_is_found_inside_a_prompt():
    question = "Natalia sold clips to 48 of her friends in April and then she sold half as many clips in May"
    benchmark = Contamination.of([question])
    assert benchmark.holds(f"Solve this. {question.upper()}. Show your work!")
    assert benchmark.holds("Before " + " ".join(question.split()[2:15]) + " after")
    assert not benchmark.holds("Before " + " ".join(question.split()[2:14]) + " after")
    assert not benchmark.holds(question.replace("clips", "cakes").replace("friends", "cousins"))


def test_the_template_that_a_benchmark_s_texts_share_contaminates_nothing():
    frame = "Answer the question below step by step and write the final answer behind four hashes: "
    asked = [f"{frame}how many {fruit} has Ada?" for fruit in ("apples", "pears", "plums")]
    benchmark = Contamination.of(asked)
    assert all(map(benchmark.holds, asked))
    assert not benchmark.holds(f"{frame}where is the sea?")


def test_a_short_benchmark_text_is_found_as_a_whole():
    benchmark = Contamination.of(["What is the capital city of France?", "Why?", "", "   "])
    assert benchmark.holds("In a word: what is the capital city of France")
    assert not benchmark.holds("What is the capital of France?")
    assert benchmark.holds("why")
    assert not benchmark.holds("Why is the sky blue?")
    assert not Contamination.of([""])


def test_every_reason_is_counted_once_and_duplicates_come_first():
    texts = [
        STORY + "night",
        STORY + "night",
        "Hi",
        STORY + "night again",
        STORY * 5,
        "Where does the old tower stand now?",
    ]
    cleaned = clean_prompts(
        prompts(*texts),
        Hygiene(dedup="near", min_tokens=2, max_tokens=40),
        Contamination.of(["where does the old tower stand now"]),
        count_tokens=lambda batch: [len(text.split()) for text in batch],
    )
    assert [(drop.row, drop.reason) for drop in cleaned.drops] == [
        (1, "duplicate"),
        (2, "too_short"),
        (3, "near_duplicate"),
        (4, "too_long"),
        (5, "contaminated"),
    ]
    assert cleaned.prompts["prompt"][:] == [STORY + "night"]


def test_what_leaves_by_itself_makes_no_duplicate_of_another():
    long = STORY * 5
    cleaned = clean_prompts(
        prompts(long, long + "night"),
        Hygiene(dedup="near", max_tokens=71),
        count_tokens=lambda batch: [72 if text == long else 70 for text in batch],
    )
    assert [(drop.row, drop.reason) for drop in cleaned.drops] == [(0, "too_long")]


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ValidationError, match=r"`min_tokens` \(9\) is above `max_tokens` \(3\)"):
        Hygiene(min_tokens=9, max_tokens=3)
    with pytest.raises(ValidationError, match=r"`dedup_model` needs `dedup: near`"):
        Hygiene(dedup_model="potion")
