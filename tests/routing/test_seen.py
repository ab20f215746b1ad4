"""A router knows the prompts that it was trained on, and is not judged on them."""

from __future__ import annotations

import json

import pytest

from persyn_hf import evaluate_router
from persyn_hf.columns import prompt_id
from persyn_hf.errors import DataError
from persyn_hf.routing.evaluate import _cross_validated
from persyn_hf.routing.router import PersynRouter
from persyn_hf.routing.seen import seen_prompts, seen_record

from .conftest import make_scored


def test_a_record_is_short_and_tells_prompts_of_both_kinds():
    prompts = ["Hi", "What is 2 + 2?"]
    record = seen_record(prompts)
    assert record["prompts"] == 2 and record["ids"] == "".join(sorted(prompt_id(one)[:8] for one in prompts))
    asked = [[{"role": "user", "content": "Hi"}], "Hello", "What is 2 + 2?"]
    assert seen_prompts({"probe_prompts": record}, asked).tolist() == [True, False, True]
    wider = seen_record(["Hello"], record)
    assert wider["prompts"] == 3 and wider["digest"] != record["digest"]
    assert seen_prompts({"probe_prompts": wider}, asked).all()
    assert seen_prompts({}, asked) is None
    assert len(json.dumps(seen_record([str(number) for number in range(2500)]))) < 21_000


def test_its_own_probe_is_refused_with_the_cross_validated_figures(router_folder, scored):
    router = PersynRouter.from_pretrained(router_folder)
    held_out = router.metadata["held_out"]
    with pytest.raises(DataError) as error:
        evaluate_router(router, scored, show=False)
    assert _cross_validated({"held_out": {"router": "x", "oracle": {"mean": None}}}) == ""
    for words in (
        "trained on 120 of these 120 prompts",
        f"best single teacher {held_out['best_single']['mean']:.3f}",
        f"gap closed {held_out['gap_closed']['mean']:.3f}",
        "other prompts",
    ):
        assert words in str(error.value)


def test_prompts_that_it_knows_are_left_out_with_a_warning(router_folder, scored):
    router = PersynRouter.from_pretrained(router_folder)
    fresh = make_scored(30, seed=77).to_list()
    alone = evaluate_router(router, fresh, show=False)
    with pytest.warns(UserWarning, match="trained on 120 of these 150 prompts; they are left out, and 30 are"):
        mixed = evaluate_router(router, [*scored.to_list(), *fresh], show=False)
    assert mixed.prompts == alone.prompts == 30
    assert mixed.policies["router"] == alone.policies["router"]


def test_a_router_of_an_earlier_version_says_that_it_does_not_know(router_folder, scored, tmp_path):
    PersynRouter.from_pretrained(router_folder).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["persyn"]["probe_prompts"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="does not record its training prompts"):
        assert evaluate_router(PersynRouter.from_pretrained(tmp_path), scored, show=False).prompts == 120
