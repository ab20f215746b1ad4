"""Models from the Hub or a folder, as scoring needs them: whole, frozen, on a device, and those that were pinned."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from persyn_hf.errors import ConfigError, ScoringError
from persyn_hf.models.identity import resolve_revision
from persyn_hf.packages import require

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float64", "float32", "bfloat16", "float16")


def identity(model: str, revision: str | None) -> str:
    """Resolves a model; a folder's digest that was pinned must still be its digest.

    Raises:
        ConfigError: If there is no such model.
        ScoringError: If the folder has changed since its digest was taken.
    """
    if revision is not None and revision.startswith("folder-"):
        found = resolve_revision(model)
        if found != revision:
            raise ScoringError(f"The folder `{model}` has changed: pinned as {revision}, now {found}. Pin it again.")
        return found
    return resolve_revision(model) if os.path.isdir(model) else _resolve_once(model, revision)


@lru_cache(maxsize=64)
def _resolve_once(model: str, revision: str | None) -> str:
    return resolve_revision(model, revision)


def choose_device(device: str | None) -> torch.device:
    """The named device, or CUDA where there is one, or the CPU."""
    import torch

    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def load_model(
    auto_class: Any, name: str, revision: str, dtype: str, device: torch.device, role: str, **settings: Any
) -> Any:
    """Loads a whole model for inference, from safetensors.

    Args:
        auto_class (`type`): One of transformers' `AutoModelFor…`.
        name (`str`), revision (`str`): From `identity`.
        dtype (`str`): `"auto"` is the checkpoint's own.
        device (`torch.device`): Where it goes.
        role (`str`): Begins the message of an error ("The student").
        settings: Further arguments of `from_pretrained`.

    Raises:
        ConfigError: If the dtype is unknown.
        ScoringError: If weights are missing.
    """
    import torch

    if dtype not in DTYPES:
        raise ConfigError(f"`dtype` must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    model, info = auto_class.from_pretrained(
        name,
        dtype=dtype if dtype == "auto" else getattr(torch, dtype),
        output_loading_info=True,
        use_safetensors=True,
        **_pinned(revision),
        **settings,
    )
    if info["missing_keys"]:
        raise ScoringError(f"{role} `{name}` lacks weights: {', '.join(sorted(info['missing_keys'])[:5])}.")
    return model.eval().requires_grad_(False).to(device)


def load_tokenizer(name: str, revision: str) -> Any:
    """Loads the tokenizer of a model that `identity` resolved."""
    require("load a tokenizer", "transformers")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name, **_pinned(revision))


def load_config(name: str, revision: str) -> Any:
    """Loads the configuration of a model that `identity` resolved."""
    require("read a model's configuration", "transformers")
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(name, **_pinned(revision))


def context_of(config: Any) -> int | None:
    """Tokens that a model reads at once; `None` if it has no limit."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit and limit > 0 else None


def _pinned(revision: str) -> dict[str, Any]:
    return {"trust_remote_code": False} | ({} if revision.startswith("folder-") else {"revision": revision})
