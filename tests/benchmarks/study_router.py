"""What routers earn on real answers: objective × backbone × frozen or tuned × alpha, on seeded 2:1 splits.

    python -m tests.benchmarks.study_router --data FOLDER --learnability CACHE.jsonl

FOLDER holds `instruct_zoo.parquet` and `math_zoo.parquet` with `prompt_id, prompt, teacher, completion, quality`. The
cache holds one line per answer: `prompt_id, teacher, learnability`; answers that it lacks are scored with the student
and added (`--no-scoring` leaves their prompts out of the alphas that need them). Every figure is the share of the gap
between the best single teacher of the training prompts and the oracle that the router closed on the test prompts.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from persyn_hf import columns
from persyn_hf.routing import backbone as backbones
from persyn_hf.routing.crossval import nearest_rewards
from persyn_hf.routing.heads import OBJECTIVES, POWER, Array, Head, fit_path
from persyn_hf.routing.intervals import bootstrap_means, interval
from persyn_hf.routing.rewards import RewardTable, read_rewards
from persyn_hf.routing.training import fit_head
from persyn_hf.scoring.reward import add_rewards

ROOT = Path(__file__).parents[2]
MINILM, SMOLLM = str(ROOT / ".models/all-MiniLM-L6-v2"), str(ROOT / ".models/SmolLM2-135M-Instruct")
#: Name in the table, weights, share of a BERT's layers that is kept; `None` is the stock classifier as `transformers`
#: makes it: a BERT reads its pooled first token, a decoder the last token of the bare prompt.
BACKBONES: dict[str, tuple[str, str, float | None]] = {
    "minilm": ("MiniLM, 2/3 of its layers", MINILM, 2 / 3),
    "minilm-all": ("MiniLM, all layers", MINILM, 1.0),
    "minilm-stock": ("MiniLM, stock", MINILM, None),
    "smollm2": ("SmolLM2-135M-Instruct in its chat template", SMOLLM, 1.0),
    "smollm2-stock": ("SmolLM2-135M-Instruct, stock", SMOLLM, None),
}
#: Plain Bradley–Terry, the reference: a linear head, a little weight decay, no choice of strength, no fallback. This
#: decay is within 0.015 of the best of 1e-2 … 1e-7 on the test prompts: more than the reference could know.
PLAIN_DECAY = 3e-4
#: Bradley–Terry as it is often written: the stock head from its random start, AdamW without decay, eight prompts a
#: step, a rate that falls to zero; no choice of anything. The rate and the epochs; the first are `Trainer`'s defaults.
RECIPES = ((5e-5, 3), (1e-3, 3), (1e-3, 10), (1e-3, 30))


@dataclass(frozen=True)
class Embedded:
    """What the final linear map reads of each prompt, shape `(prompts, hidden)`, and whether it has a bias."""

    inputs: Array
    bias: bool

    def features(self, train: Array, power: float) -> backbones.FeatureMap:
        """From inputs to features, as the training prompts have it."""
        return backbones.FeatureMap(self.inputs[train], self.bias, power)


@dataclass(frozen=True)
class Split:
    """What one router did on one split.

    Args:
        gained (`float`): Reward over the best single teacher, summed over the test prompts.
        gap (`float`): The same of the oracle.
        low, high (`float`): Bootstrap 95% interval of the mean gain.
        fell_back (`bool`)
    """

    gained: float
    gap: float
    low: float
    high: float
    fell_back: bool


def main() -> None:
    """Runs the study and prints Markdown."""
    arguments = _arguments()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print("| answers | alpha | prompts | backbone | router | gap closed | splits | fell back | worse |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for zoo in arguments.zoos:
        answers = _answers(arguments, zoo)
        for backbone in arguments.backbones:
            label, weights, depth = BACKBONES[backbone]
            inputs, bias = _embed(answers, weights, depth)
            for alpha in arguments.alphas:
                table = _rewarded(answers, alpha)
                if table is None:
                    continue
                embedded = Embedded(np.stack([inputs[identity] for identity in table.ids]), bias)
                for router, splits in _routers(arguments, table, embedded, weights, depth):
                    cells = (zoo, f"{alpha:g}", len(table.ids), label, router, *_summary(splits))
                    print("|", " | ".join(str(cell) for cell in cells), "|", flush=True)


def _routers(
    arguments: Any, table: RewardTable, embedded: Embedded, weights: str, depth: float | None
) -> Iterator[tuple[str, list[Split]]]:
    halves = [_split(len(table.ids), seed) for seed in range(arguments.splits)]
    if arguments.tuning != "frozen":
        for objective in arguments.objectives:
            yield (
                f"{objective}, {arguments.tuning}",
                [_tuned(arguments, table, train, test, objective, weights, depth) for train, test in halves],
            )
        return
    yield "plain Bradley–Terry", [_plain(table, embedded, train, test) for train, test in halves]
    for rate, epochs in RECIPES if arguments.recipes else ():
        name = f"Bradley–Terry, AdamW {rate:g}, {epochs} epochs"
        yield name, [_written(table, embedded, *half, rate, epochs) for half in halves]
    yield "kNN, 20 neighbours", [_knn(table, embedded.inputs, train, test) for train, test in halves]
    for objective in arguments.objectives:
        guarded = [_frozen(table, embedded, train, test, objective, "best-single") for train, test in halves]
        yield objective, guarded
        if any(split.fell_back for split in guarded):
            yield (
                objective + ", no fallback",
                [
                    _frozen(table, embedded, train, test, objective, "none") if split.fell_back else split
                    for split, (train, test) in zip(guarded, halves, strict=True)
                ],
            )


def _frozen(
    table: RewardTable, embedded: Embedded, train: Array, test: Array, objective: str, fallback: str
) -> Split:  # fmt: skip
    part, inputs = _best_first(table, train), embedded.inputs
    features = embedded.features(train, POWER[objective])
    head, report = fit_head(part.subset(train), features(inputs[train]), objective, fallback, 5, 0)
    scores = _scores(embedded, features, head, inputs[test])
    return _judge(part, test, scores.argmax(axis=1), report.fallback is not None)


def _plain(table: RewardTable, embedded: Embedded, train: Array, test: Array) -> Split:
    part, inputs = _best_first(table, train), embedded.inputs
    features = embedded.features(train, power=1.0)
    (head,) = fit_path("bradley-terry", features(inputs[train]), part.rewards[train], (PLAIN_DECAY,))
    return _judge(part, test, _scores(embedded, features, head, inputs[test]).argmax(axis=1), False)


def _written(table: RewardTable, embedded: Embedded, train: Array, test: Array, rate: float, epochs: int) -> Split:
    part, inputs = _best_first(table, train), torch.from_numpy(embedded.inputs).float()
    rewards, known = torch.from_numpy(part.rewards[train]), inputs[train]
    first, second = np.triu_indices(len(part.teachers), 1)
    order = torch.sign(rewards[:, first] - rewards[:, second]).float()
    torch.manual_seed(0)
    head = torch.nn.Linear(inputs.shape[1], len(part.teachers), bias=embedded.bias)
    torch.nn.init.normal_(head.weight, 0, 0.02)  # `initializer_range`
    steps = [batch for _ in range(epochs) for batch in torch.randperm(len(train)).split(8)]
    optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, len(steps))
    for batch in steps:
        scores = head(known[batch])
        losses = torch.nn.functional.softplus(-order[batch] * (scores[:, first] - scores[:, second]))
        optimizer.zero_grad()
        losses[order[batch] != 0].mean().backward()
        optimizer.step()
        falling.step()
    with torch.no_grad():
        return _judge(part, test, head(inputs[test]).numpy().argmax(axis=1), False)


def _scores(embedded: Embedded, features: backbones.FeatureMap, head: Head, inputs: Array) -> Array:
    """As the checkpoint gives them: through the final linear map."""
    linear = torch.nn.Linear(inputs.shape[1], len(head.means), bias=embedded.bias, dtype=torch.float64)
    features.write(head, linear)
    with torch.no_grad():
        scores: Array = linear(torch.from_numpy(inputs)).numpy()
    return scores


def _knn(table: RewardTable, inputs: Array, train: Array, test: Array) -> Split:
    part, center = _best_first(table, train), inputs[train].mean(axis=0)
    near = nearest_rewards(inputs[train] - center, part.rewards[train], inputs[test] - center)
    return _judge(part, test, near.argmax(axis=1), False)


def _tuned(
    arguments: Any, table: RewardTable, train: Array, test: Array, objective: str, weights: str, depth: float | None
) -> Split:
    """Through `train_router` itself, with as many folds as can be waited for."""
    from persyn_hf import train_router

    part = _best_first(table, train)
    rows = [
        {"prompt_id": part.ids[row], "prompt": part.prompts[row], "teacher": teacher, "reward": reward}
        for row in train
        for teacher, reward in zip(part.teachers, part.rewards[row], strict=True)
    ]
    backbones.build_classifier.__kwdefaults__["depth"] = depth
    router = train_router(
        Dataset.from_list(rows), weights, "study", objective=objective, tuning=arguments.tuning,
        folds=arguments.folds, epochs=arguments.epochs, max_length=256, progress=sys.stderr.isatty(),
    )  # fmt: skip
    routes = router.routes(router.scores([part.prompts[row] for row in test]))
    return _judge(part, test, np.array([part.teachers.index(name) for name in routes]), router.fallback is not None)


def _judge(table: RewardTable, test: Array, routes: Array, fell_back: bool) -> Split:
    rewards = table.rewards[test]
    gains = rewards[np.arange(len(test)), routes] - rewards[:, 0]
    bounds = interval(gains.mean(), bootstrap_means(gains[:, None])[:, 0])
    gap = float((rewards.max(axis=1) - rewards[:, 0]).sum())
    return Split(float(gains.sum()), gap, bounds.low, bounds.high, fell_back)


def _summary(splits: list[Split]) -> tuple[str, str, int, int]:
    closed = sum(split.gained for split in splits) / max(sum(split.gap for split in splits), 1e-12)
    each = " ".join(f"{split.gained / max(split.gap, 1e-12):+.2f}" for split in splits)
    return (
        f"{closed:+.3f}", each, sum(split.fell_back for split in splits), sum(split.high < 0 for split in splits),
    )  # fmt: skip


def _split(count: int, seed: int) -> tuple[Array, Array]:
    order = np.random.default_rng(seed).permutation(count)
    return order[: count * 2 // 3], order[count * 2 // 3 :]


def _best_first(table: RewardTable, train: Array) -> RewardTable:
    """The columns in the order of the training prompts' means: column 0 is the best single teacher."""
    means = table.subset(train).means
    return table.reordered([table.teachers[column] for column in np.argsort(-means, kind="stable")])


def _embed(answers: Dataset, weights: str, depth: float | None) -> tuple[dict[str, Array], bool]:
    prompts = dict(zip(answers[columns.PROMPT_ID], answers[columns.PROMPT], strict=True))
    model, tokenizer = (
        _stock(weights)
        if depth is None
        else backbones.build_classifier(
            weights, ["a", "b"], revision=None, max_length=512, dtype=torch.float32, device="cpu", depth=depth
        )
    )
    texts = [columns.prompt_text(prompt) for prompt in prompts.values()]
    inputs = backbones.head_inputs(model, tokenizer, texts, progress=sys.stderr.isatty())
    return dict(zip(prompts, inputs, strict=True)), backbones.final_linear(model)[0]


def _stock(weights: str) -> tuple[Any, Any]:
    """The classifier and the tokenizer that a person loads, nothing of ours about them."""
    model = AutoModelForSequenceClassification.from_pretrained(weights, num_labels=2, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(weights, model_max_length=512, padding_side="right")
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def _rewarded(answers: Dataset, alpha: float) -> RewardTable | None:
    """Rewards of the prompts whose answers are all scored; alpha 0 needs no learnability."""
    if alpha == 0:
        answers = answers.remove_columns(columns.LEARNABILITY).add_column(columns.LEARNABILITY, [0.0] * len(answers))
    known: dict[str, bool] = {}
    for identity, value in zip(answers[columns.PROMPT_ID], answers[columns.LEARNABILITY], strict=True):
        known[identity] = known.get(identity, True) and value is not None
    kept = [row for row, identity in enumerate(answers[columns.PROMPT_ID]) if known[identity]]
    return read_rewards(_normalised(answers.select(kept), alpha)) if len(kept) > 0 else None


def _normalised(answers: Dataset, alpha: float) -> Dataset:
    """Rewards as the pipeline makes them; at alpha 0 and 1 too, both parts are normalised within the prompt."""
    part = {0: columns.QUALITY, 1: columns.LEARNABILITY}.get(alpha)
    if part is None:
        return add_rewards(answers, alpha)
    other = answers.remove_columns([columns.QUALITY, columns.LEARNABILITY])
    other = other.add_column(columns.QUALITY, answers[part][:]).add_column(columns.LEARNABILITY, answers[part][:])
    return add_rewards(other, 0.5)


def _answers(arguments: Any, zoo: str) -> Dataset:
    answers = Dataset.from_parquet(str(arguments.data / f"{zoo}_zoo.parquet"))
    cache = arguments.learnability
    found: dict[tuple[str, str], float] = {}
    if cache.exists():
        for line in cache.read_text().splitlines():
            entry = json.loads(line)
            found[entry["prompt_id"], entry["teacher"]] = entry["learnability"]
    keys = list(zip(answers[columns.PROMPT_ID], answers[columns.TEACHER], strict=True))
    wanted = any(arguments.alphas) and not arguments.no_scoring
    for start in range(0, len(keys) if wanted else 0, 120):
        rows = [row for row in range(start, min(start + 120, len(keys))) if keys[row] not in found]
        if rows:
            _score(answers.select(rows), cache)
    if wanted:
        arguments.no_scoring = True
        return _answers(arguments, zoo)
    return answers.add_column(columns.LEARNABILITY, [found.get(key) for key in keys])


def _score(rows: Dataset, cache: Path) -> None:
    """Scores answers with the student and appends them to the cache, some at a time: a long scoring can be resumed."""
    from persyn_hf import persyn_learnability

    scored = rows.map(persyn_learnability, batched=True, keep_in_memory=True, fn_kwargs={
        "student": SMOLLM, "too_long": "truncate",
    })  # fmt: skip
    with cache.open("a") as file:
        for identity, teacher, value in zip(
            scored[columns.PROMPT_ID], scored[columns.TEACHER], scored[columns.LEARNABILITY], strict=True
        ):
            entry = {"prompt_id": identity, "teacher": teacher, "learnability": value}
            file.write(json.dumps(entry) + "\n")


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--learnability", type=Path, required=True)
    parser.add_argument("--zoos", nargs="+", default=["instruct", "math"])
    ours = [name for name, (_, _, depth) in BACKBONES.items() if depth is not None]
    parser.add_argument(
        "--backbones", nargs="+", default=ours, choices=list(BACKBONES), help="-stock: as transformers makes it"
    )
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=list(OBJECTIVES))
    parser.add_argument("--alphas", nargs="+", type=float, default=[0.0, 0.4, 1.0])
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--tuning", default="frozen", choices=["frozen", "full", "lora"])
    parser.add_argument("--folds", type=int, default=2, help="of fine-tuning; a frozen backbone has 5")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--recipes", action="store_true", help="Bradley–Terry as it is often written, too")
    parser.add_argument("--no-scoring", action="store_true")
    arguments = parser.parse_args()
    if arguments.tuning != "frozen" and any(BACKBONES[name][2] is None for name in arguments.backbones):
        parser.error("stock backbones are there to be compared with: `--tuning frozen`")
    return arguments


if __name__ == "__main__":
    main()
