# %% [markdown]
# # A tour of persyn_hf
#
# Strong models are not always the best teachers of a small one. This tour walks the whole way on real small models, in
# some minutes on two cores, with no endpoint, no account and no GPU: plan, run, look, load the router as a stranger
# would, route your own prompts, compare students, and see what a push would send.
#
# The demo's models are SmolLM2-135M-Instruct, asked in four ways as four *teachers*, the same weights as the
# *student*, and MiniLM for the router. Everything here is small so that it is quick; nothing here is a result.

# %%
import os
from pathlib import Path

from datasets import Dataset, load_dataset
from rich.console import Console
from transformers import pipeline

import persyn_hf
from persyn_hf.comparison.compare import compare
from persyn_hf.comparison.presentation import print_comparison
from persyn_hf.demo.settings import demo_settings, prepare_demo
from persyn_hf.planning.plan import plan
from persyn_hf.planning.printing import print_plan
from persyn_hf.run.report import print_report

models = Path(os.environ.get("TOUR_MODELS", ".models"))
folder = Path(os.environ.get("TOUR_OUTPUT", "runs/tour"))
console = Console(width=120)
prepare_demo(models)  # lays out the weights and 480 prompts

# %% [markdown]
# ## A configuration
#
# The same keys as in a YAML file. A teacher is a model *and* how it is asked: here a system prompt and a temperature.
# Quality is what a program can check of the prompts' constraints; learnability is the student's own mean token
# log-likelihood. The reward mixes both.

# %%
settings = demo_settings(models, folder / "run")
settings["prompts"]["limit"] = 40
settings["probe"]["size"] = 20
for teacher in settings["teachers"]:
    teacher["sampling"]["max_tokens"] = 32
config = persyn_hf.RunConfig.from_dict(settings, source="the tour")
[teacher.name for teacher in config.teachers]

# %% [markdown]
# ## Plan before you spend
#
# Answers, tokens, money and time for every stage and teacher, and what other ways to build the set would take. The
# command is `persyn-hf plan`.

# %%
print_plan(plan(config, completion_tokens=30), console)

# %% [markdown]
# ## Run
#
# Probe, score, router, route, generate, publish. Each stage leaves one table; a second call finds everything finished.
# The command is `persyn-hf run`.

# %%
result = persyn_hf.run(config, progress=False)
print_report(result.report, console)

# %% [markdown]
# Twenty probe prompts are far too few to learn from, and the report says how sure it is: within chance, or that every
# prompt goes to the best single teacher because the router does not beat it.
#
# ## Look at the routes
#
# Every table is a `datasets` table.

# %%
routed = load_dataset(str(folder / "run/stages/route.parquet"), split="train")
for row in routed.select(range(3)):
    print(row["route"], [round(score, 2) for score in row["route_scores"]], "←", row["prompt"][:70])

# %% [markdown]
# ## Load a router as a stranger would
#
# A published router is a stock sequence classifier, so plain `transformers` reads it. Put a Hub repository where the
# folder stands. `top_k=None` gives all teachers, best first.

# %%
router_path = str(folder / "run/router")
classify = pipeline("text-classification", model=router_path, top_k=None)
classify("Name three rivers, in lower case.", truncation=True)

# %% [markdown]
# ## Route your own prompts
#
# With `persyn_hf` the same router is a `map` function. `pin_router` names the exact weights, so a cached result
# is never stale.

# %%
mine = Dataset.from_dict({"prompt": ["Write one sentence about snow.", "List three fruits as JSON."]})
mine = mine.map(persyn_hf.persyn_route, batched=True, fn_kwargs=persyn_hf.pin_router(router_path))
mine["route"]

# %% [markdown]
# ## Compare students
#
# The question that matters is whether the personalised set makes a better student. `persyn-hf compare` trains one
# student for every policy and seed on the same prompts with the same recipe, judges it on held-out prompts, and
# reports intervals and paired differences. Two policies, two seeds and two steps are enough to see the
# machinery, and far too few to conclude anything.

# %%
held_out = folder / "held_out.jsonl"
Dataset.from_json(str(models / "prompts.jsonl")).select(range(470, 480)).to_json(held_out)
compared = settings | {
    "output_dir": str(folder / "comparison"),
    "hygiene": {"ngram_size": 100},  # the demonstration's prompts are made of a few phrases: only whole ones count
    "training": {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_length": 128,
    },
    "compare": {
        "students": [{"name": "smollm2", **settings["student"]}],
        "held_out": {"source": str(held_out), "answer_column": "answer"},
        "policies": ["strong", "persyn"],
        "seeds": [0, 1],
        "decodings": [{"name": "greedy", "temperature": 0.0, "max_tokens": 32}],
        "nll_teachers": [],
    },
}
comparison = compare(persyn_hf.RunConfig.from_dict(compared, source="the tour"), progress=False, share=folder / "run")
print_comparison(comparison.summary, comparison.facts, console)

# %% [markdown]
# ## Publish
#
# The run folder already holds the dataset and the router with their cards. `push_personalized` sends the same files,
# private unless you say otherwise, in one commit for each repository:
#
# ```python
# persyn_hf.push_personalized(
#     data, "me/my-student-data", router=router, router_repo_id="me/my-router", license="apache-2.0"
# )
# ```
#
# or `persyn-hf push config.yaml --dataset-repo-id me/my-student-data --router-repo-id me/my-router`.

# %%
card = (folder / "run/dataset/README.md").read_text(encoding="utf-8")
print(card[:1500])
