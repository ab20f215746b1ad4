"""Bounds on an untrusted model configuration, checked before a layer is built or memory is allocated."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persyn_hf.models.files import ModelFiles
from persyn_hf.text import tame

if TYPE_CHECKING:
    import torch

#: Endings of the keys whose numbers libraries loop over while they read a configuration, and the limit of each number.
#: The deepest published models have hundreds of layers, the widest have thousands of experts.
_LOOPS = re.compile(r"(layers?|depths?|blocks?|stages?|groups?|experts?|heads?|codebooks?|types)$")
_MOST_LOOPS = 10_000
#: Keys that may name a repository of kernels, for the model or for each of its parts.
_CODE = ("attn_implementation", "experts_implementation")
_MOST_LABELS = 100_000
#: Limit on the tensors of a model whose weights are not read; the largest published models have tens of thousands.
_MOST_TENSORS = 200_000


def check_bounds(files: ModelFiles, config: Mapping[str, object]) -> None:
    """Refuses a `config.json` that asks for more than any model has, or for other files or code.

    Raises:
        PersynError: The type `files.error`.
    """
    if "configuration_files" in config:
        raise files.wrong(
            ": its `config.json` names other files (`configuration_files`), which persyn_hf does not read. Remove "
            "the key."
        )
    for key, value in _leaves(config):
        if isinstance(value, int):
            most = _MOST_LABELS if key == "num_labels" else _MOST_LOOPS if _LOOPS.search(key) else None
            if most is not None and value > most:
                raise files.wrong(f": `{key}` in its `config.json` must be at most {most:,}, got {value:,}.")
        # transformers would run compiled code from a repository of kernels.
        elif key.endswith(_CODE) and "/" in str(value):
            raise files.wrong(
                f": its `config.json` asks for code from the Hub, `{key}: {tame(value, 80)}`, which persyn_hf does "
                "not load. Remove the key."
            )
    labels = config.get("id2label")
    if isinstance(labels, Mapping | list) and len(labels) > _MOST_LABELS:
        raise files.wrong(f": its `config.json` must have at most {_MOST_LABELS:,} labels, got {len(labels):,}.")


def _leaves(config: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yields all values other than objects and lists, each with its key."""
    waiting: list[tuple[str, object]] = [("", config)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting.extend((key if key.endswith(_CODE) else str(inner), part) for inner, part in value.items())
        elif isinstance(value, list):
            waiting.extend((key, part) for part in value)
        else:
            yield key, value


@dataclass(frozen=True)
class Contents:
    """The contents of safetensors files.

    Args:
        tensors (`int`), elements (`int`), bytes (`int`): Totals over all files.
    """

    tensors: int
    elements: int
    bytes: int


def weight_files(files: ModelFiles, named: object = None) -> list[Path]:
    """Finds the safetensors files of a model, and downloads them if needed.

    Args:
        files (`ModelFiles`): The model's files.
        named (`str`, *optional*): File that the configuration names in `transformers_weights`.

    Raises:
        PersynError: The type `files.error`, if there are none, or a file that the index names is missing.
    """
    named = "model.safetensors" if named is None else named
    if not isinstance(named, str) or not named.endswith((".safetensors", ".safetensors.index.json")):
        raise files.wrong(f": `transformers_weights` must name safetensors files, got {named!r:.80}.")
    names = [named, "model.safetensors.index.json"] if named == "model.safetensors" else [named]
    found = next((path for path in map(files.find, names) if path is not None), None)
    if found is None:
        raise files.wrong(
            f" has no weights in the safetensors format (looked for {' and '.join(f'`{name}`' for name in names)})."
        )
    if found.suffix != ".json":
        return [found]
    shards = _shards(found)
    paths = [files.find(shard) for shard in shards]
    lost = [shard for shard, path in zip(shards, paths, strict=True) if path is None]
    if lost:
        raise files.wrong(f" lacks the weight files {', '.join(lost[:5])}, which its index names.")
    return [path for path in paths if path is not None]


def _shards(index: Path) -> list[str]:
    values = json.loads(index.read_text(encoding="utf-8"))
    places = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"`weight_map` in {index.name} must map every tensor to its file")
    names = sorted(set(places.values()))
    for name in names:
        if not name.endswith(".safetensors") or Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"`weight_map` in {index.name} must name safetensors files next to it, got {name[:80]!r}")
    return names


def read_contents(paths: Sequence[Path]) -> Contents:
    """Counts the contents of safetensors files from their headers; a truncated file raises `SafetensorError`."""
    from safetensors import safe_open

    tensors = elements = 0
    for path in paths:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
            tensors += len(names)
            elements += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    return Contents(tensors, elements, sum(path.stat().st_size for path in paths))


def parameter_count(files: ModelFiles, auto_class: Any, config: Any, contents: Contents | None = None) -> int:
    """Builds a model's skeleton, without memory for its weights, and counts its parameters.

    Args:
        files (`ModelFiles`): The model's files.
        auto_class (`type`): An auto class of transformers.
        config (`PreTrainedConfig`): The model's configuration.
        contents (`Contents`, *optional*): Contents of its weight files: the skeleton must not be much larger.

    Raises:
        PersynError: The type `files.error`, if the skeleton is larger.
    """
    import copy

    import torch

    # The skeleton may be larger: new heads, tensors that the model splits, and files that are quantised.
    quantised = getattr(config, "quantization_config", None) is not None
    most_tensors = _MOST_TENSORS if contents is None else 8 * contents.tensors + 1_000
    most_elements = 10**14
    if contents is not None:
        most_elements = 2**22 + (16 * contents.bytes if quantised else 3 * contents.elements)
    built = [0, 0]

    def count(elements: int) -> None:
        built[0] += 1
        built[1] += elements
        if built[0] > most_tensors or built[1] > most_elements:
            held = "" if contents is None else f", but its files hold {contents.tensors:,} with {contents.elements:,}"
            raise files.wrong(
                f": its `config.json` asks for at least {built[0]:,} tensors with {built[1]:,} numbers{held}."
            )

    with _counting(count), torch.random.fork_rng(devices=[]), torch.device("meta"):
        skeleton = auto_class.from_config(copy.deepcopy(config))
    return sum(weight.numel() for weight in skeleton.parameters())


@contextmanager
def _counting(count: Callable[[int], None]) -> Iterator[None]:
    """Calls `count` with the size of every parameter that this thread registers in a module."""
    from torch.nn.modules.module import register_module_parameter_registration_hook

    mine = threading.get_ident()

    def registered(_module: torch.nn.Module, _name: str, parameter: torch.nn.Parameter) -> None:
        if threading.get_ident() == mine:
            count(parameter.numel())

    handle = register_module_parameter_registration_hook(registered)
    try:
        yield
    finally:
        handle.remove()
