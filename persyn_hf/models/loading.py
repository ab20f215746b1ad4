"""Loading of configurations, tokenizers and models: complete, bounded, from safetensors only, one at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from persyn_hf.errors import ConfigError, ScoringError
from persyn_hf.models.bounds import check_bounds, parameter_count, read_contents, weight_files
from persyn_hf.models.device import DTYPES, dtype_named
from persyn_hf.models.files import CONFIG_FILE, ModelFiles, plain_object, read_config, reading
from persyn_hf.models.identity import resolve_revision
from persyn_hf.packages import require
from persyn_hf.text import tame

if TYPE_CHECKING:
    import torch

#: Head of a loaded model: a language-model head, a classification head, or none.
Kind = Literal["causal-lm", "classifier", "encoder"]

#: Lock that allows one load at a time, in all stages. While transformers loads a model, it switches weight tying off
#: for every model by replacing a method of `PreTrainedModel` (`transformers.initialization.no_tie_weights`). Two loads
#: that overlap leave it off, and models with tied weights then have a random head. The lock also guards the caches of
#: loaded models, so that concurrent requests load once. Remove it when transformers loads without changing the class.
LOADING = threading.RLock()


def identity(model: str, revision: str | None) -> str:
    """Resolves a model, and checks that a folder still has its pinned digest.

    Raises:
        ConfigError: If there is no such model.
        ScoringError: If the folder has changed since its digest was taken.
    """
    if revision is not None and revision.startswith("folder-"):
        found = resolve_revision(model)
        if found != revision:
            raise ScoringError(
                f"The folder `{model}` has changed: it was pinned as {revision} and is now {found}. Pin it again."
            )
        return found
    return resolve_revision(model) if os.path.isdir(model) else _resolve_once(model, revision)


@lru_cache(maxsize=64)
def _resolve_once(model: str, revision: str | None) -> str:
    return resolve_revision(model, revision)


def load_config(files: ModelFiles, **settings: Any) -> Any:
    """Loads a model's configuration, or that of an adapter's base model, within the bounds of `check_bounds`.

    Args:
        files (`ModelFiles`): The model's files.
        settings: Fields to override, such as `num_labels` and `id2label`.

    Raises:
        PersynError: The type `files.error`.
    """
    require("read a model's configuration", "transformers")
    from transformers import AutoConfig

    with reading(files, f"its `{CONFIG_FILE}`"):
        files = files if files.find(CONFIG_FILE) is not None else _base(files)
    check_bounds(files, read_config(files))
    with LOADING, reading(files, f"its `{CONFIG_FILE}`"):
        return AutoConfig.from_pretrained(files.name, **_pinned(files), **settings)


def load_tokenizer(files: ModelFiles) -> Any:
    """Loads a tokenizer. transformers also reads the model's configuration, which must be within bounds.

    Raises:
        PersynError: The type `files.error`.
    """
    require("load a tokenizer", "transformers")
    from transformers import AutoTokenizer

    with reading(files, f"its `{CONFIG_FILE}`"):
        if files.find(CONFIG_FILE) is not None:
            check_bounds(files, read_config(files))
    with LOADING, reading(files, "its tokenizer"):
        return AutoTokenizer.from_pretrained(files.name, **_pinned(files))


def load_model(
    files: ModelFiles,
    kind: Kind,
    dtype: str,
    device: str | torch.device,
    *,
    config: Any = None,
    trainable: bool = False,
    new_head: bool = False,
    **settings: Any,
) -> Any:
    """Loads a complete model in evaluation mode, from safetensors.

    Before anything is built, the configuration is compared with the weight files; it is refused if it asks for much
    more than they hold.

    Args:
        files (`ModelFiles`): The model's files.
        kind (`"causal-lm"`, `"classifier"` or `"encoder"`): Head of the model.
        dtype (`str`): Type of the weights; `"auto"` keeps the checkpoint's.
        device (`str` or `torch.device`): Device of the weights.
        config (`PreTrainedConfig`, *optional*): Configuration; defaults to that of `load_config`.
        trainable (`bool`, defaults to `False`): Keep the weights trainable.
        new_head (`bool`, defaults to `False`): Create a new head; only the other weights must be in the files.
        settings: Further arguments of `from_pretrained`.

    Raises:
        ConfigError: If the dtype is unknown.
        PersynError: The type `files.error`, if a file is damaged, or weights are missing or have the wrong shape.
    """
    auto_class = _auto_class(kind)
    number = dtype if dtype == "auto" else dtype_named(dtype)
    with LOADING:
        base = _base(files)
        config = load_config(base) if config is None else config
        with reading(files, "its weights"):
            contents = read_contents(weight_files(base, getattr(config, "transformers_weights", None)))
            parameter_count(base, auto_class, config, contents)
            model, report = auto_class.from_pretrained(
                files.name,
                config=config,
                dtype=number,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are in the report, which is checked below
                output_loading_info=True,
                **_pinned(files),
                **settings,
            )
            _refuse_incomplete(files, model, report, new_head)
        with reading(files, f"it on {device}"):
            model = model.eval() if trainable else model.eval().requires_grad_(False)
            return model.to(device)


def load_gguf(folder: str | os.PathLike[str], file: str) -> tuple[Any, Any]:
    """Loads a causal language model and its tokenizer from a GGUF file, in float32: `(model, tokenizer)`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with LOADING:
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
        return model, AutoTokenizer.from_pretrained(folder, gguf_file=file)


def build_model(kind: Kind, config: Any) -> Any:
    """Builds a model with new weights in float32, while nothing else loads."""
    import torch

    with LOADING:
        return _auto_class(kind).from_config(config, dtype=torch.float32)


def count_parameters(files: ModelFiles, kind: Kind, config: Any) -> int:
    """Counts the parameters of a configuration's model; no weight is read or allocated."""
    with LOADING, reading(files, "its configuration"):
        return parameter_count(files, _auto_class(kind), config)


def save_tokenizer(tokenizer: Any, folder: str | os.PathLike[str]) -> None:
    """Saves a tokenizer without the truncation and padding that `tokenizers` remembers from the last call.

    The tokenizer itself is not changed, because another thread may use it.
    """
    import copy

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)


def context_of(config: Any) -> int | None:
    """The context length of a model in tokens; `None` if it has no limit."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit and limit > 0 else None


def is_whole(folder: str | os.PathLike[str]) -> bool:
    """Tells whether a folder has the complete safetensors files of a model or an adapter, judged by their headers."""
    from safetensors import SafetensorError

    files = ModelFiles(os.fspath(folder))
    adapter = files.find("adapter_model.safetensors")
    try:
        return read_contents(weight_files(files) if adapter is None else [adapter]).tensors > 0
    except (OSError, ValueError, SafetensorError):
        return False


def _auto_class(kind: Kind) -> Any:
    require("load a model", "torch", "transformers", "safetensors")
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

    classes = {
        "causal-lm": AutoModelForCausalLM,
        "classifier": AutoModelForSequenceClassification,
        "encoder": AutoModel,
    }
    return classes[kind]


def _base(files: ModelFiles) -> ModelFiles:
    """The files of an adapter's base model; those of a complete model are returned as they are."""
    with reading(files, "its `adapter_config.json`"):
        path = files.find("adapter_config.json")
        if path is None:
            return files
        if files.find(CONFIG_FILE) is not None:
            raise files.wrong(" is both a complete model and an adapter. Merge the adapter, or remove it.")
        adapter = plain_object(path)
        check_bounds(files, adapter)
        name, revision = adapter.get("base_model_name_or_path"), adapter.get("revision")
        if not isinstance(name, str) or not isinstance(revision, str | None):
            raise ValueError("`base_model_name_or_path` must name the base model")
        return replace(files, name=name, revision=revision)


def _refuse_incomplete(files: ModelFiles, model: Any, report: Mapping[str, Any], new_head: bool) -> None:
    """Refuses a model whose files lack weights, or hold weights of another shape or an unsupported type.

    Raises:
        PersynError: The type `files.error`.
    """

    def counts(key: str) -> bool:
        # Poolers are part of the base model, but checkpoints with other heads lack them.
        return not new_head or (key.startswith(f"{model.base_model_prefix}.") and ".pooler." not in key)

    missing = sorted(key for key in map(str, report["missing_keys"]) if counts(key))
    if missing:
        raise files.wrong(f" lacks weights: {_listed(missing)}. The files must have all weights, the head's included.")
    reshaped = sorted(
        f"{key} {tuple(has)} for {tuple(needs)}" for key, has, needs in report["mismatched_keys"] if counts(key)
    )
    if reshaped:
        raise files.wrong(f" has weights of another shape than its configuration expects: {_listed(reshaped)}.")
    if str(model.dtype).removeprefix("torch.") not in DTYPES:
        raise files.wrong(f" has weights of the type {model.dtype}; it must be one of {', '.join(DTYPES[1:])}.")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return tame(", ".join(names[:5]), 500) + more


def _pinned(files: ModelFiles) -> dict[str, Any]:
    commit = {} if files.commit is None else {"revision": files.commit}
    return {"trust_remote_code": False, "local_files_only": files.local_only} | commit


def load_static_model(model: str, where: str) -> Any:
    """Loads a model2vec model, which embeds texts by their word vectors.

    Args:
        model (`str`): Folder or Hub repository id.
        where (`str`): Name of the setting in errors.

    Raises:
        ConfigError: If the model cannot be loaded.
        MissingExtraError: If semhash, which installs model2vec, is missing.
    """
    require("find prompts of the same meaning", "semhash")
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from model2vec import StaticModel

    try:
        with LOADING:
            return StaticModel.from_pretrained(model)
    except (OSError, ValueError, KeyError, HfHubHTTPError, HFValidationError) as error:
        raise ConfigError(f"{where}: {model} cannot be loaded as a model2vec model: {error}") from error
