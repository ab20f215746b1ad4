"""Dataset and router cards, rendered from the templates in `hub_cards/`."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

from persyn_hf import __version__
from persyn_hf.errors import PublishError
from persyn_hf.publishing.provenance import Provenance

PLOT_FILE = "persyn.png"
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)
#: What the templates read of a router's `persyn` block, for routers that do not record it.
_BLOCK: dict[str, Any] = dict.fromkeys(
    ("student", "student_revision", "backbone", "objective", "fallback", "reward", "quality", "seed", "held_out")
)
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#!|~$]|^[-+])")


def template_folder() -> Path:
    """Where the templates lie: inside the package (wheel) or beside it (editable install).

    Raises:
        PublishError: If neither folder is there.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "hub_cards", package.parent / "hub_cards"):
        if (folder / "dataset_card.md.jinja").is_file():
            return folder
    raise PublishError(f"The card templates are missing: neither {package}/hub_cards nor {package.parent}/hub_cards.")


def escape(value: Any, limit: int = 200) -> str:
    """Makes text from a model, a dataset or a config safe inside a Markdown card.

    HTML and Markdown lose their meaning, control and bidirectional characters are dropped, white space is folded to
    single blanks (so no line can begin with `---`), and text over `limit` characters is cut.
    """
    text = " ".join(str(value).split())
    text = "".join(character for character in text if character.isprintable())
    text = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return _MARKDOWN.sub(r"\\\1", html.escape(text, quote=False))


def dataset_card(
    provenance: Provenance,
    *,
    location: str,
    router_location: str | None,
    data_files: str,
    license: str | None = None,
    language: tuple[str, ...] = (),
) -> str:
    """Renders the dataset card, metadata included.

    Args:
        provenance (`Provenance`): What the card states.
        location (`str`): Repository id or folder, as `load_dataset` takes it.
        router_location (`str`, *optional*): Repository id or folder of the router, as `pipeline` takes it.
        data_files (`str`): The pattern of the Parquet shards, relative to the card.
        license (`str`, *optional*), language (`tuple[str, ...]`): Hub metadata; left out where not given.
    """
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        license=license,
        language=list(language) or None,
        task_categories=["text-generation"],
        size_categories=[size_category(provenance.rows)],
        tags=["persyn", "synthetic", "distillation", "trl"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": data_files}]}],
    )
    return _render(
        "dataset_card.md.jinja", data.to_yaml(), title=_title(location, "Personalised dataset"),
        provenance=provenance, location=location, router_location=router_location, plot=PLOT_FILE,
    )  # fmt: skip


def router_card(
    provenance: Provenance,
    *,
    location: str,
    dataset_location: str | None,
    license: str | None = None,
    language: tuple[str, ...] = (),
) -> str:
    """Renders the router's model card, metadata included. Arguments as in [`dataset_card`]."""
    from huggingface_hub import ModelCardData

    backbone = provenance.router.get("backbone")
    data = ModelCardData(
        license=license,
        language=list(language) or None,
        library_name="transformers",
        pipeline_tag="text-classification",
        base_model=backbone if _is_repo_id(backbone) else None,
        datasets=dataset_location if _is_repo_id(dataset_location) else None,
        tags=["persyn", "router", "distillation"],
    )
    return _render(
        "router_card.md.jinja", data.to_yaml(), title=_title(location, "Teacher router"),
        provenance=provenance, location=location, dataset_location=dataset_location, plot=PLOT_FILE,
    )  # fmt: skip


def size_category(rows: int) -> str:
    """The Hub's size category of a dataset.

    Example:
        >>> size_category(480), size_category(1000)
        ('n<1K', '1K<n<10K')
    """
    return next((name for limit, name in _SIZES if rows < limit), "10M<n<100M")


def _title(location: str, kind: str) -> str:
    return location if _is_repo_id(location) else kind


def _is_repo_id(name: Any) -> bool:
    return isinstance(name, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not Path(name).exists()


def _render(template: str, metadata_yaml: str, **values: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template_folder()),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["e"] = escape
    environment.filters["is_repo_id"] = _is_repo_id
    body = environment.get_template(template).render(
        block=_BLOCK | dict(values["provenance"].router), version=__version__, quote=json.dumps, **values
    )
    return f"---\n{metadata_yaml.strip()}\n---\n\n{body.strip()}\n"
