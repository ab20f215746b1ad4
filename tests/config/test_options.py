"""Options of functions: declared in a section, given as the section, a mapping or keywords, and refused by it."""

import inspect

import numpy as np
import pytest
from datasets import Dataset

import persyn_hf
from persyn_hf.config import Allocation, Compare, Publish, Reward, Router, Student, default_of, merged, read_settings
from persyn_hf.config.allocation import AllocationOptions
from persyn_hf.errors import ConfigError
from persyn_hf.publishing.cards import student_card
from persyn_hf.routing.allocation.allocate import allocate
from persyn_hf.routing.map_function import persyn_route
from persyn_hf.routing.probe import sample_probe
from persyn_hf.routing.training import train_router
from persyn_hf.scoring.learnability import persyn_learnability
from persyn_hf.scoring.quality import persyn_quality
from persyn_hf.scoring.score import score
from persyn_hf.students.train import train_student

ANSWERS = Dataset.from_dict(
    {"prompt_id": ["0" * 16], "prompt": ["p"], "teacher": ["a"], "completion": ["c"], "answer": ["c"]}
)
BATCH = {"prompt": ["p"], "completion": ["c"], "answer": ["c"]}


def test_keywords_replace_what_a_section_or_a_mapping_says():
    section = Router(backbone="org/b", folds=3)
    assert merged(Router, section, {}, "f") is section
    assert merged(Router, section, {"folds": 4}, "f") == Router(backbone="org/b", folds=4)
    assert merged(Router, {"backbone": "org/b"}, {"folds": 4}, "f") == Router(backbone="org/b", folds=4)
    assert merged(Reward, None, {}, "f") == Reward()
    assert merged(AllocationOptions, Allocation(top_k=2, prompt_tokens=3.0), {"scale": "reward"}, "f") == (
        AllocationOptions(top_k=2, scale="reward")
    )


def test_numbers_of_numpy_are_numbers():
    given = {"top_k": np.int64(2), "temperature": np.float32(0.5), "max_share": {"a": np.float32(0.25)}}
    made = merged(AllocationOptions, None, given, "f")
    assert (made.top_k, made.temperature, made.max_share) == (2, 0.5, {"a": 0.25})
    with pytest.raises(ConfigError, match="must be a non-negative number"):
        merged(AllocationOptions, None, {"max_share": True}, "f")


@pytest.mark.parametrize(
    ("section", "options", "says"),
    [
        (Reward, {"alpha": 2}, "f: `alpha` must be between 0 and 1, got 2."),
        (Router, {"backbone": "b", "folds": 1}, "f: `folds` must be at least 2, got 1."),
        (Router, {"backbone": "b", "learning_rate": 0}, "f: `learning_rate` must be more than 0, got 0."),
        (Reward, {"normalization": "x"}, "f: `normalization` must be one of minmax, zscore, rank, got 'x'."),
        (Router, {}, "f: give exactly one of `backbone` (to train a router) and `pretrained` (to use one)."),
        (Student, {"model": "m", "metrics": ("x",)}, "f: `metrics[0]`: Input should be"),
        (
            Reward,
            {"gamma": 1},
            "f: `gamma` is not an option; the options are alpha, learnability_metric, normalization.",
        ),
        (Compare, {"car_beta": 1}, "f: `car_beta` is called `beta` now."),
    ],
)
def test_a_section_refuses_what_is_wrong_and_says_what_is_right(section, options, says):
    with pytest.raises(ConfigError) as raised:
        merged(section, None, options, "f")
    assert str(raised.value).startswith(says)


def test_a_text_of_a_mapping_is_not_repeated():
    with pytest.raises(ConfigError) as raised:
        merged(Reward, {"normalization": "hf_secret"}, {"alpha": 0.5}, "f")
    assert "hf_secret" not in str(raised.value)


@pytest.mark.parametrize("wrong", ["regression", 3, Reward()])
def test_settings_of_another_kind_are_refused(wrong):
    with pytest.raises(ConfigError, match="`settings` must be Router"):
        merged(Router, wrong, {}, "f")


UNKNOWN = [
    (lambda **o: train_router([], "b", **o), "train_router", "folds"),
    (lambda **o: score(ANSWERS, "s", "exact", **o), "score", "alpha"),
    (lambda **o: score(ANSWERS, Student(model="s"), "exact", **o), "score", "token_budget"),
    (lambda **o: allocate(np.zeros((2, 2)), ["a", "b"], **o), "allocate", "max_share"),
    (lambda **o: persyn_hf.push_personalized(ANSWERS, "me/d", **o), "push_personalized", "private"),
    (lambda **o: persyn_hf.save_personalized(ANSWERS, "nowhere", **o), "save_personalized", "keep_truncated"),
    (lambda **o: persyn_learnability(BATCH, student="s", **o), "persyn_learnability", "student_endpoint"),
    (lambda **o: persyn_quality(BATCH, verifier="exact", **o), "persyn_quality", "token_budget"),
    (lambda **o: persyn_route({"prompt": "p"}, router="r", **o), "persyn_route", "endpoint"),
    (lambda **o: sample_probe(ANSWERS, 1, **o), "sample_probe", "backbone"),
    (lambda **o: train_student(ANSWERS, "s", "nowhere", **o), "train_student", "max_steps"),
    (lambda **o: persyn_hf.generate_parallel(["p"], [], **o), "generate_parallel", "max_cost"),
    (lambda **o: persyn_hf.generate_routed([], [], **o), "generate_routed", "drop_truncated"),
    (lambda **o: student_card({}, location="me/s", **o), "student_card", "license"),
]


@pytest.mark.parametrize(("call", "name", "known"), UNKNOWN, ids=[f"{n}-{k}" for _, n, k in UNKNOWN])
def test_every_function_names_an_unknown_option_and_the_known_ones(call, name, known):
    with pytest.raises(ConfigError, match=rf"{name}: `foldz` is not an option; the options are .*\b{known}\b"):
        call(foldz=3)


def test_save_takes_no_option_of_a_push():
    with pytest.raises(ConfigError, match="`private` is not an option"):
        persyn_hf.save_personalized(ANSWERS, "nowhere", private=False)


def test_options_of_the_student_beside_its_section_are_an_error():
    with pytest.raises(ConfigError, match="`device`, `dtype`, `student_revision` must be set in the section"):
        score(ANSWERS, Student(model="s"), "exact", dtype="float32", device="cpu", student_revision="v1")
    with pytest.raises(ConfigError, match="`dtype` cannot be set for a student behind a server"):
        score(ANSWERS, "s", "exact", dtype="float32", student_endpoint="http://127.0.0.1:1")
    with pytest.raises(ConfigError, match="needs `system_prompts`"):
        score(ANSWERS, Student(model="s", teacher_system_prompts=True), "exact")


def test_old_names_of_the_comparison_are_refused_with_the_new_ones():
    base = {"students": [{"name": "s", "model": "m"}], "held_out": {"source": "p.jsonl"}}
    assert read_settings(Compare, {**base, "strong_share": 0.2, "beta": 1.0}, "here").beta == 1.0
    with pytest.raises(ConfigError, match="here: `mix_strong_share`: unknown key; it is called `strong_share` now"):
        read_settings(Compare, {**base, "mix_strong_share": 0.2}, "here")
    nested = {"output_dir": "o", "compare": {**base, "car_beta": 1.0}}
    with pytest.raises(ConfigError, match=r"`compare\.car_beta`: unknown key; it is called `beta` now"):
        persyn_hf.RunConfig.from_dict(nested)


def test_what_allocation_and_compare_share_has_one_name_default_and_bound():
    shared = set(AllocationOptions.model_fields) & set(Compare.model_fields)
    assert shared == {"strong_share", "beta"}
    for name in shared:
        assert default_of(Allocation, name) == default_of(Compare, name)
        assert str(Allocation.model_fields[name].metadata) == str(Compare.model_fields[name].metadata)


def test_a_section_goes_through_as_a_whole():
    scores = np.array([[2.0, 0.0], [1.0, 0.5], [0.3, 0.0]])
    section = Allocation(max_share={"large": 0.4})
    assert allocate(scores, ["large", "small"], settings=section).routes == ["large", "small", "small"]
    assert allocate(scores, ["large", "small"], settings=section, max_share=None).routes == ["large"] * 3
    assert allocate(scores, ["large", "small"], settings={"max_share": {"large": 0.4}}).counts["large"] == 1


def test_no_function_has_a_default_of_its_own_for_an_option():
    for function, section in (
        (train_router, Router),
        (score, Reward),
        (score, Student),
        (allocate, Allocation),
        (persyn_hf.push_personalized, Publish),
        (persyn_hf.save_personalized, Publish),
        (persyn_learnability, Student),
    ):
        own = {
            name
            for name, one in inspect.signature(function).parameters.items()
            if name in section.model_fields and one.default not in (None, inspect.Parameter.empty)
        }
        assert own == set(), function.__name__


def test_the_map_functions_hash_alike_and_map_in_workers():
    from datasets.fingerprint import Hasher

    given = {"verifier": "exact", "token_budget": 4}
    assert Hasher.hash((persyn_quality, given)) == Hasher.hash((persyn_quality, dict(given)))
    table = Dataset.from_dict({name: values * 4 for name, values in BATCH.items()})
    for how in ({"batched": True}, {}):
        made = table.map(persyn_quality, num_proc=2, with_rank=True, fn_kwargs={"verifier": "exact"}, **how)
        assert made["quality"][:] == [1.0] * 4
