"""Card metadata (YAML) and body: what persyn-hf generates, and the merge with what a user wrote."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from persyn_hf.config import POLICY_LABELS
from persyn_hf.errors import PublishError
from persyn_hf.publishing.markdown import is_repo_id, one_line
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
#: Lists in which a user's entries are kept beside the generated ones.
_UNITED = frozenset(("tags", "language", "task_categories", "datasets"))
#: Keys that are written only if the card has none, or if the user set them.
_CHOSEN = frozenset(("license",))
#: Policies whose held-out reward is in the metadata, the router first.
_EVALUATED = ("router", "best_single", "random", "oracle")


def size_category(rows: int) -> str:
    """Returns the Hub's size category of a dataset.

    Example:
        >>> size_category(480), size_category(1000)
        ('n<1K', '1K<n<10K')
    """
    return next((name for limit, name in _SIZES if rows < limit), "100M<n<1B")


def dataset_metadata(rows: int, license: str | None, language: Sequence[str]) -> Metadata:
    """Returns a dataset's metadata, without `configs` and `dataset_info` (see [`describe_files`])."""
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
    """Returns a router's metadata, including its held-out rewards as `model-index`."""
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
    """Returns a fine-tuned student's metadata."""
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
    """Adds `configs` and `dataset_info` of one configuration, in the format of `datasets`; other ones are kept.

    Args:
        metadata (`Metadata`): Current metadata of the card.
        config_name (`str`): Name of the configuration.
        features (`Features`): Features of every split.
        patterns (`Mapping[str, str]`): Glob pattern of each split's shards.
        sizes (`Mapping[str, tuple[int, int]]`): Rows and bytes in memory of each split.
        download_size (`int`): Bytes of all shards.
    """
    from datasets import DatasetInfo, SplitDict, SplitInfo
    from datasets.info import DatasetInfosDict
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCardData

    info = DatasetInfo(
        config_name=config_name,
        features=features,
        splits=SplitDict(),
        download_size=download_size,
        dataset_size=sum(size for _, size in sizes.values()),
    )
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
    """Merges a card's metadata with the generated metadata, key by key.

    Keys that only the card has are kept. Lists of tags, languages, tasks and datasets keep the card's entries. The
    card's licence is kept unless the user set another. Facts (sizes, library, base model, results) are replaced.

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


def is_known(entry: object) -> bool:
    """Returns true for an entry of the held-out results whose mean is a finite number."""
    mean = entry.get("mean") if isinstance(entry, Mapping) else None
    return isinstance(mean, int | float) and math.isfinite(mean)


def _model_index(provenance: Provenance, location: str) -> Metadata:
    held_out = provenance.router.get("held_out") or {}
    prompts = provenance.router.get("prompts") or {}
    source = provenance.prompts_source or prompts.get("source")
    metrics = [
        {
            "type": "mean_reward",
            "name": f"Mean held-out reward, {POLICY_LABELS[key]}",
            "value": round(held_out[key]["mean"], 6),
        }
        for key in _EVALUATED
        if is_known(held_out.get(key))
    ]
    if not metrics or not is_known(held_out.get("router")):
        return {}
    if is_known(held_out.get("gap_closed")):
        gap = round(held_out["gap_closed"]["mean"], 6)
        metrics.append({"type": "gap_closed", "name": "Share of the gap to the oracle closed", "value": gap})
    dataset = {
        "type": source if is_repo_id(source) else "prompts",
        "name": one_line(source) if is_repo_id(source) else "probe prompts",
    }
    task = {"type": "text-classification", "name": "Routing prompts to teachers"}
    result = {"task": task, "dataset": dataset, "metrics": metrics}
    return {"model-index": [{"name": one_line(location.rsplit("/", 1)[-1]), "results": [result]}]}


def _without_nothing(**values: Any) -> Metadata:
    return {key: value for key, value in values.items() if value not in (None, [])}


_EMPTY = re.compile(r"\A\s*---(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|\Z)")
_MARKER = re.compile(r"<!-- persyn:(begin|end) ([^\n]*?) -->")


def split_card(text: str, where: str = "The card") -> tuple[dict[str, Any], str]:
    """Splits a card into metadata and body, at the same place as the Hub's client.

    The metadata ends with the first line that is only `---`; tables and rules in the body do not count.

    Args:
        text (`str`): Text of the `README.md`.
        where (`str`): Name of the card in errors.

    Raises:
        PublishError: If the metadata is not a YAML mapping.

    Example:
        >>> split_card("---\\nlicense: mit\\n---\\n\\n# Title\\n")
        ({'license': 'mit'}, '\\n# Title\\n')
    """
    head, body = _cut(text)
    if not head:
        return {}, body
    try:
        data = yaml.safe_load(head)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 2}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise PublishError(
            f"{where} has metadata that is not valid YAML{line}: {problem}. Fix `README.md` on the Hub and push "
            "again; nothing was sent."
        ) from error
    if data is not None and not isinstance(data, dict):
        raise PublishError(
            f"{where} must have metadata that is a mapping, got {type(data).__name__}: write `key: value` lines "
            "between the `---` lines of `README.md`. Nothing was sent."
        )
    return data or {}, body


def _cut(text: str) -> tuple[str, str]:
    """Splits a card into its YAML, without the `---` lines, and its body."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    text = text.removeprefix("\ufeff")
    empty = _EMPTY.match(text)
    if empty is not None:
        return "", text[empty.end() :]
    match = REGEX_YAML_BLOCK.match(text)
    return (match.group(2), text[match.end() :]) if match is not None else ("", text)


def join_card(metadata: Mapping[str, Any], body: str, old: str = "") -> str:
    """Joins metadata and body to the text of a card.

    Args:
        metadata (`Mapping[str, Any]`): Metadata of the card.
        body (`str`): Body of the card.
        old (`str`): Existing card: the lines of unchanged keys are kept as they are written, with comments.
    """
    written = _written_keys(_cut(old)[0])
    lines = []
    for key, value in metadata.items():
        text, before = written.get(key, ("", None))
        same = text and before == value and type(before) is type(value)
        lines.append(text if same else _as_yaml({key: value}))
    head = "\n".join(lines)
    if metadata and yaml.safe_load(head) != metadata:
        head = _as_yaml(metadata)
    return f"---\n{head}\n---\n\n{body.strip()}\n"


def _as_yaml(metadata: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True, width=1000).strip()


def _written_keys(head: str) -> dict[str, tuple[str, Any]]:
    """Returns the lines (with comments above) and the value of each top-level key of the YAML."""
    blocks: list[list[str]] = [[]]
    for line in head.splitlines():
        begins = re.match(r"[^\s#\-]", line) is not None
        if begins and any(re.match(r"[^\s#\-]", known) for known in blocks[-1]):
            # Comments directly above a key belong to it.
            above = len(blocks[-1])
            while blocks[-1][above - 1].startswith("#"):
                above -= 1
            blocks.append(blocks[-1][above:])
            del blocks[-2][above:]
        blocks[-1].append(line)
    written = {}
    for block in blocks:
        text = "\n".join(block).rstrip()
        try:
            value = yaml.safe_load(f"{text}\n")
        except yaml.YAMLError:
            continue
        if isinstance(value, dict) and len(value) == 1:
            key = next(iter(value))
            written[key] = (text, value[key])
    return written


def require_renewable(old: str, where: str) -> None:
    """Checks that [`renew_card`] can read a card, before a new one exists.

    Raises:
        PublishError: If it cannot.
    """
    _parts(split_card(old, where)[1], where)


def renew_card(
    old: str, metadata: Mapping[str, Any], body: str, where: str, asked: frozenset[str] = frozenset()
) -> str:
    """Replaces the generated parts of a repository's card.

    Args:
        old (`str`): Card in the repository; may be empty.
        metadata (`Mapping[str, Any]`): New generated metadata.
        body (`str`): New generated body.
        where (`str`): Name of the card in errors.
        asked (`frozenset[str]`): Metadata keys set by the user; see [`merge_metadata`].

    Raises:
        PublishError: If the card's metadata is not a YAML mapping, or its markers do not match.
    """
    head, text = split_card(old, where)
    return join_card(merge_metadata(head, metadata, asked), merge_body(text, body, where), old)


def merge_body(old: str, new: str, where: str = "The card") -> str:
    """Replaces the generated parts of a body.

    Args:
        old (`str`): Body in the repository. If it has no generated parts, the new parts are appended.
        new (`str`): New generated body.
        where (`str`): Name of the card in errors.

    Raises:
        PublishError: If the markers of the old body do not match.
    """
    fresh = _parts(new, "The new card")
    known = _parts(old, where)
    if not known:
        return f"{old.strip()}\n\n{_from_first_part(new, fresh)}" if old.strip() else new
    pieces, position = [], 0
    for name, (start, end) in known.items():
        pieces.append(old[position:start])
        # A part that is no longer generated (of a removed configuration) is deleted.
        pieces.append(_text(new, fresh[name]) if name in fresh else "")
        position = end
        pieces.extend(f"\n\n{_text(new, fresh[missing])}" for missing in _missing_after(name, fresh, known))
    lead = [f"{_text(new, fresh[missing])}\n\n" for missing in _missing_after(None, fresh, known)]
    return "".join([pieces[0], *lead, *pieces[1:], old[position:]])


def _missing_after(name: str | None, fresh: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """Returns the new parts after `name` (`None`: from the first on) up to the next one that the old body has."""
    names = list(fresh)
    if name is not None and name not in fresh:
        return []
    missing = []
    for candidate in names[names.index(name) + 1 if name is not None else 0 :]:
        if candidate in known:
            break
        missing.append(candidate)
    return missing


def _parts(body: str, where: str) -> dict[str, tuple[int, int]]:
    """Returns start and end of each generated part, including its markers."""
    parts: dict[str, tuple[int, int]] = {}
    opened: tuple[str, int] | None = None
    for match in _MARKER.finditer(body):
        kind, name = match.groups()
        if kind == "begin" and opened is None and name not in parts:
            opened = name, match.start()
        elif kind == "end" and opened is not None and opened[0] == name:
            parts[name] = opened[1], match.end()
            opened = None
        else:
            raise _damaged(where, match.group())
    if opened is not None:
        raise _damaged(where, f"<!-- persyn:begin {opened[0]} -->")
    return parts


def _damaged(where: str, marker: str) -> PublishError:
    return PublishError(
        f"{where}: the marker `{marker}` in `README.md` must be one of a pair, got it alone or twice. Restore the "
        "pair or delete both lines, and push again; nothing was sent."
    )


def _text(body: str, span: tuple[int, int]) -> str:
    return body[span[0] : span[1]]


def _from_first_part(body: str, parts: Mapping[str, tuple[int, int]]) -> str:
    return body[min(start for start, _ in parts.values()) :]
