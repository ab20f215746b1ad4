"""The YAML at the head of a card: what persyn-hf states there, and how it joins what a person wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from persyn_hf.publishing.markdown import is_repo_id, plain
from persyn_hf.publishing.provenance import Provenance

if TYPE_CHECKING:
    from datasets import Features

Metadata = dict[str, Any]

_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
)
#: Lists in which a person's entries stay beside ours.
_UNITED = frozenset(("tags", "language", "task_categories", "datasets"))
#: What a person may have chosen otherwise; ours is written only where nothing stands, or where it was asked for.
_CHOSEN = frozenset(("license",))
_POLICY_NAMES = {"router": "this router", "best_single": "best single teacher", "random": "random", "oracle": "oracle"}


def size_category(rows: int) -> str:
    """The Hub's size category of a dataset.

    Example:
        >>> size_category(480), size_category(1000)
        ('n<1K', '1K<n<10K')
    """
    return next((name for limit, name in _SIZES if rows < limit), "100M<n<1B")


def dataset_metadata(rows: int, license: str | None, language: Sequence[str]) -> Metadata:
    """The dataset's metadata, without `configs` and `dataset_info`: see [`describe_files`]."""
    return _without_nothing(
        license=license,
        language=list(language),
        task_categories=["text-generation"],
        size_categories=[size_category(rows)],
        tags=["persyn", "synthetic", "distillation", "trl"],
    )


def router_metadata(
    provenance: Provenance, location: str, dataset_location: str | None, license: str | None, language: Sequence[str]
) -> Metadata:
    """The router's metadata, its held-out rewards as `model-index` included."""
    backbone = provenance.router.get("backbone")
    return _without_nothing(
        license=license,
        language=list(language),
        library_name="transformers",
        pipeline_tag="text-classification",
        base_model=backbone if is_repo_id(backbone) else None,
        datasets=[dataset_location] if is_repo_id(dataset_location) else [],
        tags=["persyn", "router", "distillation"],
    ) | _model_index(provenance, location)


def student_metadata(
    location: str, base_model: Any, dataset_location: str | None, license: str | None, language: Sequence[str]
) -> Metadata:
    """The fine-tuned student's metadata."""
    return _without_nothing(
        license=license,
        language=list(language),
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=base_model if is_repo_id(base_model) else None,
        datasets=[dataset_location] if is_repo_id(dataset_location) else [],
        tags=["persyn", "distillation", "trl", "sft"],
    )


def describe_files(
    metadata: Metadata,
    config_name: str,
    features: Features,
    patterns: Mapping[str, str],
    sizes: Mapping[str, tuple[int, int]],
    download_size: int,
) -> Metadata:
    """Adds `configs` and `dataset_info` of one configuration, in `datasets`' own form; other configurations stay.

    Args:
        metadata (`Metadata`): What stands in the card.
        config_name (`str`): The configuration.
        features (`Features`): Of every split.
        patterns (`Mapping[str, str]`): Per split, the pattern of its shards.
        sizes (`Mapping[str, tuple[int, int]]`): Per split, rows and bytes in memory.
        download_size (`int`): Bytes of all shards.
    """
    from datasets import DatasetInfo, SplitDict, SplitInfo
    from datasets.info import DatasetInfosDict
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCardData

    info = DatasetInfo(
        config_name=config_name, features=features, splits=SplitDict(), download_size=download_size,
        dataset_size=sum(size for _, size in sizes.values()),
    )  # fmt: skip
    for split, (rows, size) in sizes.items():
        info.splits.add(SplitInfo(name=split, num_bytes=size, num_examples=rows))
    known = {key: metadata[key] for key in ("configs", "dataset_info") if metadata.get(key)}
    data = DatasetCardData(**known)
    DatasetInfosDict({config_name: info}).to_dataset_card_data(data)
    entry = MetadataConfigs.from_dataset_card_data(data).get(config_name, {})
    files = [{"split": split, "path": pattern} for split, pattern in patterns.items()]
    MetadataConfigs({config_name: {**entry, "data_files": files}}).to_dataset_card_data(data)
    described: Metadata = data.to_dict()  # type: ignore[no-untyped-call]
    return metadata | described


def merge_metadata(old: Mapping[str, Any], new: Mapping[str, Any], asked: frozenset[str] = frozenset()) -> Metadata:
    """Joins the metadata that stands in a card with ours, key by key.

    Keys that only a person wrote stay. Lists of tags, languages, tasks and datasets keep a person's entries. A licence
    that stands there stays unless another was asked for. Facts (sizes, library, base model, our results) are ours.

    Example:
        >>> merge_metadata({"license": "mit", "tags": ["mine"]}, {"license": "apache-2.0", "tags": ["persyn"]})
        {'license': 'mit', 'tags': ['persyn', 'mine']}
    """
    merged = dict(old)
    for key, value in new.items():
        before = old.get(key)
        if key in _UNITED and before:
            theirs = before if isinstance(before, list) else [before]
            ours = list(value)
            merged[key] = [*ours, *(entry for entry in theirs if entry not in ours)]
        elif key == "model-index" and isinstance(before, list):
            names = {entry["name"] for entry in value}
            merged[key] = [*value, *(e for e in before if not (isinstance(e, dict) and e.get("name") in names))]
        elif key in _CHOSEN and before and key not in asked:
            continue
        else:
            merged[key] = value
    return merged


def _model_index(provenance: Provenance, location: str) -> Metadata:
    held_out = provenance.router.get("held_out") or {}
    prompts = provenance.router.get("prompts") or {}
    source = provenance.prompts_source or prompts.get("source")
    metrics = [
        {"type": "mean_reward", "name": f"Mean held-out reward, {label}", "value": round(held_out[key]["mean"], 6)}
        for key, label in _POLICY_NAMES.items()
        if key in held_out
    ]
    if "router" not in held_out:
        return {}
    if held_out.get("gap_closed"):
        gap = round(held_out["gap_closed"]["mean"], 6)
        metrics.append({"type": "gap_closed", "name": "Share of the gap to the oracle closed", "value": gap})
    dataset = {
        "type": source if is_repo_id(source) else "prompts",
        "name": plain(source) if is_repo_id(source) else "probe prompts",
    }
    task = {"type": "text-classification", "name": "Routing prompts to teachers"}
    result = {"task": task, "dataset": dataset, "metrics": metrics}
    return {"model-index": [{"name": plain(location.rsplit("/", 1)[-1]), "results": [result]}]}


def _without_nothing(**values: Any) -> Metadata:
    return {key: value for key, value in values.items() if value not in (None, [])}
