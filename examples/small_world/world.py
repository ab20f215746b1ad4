"""Who lives in the small world: read from `world.yaml`, trained once, kept in the run folder."""

from __future__ import annotations

import json
import multiprocessing
import random
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from examples.small_world import tasks
from examples.small_world.models import lessons, train_from_scratch
from persyn_hf.config import Settings, read_settings
from persyn_hf.models.workers import share_cores


class Size(Settings):
    """A Llama's width and depth."""

    hidden_size: int
    layers: int


class Inhabitant(Settings):
    """A teacher, or a student before it meets one.

    Args:
        size: One of the world's sizes.
        steps: Optimiser steps of training from scratch.
        tasks: Shares of the tasks in what it sees; it is good at what it sees often.
        styles: Shares of the ways to answer.
        easy: Share of easy prompts.
    """

    size: str
    steps: int
    tasks: dict[str, float] = dict.fromkeys(tasks.TASKS, 1.0)
    styles: dict[str, float]
    easy: float = 0.0


class World(Settings):
    """The whole world.

    Args:
        seed: Of everything drawn.
        train_prompts, held_out_prompts: Numbers of prompts, all different.
        batch_size: Rows of one step of training from scratch.
        processes: How many models are trained side by side.
        recipe: The rest of that training, as `Training` takes it.
        sizes, models: By name.
    """

    seed: int = 0
    train_prompts: int
    held_out_prompts: int
    batch_size: int
    processes: int = 1
    recipe: dict[str, Any] = Field(default_factory=dict)
    sizes: dict[str, Size]
    models: dict[str, Inhabitant]


def read_world(path: Path, quick: bool = False) -> World:
    """Reads a world; `quick` makes it so small that nobody learns anything, but every stage runs."""
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    if quick:
        data |= {"train_prompts": 48, "held_out_prompts": 12, "batch_size": 8, "processes": 1}
        data["sizes"] = {name: {"hidden_size": 32, "layers": 2} for name in data["sizes"]}
        data["models"] = {name: model | {"steps": 10} for name, model in data["models"].items()}
    return read_settings(World, data, str(path))


def settle(world: World, folder: Path) -> None:
    """Writes the prompts and trains whoever is not there yet, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_prompts(world, folder)
    missing = [name for name in world.models if not (folder / "models" / name / "training.json").exists()]
    missing.sort(key=lambda name: -world.models[name].steps)  # the longest first
    if min(world.processes, len(missing)) < 2:
        for name in missing:
            print(_raise(world, folder, name), flush=True)
        return
    with ProcessPoolExecutor(
        world.processes, multiprocessing.get_context("spawn"), share_cores, (world.processes,)
    ) as pool:
        for done in as_completed([pool.submit(_raise, world, folder, name) for name in missing]):
            print(done.result(), flush=True)


def _raise(world: World, folder: Path, name: str) -> str:
    """Trains one model and says how it went."""
    number, model = list(world.models).index(name), world.models[name]
    size, where = world.sizes[model.size], folder / "models" / name
    data = lessons(
        model.steps * world.batch_size, model.tasks, model.styles, model.easy, seed=world.seed + 1000 * (number + 1)
    )
    recipe = world.recipe | {
        "num_train_epochs": 1, "per_device_train_batch_size": world.batch_size, "gradient_accumulation_steps": 1,
    }  # fmt: skip
    train_from_scratch(where, data, size.hidden_size, size.layers, recipe, seed=world.seed + number)
    report = json.loads((where / "training.json").read_text(encoding="utf-8"))
    return f"{name}: {report['steps']} steps, {report['seconds']:.0f} s, loss {report['loss']:.3f}"


def _write_prompts(world: World, folder: Path) -> None:
    draw = random.Random(world.seed)
    wanted = world.train_prompts + world.held_out_prompts
    prompts: dict[str, None] = {}
    for _ in range(100 * wanted):
        if len(prompts) == wanted:
            break
        prompts[tasks.ask(tasks.TASKS[len(prompts) % len(tasks.TASKS)], draw)] = None
    else:
        raise ValueError(f"The tasks have no {wanted} different prompts: ask for fewer, or make them longer.")
    rows = [{"prompt": prompt, "answer": tasks.solve(prompt, "terse")} for prompt in prompts]
    for name, part in (("train", rows[: world.train_prompts]), ("held-out", rows[world.train_prompts :])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
