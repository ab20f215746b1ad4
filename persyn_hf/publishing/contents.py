"""Contents of a dataset's and a router's repository: shards or weights, facts, figures and the merged card."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from persyn_hf.errors import PublishError
from persyn_hf.publishing import cards
from persyn_hf.publishing.figures import FIGURES, Figures, describe_figures
from persyn_hf.publishing.local_paths import public_files
from persyn_hf.publishing.metadata import (
    dataset_metadata,
    describe_files,
    join_card,
    merge_body,
    merge_metadata,
    renew_card,
    router_metadata,
    split_card,
)
from persyn_hf.publishing.parquet import DEFAULT_CONFIG, Shards, is_shard
from persyn_hf.publishing.provenance import Provenance
from persyn_hf.publishing.repository import CARD, FACTS, Content, RemoteFile, Snapshot

#: Version of the format of `persyn.json`; a reader refuses later ones.
FORMAT = 1
#: Weight files of a checkpoint; those that a new checkpoint does not have are deleted.
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")


class RouterLike(Protocol):
    """Interface of a router for publishing: its `persyn` block, and saving."""

    @property
    def metadata(self) -> dict[str, Any]:
        """The `persyn` block of its `config.json`."""
        ...

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Any:
        """Writes the stock checkpoint."""
        ...


@dataclass
class DatasetContent:
    """The dataset repository of a push.

    Args:
        location (`str`): Repository id or folder for `load_dataset`.
        config_name (`str`): Configuration to push; other configurations in the repository are kept.
        shards (`Mapping[str, Shards]`): Shards of each split.
        provenance (`Provenance`): Provenance, with the router's commit if it is known.
        figures (`Figures`): Figures of the card.
        license (`str`, *optional*): Licence set by the user.
        language (`Sequence[str]`): Languages set by the user.
        warnings (`Sequence[str]`): Sentences for the card's section on limits.
        folder (`Path`): Folder for the shards.
        whole (`bool`): Whether to write the shards even if the repository has them.
        saved (`Path`, *optional*): Folder that may already have these shards; a shard's name identifies its rows.
    """

    location: str
    config_name: str
    shards: Mapping[str, Shards]
    provenance: Provenance
    figures: Figures
    license: str | None
    language: Sequence[str]
    warnings: Sequence[str]
    folder: Path
    whole: bool = False
    saved: Path | None = None
    _written: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.saved is not None:
            places = {path: self.saved / path for shards in self.shards.values() for path in shards.paths}
            self._written = {path: place for path, place in places.items() if place.is_file()}

    def build(self, snapshot: Snapshot) -> Content:
        """The content beside what is there."""
        files: dict[str, Path | bytes] = {}
        paths = [path for shards in self.shards.values() for path in shards.paths]
        if self.whole or not self.are_there(snapshot):
            files.update(self._write())
        facts, runs = self._facts(snapshot)
        files[FACTS] = facts
        files.update(self._figures(snapshot, facts))
        files[CARD] = self.card(snapshot, runs).encode()
        stale = [path for path in snapshot.files if is_shard(path, self.config_name) and path not in paths]
        return Content(files, [*stale, *_old_figures(self.provenance, self.config_name, snapshot)])

    def are_there(self, snapshot: Snapshot) -> bool:
        """Returns true if the repository has every shard; a shard's name contains a digest of its rows."""
        return all(path in snapshot.files for shards in self.shards.values() for path in shards.paths)

    def card(self, snapshot: Snapshot, runs: Sequence[cards.Run] | None = None) -> str:
        """The card, merged with the one that is there.

        Raises:
            PublishError: If the one that is there cannot be read.
        """
        where = f"The card of the dataset `{self.location}`"
        head, body = split_card(snapshot.texts.get(CARD, ""), where)
        runs = self._facts(snapshot)[1] if runs is None else runs
        rows = sum(run.provenance.rows for run in runs)
        asked = frozenset({"license"} if self.license is not None else ())
        merged = merge_metadata(head, dataset_metadata(rows, self.license, self.language), asked)
        first = next(iter(self.shards.values()))
        merged = describe_files(
            merged,
            self.config_name,
            first.data.features,
            {split: shards.pattern for split, shards in self.shards.items()},
            {split: (len(shards.data), shards.bytes_in_memory) for split, shards in self.shards.items()},
            self._download_size(snapshot),
        )
        new = cards.dataset_body(runs, location=self.location, warnings=self.warnings)
        merged_body = merge_body(body, new, where) if body.strip() else new
        return join_card(merged, merged_body, snapshot.texts.get(CARD, ""))

    def _facts(self, snapshot: Snapshot) -> tuple[bytes, list[cards.Run]]:
        """Returns `persyn.json` and the card's configurations, of which the others are as in the repository."""
        known = read_facts(snapshot.texts.get(FACTS), f"`{FACTS}` of the dataset `{self.location}`")
        known[self.config_name] = self.provenance
        runs = [
            cards.Run(name, provenance, figure_names(provenance, name)) for name, provenance in sorted(known.items())
        ]
        return write_facts(known), runs

    def _figures(self, snapshot: Snapshot, facts: bytes) -> dict[str, Path | bytes]:
        """Returns the figures, unless the facts are unchanged: another font must not cause a commit."""
        if not self.whole and snapshot.texts.get(FACTS, "").encode() == facts:
            return {}
        return _drawn(self.figures, self.config_name)

    def _download_size(self, snapshot: Snapshot) -> int:
        total = 0
        for shards in self.shards.values():
            for path in shards.paths:
                local = self._written.get(path)
                total += local.stat().st_size if local is not None else snapshot.files.get(path, _NOTHING).size
        return total

    def _write(self) -> dict[str, Path]:
        for shards in self.shards.values():
            if not all(path in self._written for path in shards.paths):
                self._written.update(shards.write(self.folder))
        return self._written


@dataclass
class RouterContent:
    """The router repository of a push.

    Args:
        location (`str`): Repository id or folder for `pipeline`.
        router (`RouterLike`): Router to push.
        provenance (`Provenance`): Provenance of the dataset built with the router.
        figures (`Figures`): Figures of that dataset.
        dataset_location (`str`, *optional*): Location of that dataset, without a commit, which is not known yet.
        license (`str`, *optional*): Licence set by the user.
        language (`Sequence[str]`): Languages set by the user.
        folder (`Path`): Folder for the checkpoint.
    """

    location: str
    router: RouterLike
    provenance: Provenance
    figures: Figures
    dataset_location: str | None
    license: str | None
    language: Sequence[str]
    folder: Path
    _saved: bool = False

    def build(self, snapshot: Snapshot) -> Content:
        """The content beside what is there."""
        if not self._saved:
            self.router.save_pretrained(self.folder)
            self._saved = True
        files = public_files(
            {
                path.relative_to(self.folder).as_posix(): path
                for path in sorted(self.folder.rglob("*"))
                if path.is_file()
            }
        )
        card = self.card(snapshot)
        if card != snapshot.texts.get(CARD):
            files.update(_drawn(self.figures, DEFAULT_CONFIG))
        files[CARD] = card.encode()
        stale = [path for path in snapshot.files if WEIGHTS.fullmatch(path) and path not in files]
        return Content(files, [*stale, *_old_figures(self.provenance, DEFAULT_CONFIG, snapshot)])

    def card(self, snapshot: Snapshot) -> str:
        """The card, merged with the one that is there.

        Raises:
            PublishError: If the one that is there cannot be read.
        """
        where = f"The card of the router `{self.location}`"
        # Without the router's own repository: one router may have built several datasets.
        provenance = replace(self.provenance, router_repo_id=None, router_revision=None)
        asked = frozenset({"license"} if self.license is not None else ())
        ours = router_metadata(provenance, self.location, self.dataset_location, self.license, self.language)
        new = cards.router_body(
            provenance,
            location=self.location,
            dataset_location=self.dataset_location,
            figures=figure_names(provenance, DEFAULT_CONFIG),
        )
        return renew_card(snapshot.texts.get(CARD, ""), ours, new, where, asked)


def read_facts(text: str | None, where: str) -> dict[str, Provenance]:
    """Reads the provenance of every configuration from the text of `persyn.json`.

    Raises:
        PublishError: If the text is damaged or of a later version.
    """
    if text is None:
        return {}
    try:
        data = json.loads(text)
        version = int(data["format"])
        configs = dict(data["configs"])
    except (ValueError, KeyError, TypeError) as error:
        raise PublishError(
            f"{where} is damaged ({type(error).__name__}: {error}); restore it from the repository's history."
        ) from error
    if version > FORMAT:
        raise PublishError(
            f"{where} must have format {FORMAT} or lower, got {version} of a later persyn-hf; upgrade: pip install -U "
            "persyn-hf"
        )
    return {name: Provenance.from_dict(provenance) for name, provenance in configs.items()}


def write_facts(configs: Mapping[str, Provenance]) -> bytes:
    """Returns the content of `persyn.json`."""
    data: dict[str, Any] = {
        "format": FORMAT,
        "configs": {name: provenance.to_dict() for name, provenance in sorted(configs.items())},
    }
    return (json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "replace")


def figure_names(provenance: Provenance, config_name: str) -> dict[str, cards.Figure]:
    """Returns the paths and alt texts of the figures that can be drawn of these facts."""
    return {
        name: cards.Figure(_figure_path(name, config_name), alt) for name, alt in describe_figures(provenance).items()
    }


def _drawn(figures: Figures, config_name: str) -> dict[str, Path | bytes]:
    return {_figure_path(name, config_name): png for name, png in figures.drawn.items()}


def _old_figures(provenance: Provenance, config_name: str, snapshot: Snapshot) -> list[str]:
    """Returns the repository's figures that can no longer be drawn of these facts."""
    wanted = describe_figures(provenance)
    return [
        path for name in FIGURES if name not in wanted and (path := _figure_path(name, config_name)) in snapshot.files
    ]


def _figure_path(name: str, config_name: str) -> str:
    return f"figures/{name}.png" if config_name == DEFAULT_CONFIG else f"figures/{config_name}-{name}.png"


_NOTHING = RemoteFile(0, "", False)
