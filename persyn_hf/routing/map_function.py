"""`persyn_route`, the plain map function, and `pin_router`, which pins the version of its router."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from persyn_hf import columns
from persyn_hf.config import merged
from persyn_hf.config.routing import RouteOptions
from persyn_hf.errors import RouterCheckpointError, RouterError, RouterMismatchError
from persyn_hf.models.device import worker_device
from persyn_hf.models.identity import resolve_revision
from persyn_hf.tables import require_batch

#: Environment variable that names the router if no argument does.
ROUTER_VARIABLE = "PERSYN_ROUTER"


def persyn_route(
    examples: Mapping[str, Any],
    rank: int | None = None,
    *,
    router: str | None = None,
    revision: str | None = None,
    prompt_column: str | None = None,
    library_version: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Routes one row or a batch: adds `route` and `route_scores`. For use with `datasets.map`.

    With a bare `router` path, cached results can be stale: `datasets` hashes the path, so after a checkpoint is
    replaced at the same path the old results come from the cache. Use `fn_kwargs=pin_router(...)` or a router object.

    Args:
        examples (`Mapping`): Row, or batch of columns, with the prompt column.
        rank (`int`, *optional*): Rank of the process, from `map(with_rank=True)`; it selects the GPU.
        router (`str`, *optional*): Folder or repository id; default: the environment variable `PERSYN_ROUTER`.
        revision (`str`, *optional*): Commit, tag or branch of a repository, or expected digest of a folder.
        prompt_column (`str`, *optional*): Column of the prompts; default: the one in the router's checkpoint, else
            `prompt`.
        library_version (`str`, *optional*): Version of persyn_hf, as part of the cache key; set by [`pin_router`].
        options: Keys of [`RouteOptions`]: `device`, `dtype`, `endpoint` (a Text Embeddings Inference server that
            serves the router), and its connection: `api_key_env`, `api_key_header`, `extra_headers`,
            `extra_query`, `use_hub_token`.

    Returns:
        `dict`: `route` (teacher name) and `route_scores` (float32, in the router's teacher order).

    Raises:
        RouterError: If no router is named.
        RouterCheckpointError: If the checkpoint is damaged, or the loaded or served router is not the pinned one.
        RouterMismatchError: If the server's labels differ from the router's.
        MissingColumnError: If the prompt column is absent.
        DataError: If a prompt is empty.

    Example:
        >>> routed = prompts.map(persyn_route, batched=True, fn_kwargs=pin_router("org/router"))  # doctest: +SKIP
    """
    require_batch(examples, "persyn_route")
    asked = merged(RouteOptions, None, options, "persyn_route")
    if asked.endpoint is not None:
        return _route_remotely(examples, asked.endpoint, asked.connection, router, revision, prompt_column)
    from persyn_hf.routing.router import PersynRouter, route_examples

    name = router or os.environ.get(ROUTER_VARIABLE)
    if not name:
        raise RouterError(
            "persyn_route needs a router, got none: pass fn_kwargs=pin_router('org/router') (or "
            f"fn_kwargs={{'router': 'org/router'}}) to map, or set the environment variable {ROUTER_VARIABLE}."
        )
    loaded = PersynRouter.from_pretrained(name, revision, worker_device(asked.device, rank), asked.dtype)
    return route_examples(loaded, examples, prompt_column or loaded.prompt_column)


def _route_remotely(
    examples: Mapping[str, Any],
    endpoint: str,
    connection: Mapping[str, Any],
    router: str | None,
    revision: str | None,
    prompt_column: str | None,
) -> dict[str, Any]:
    from persyn_hf.routing.checkpoint import read_labels
    from persyn_hf.routing.router import is_one_prompt
    from persyn_hf.routing.tei import describe_endpoint

    served = describe_endpoint(endpoint, **connection)
    block: Mapping[str, Any] = {}
    if router is not None:
        block, teachers = read_labels(router, revision)
        if teachers != served.teachers:
            raise RouterMismatchError(
                f"{endpoint} must serve the teachers of {router}, {list(teachers)}, got {list(served.teachers)}."
            )
    if revision is not None and served.digest is not None and served.digest != revision:
        raise RouterCheckpointError(f"{endpoint} must serve the commit {revision}, got {served.digest}.")
    if revision is not None and served.digest is None and router is None:
        raise RouterCheckpointError(
            f"{endpoint} does not report which commit it serves, so `revision` {revision} cannot be verified; pass "
            "`router` too, to compare labels, or omit `revision`."
        )
    column = prompt_column or block.get("prompt_column") or columns.PROMPT
    columns.require_columns(examples.keys(), [column], "routing")
    one = is_one_prompt(examples[column])
    scores = served.scores([examples[column]] if one else examples[column], **connection)
    fallback = block.get("fallback")
    routes = [fallback or served.teachers[index] for index in scores.argmax(axis=1)]
    if one:
        return {columns.ROUTE: routes[0], columns.ROUTE_SCORES: scores[0]}
    return {columns.ROUTE: routes, columns.ROUTE_SCORES: list(scores)}


def pin_router(
    router: str | os.PathLike[str],
    revision: str | None = None,
    *,
    prompt_column: str | None = None,
    endpoint: str | None = None,
    **connection: Any,
) -> dict[str, Any]:
    """Returns plain arguments for [`persyn_route`] that change whenever the router or this library changes.

    Args:
        router (`str` or `PathLike`): Folder or repository id.
        revision (`str`, *optional*): Branch, tag or commit of a repository.
        prompt_column, endpoint (`str`, *optional*): Arguments of [`persyn_route`], passed through.
        connection: Connection to `endpoint`: `api_key_env` and the other keys of [`Connection`].

    Returns:
        `dict[str, Any]`: Value for `fn_kwargs`: the router, its commit (or a folder's digest) and the library's
            version.

    Raises:
        ConfigError: If the router is not found, or an option is unknown or wrong.
    """
    from persyn_hf.version import __version__

    asked = merged(RouteOptions, None, {"endpoint": endpoint, **connection}, "pin_router")
    name = os.fspath(router)
    name = os.path.abspath(name) if os.path.isdir(name) else name
    pinned = {"router": name, "revision": resolve_revision(name, revision), "library_version": __version__}
    more = {"prompt_column": prompt_column, "endpoint": endpoint, **asked.connection}
    return pinned | {key: value for key, value in more.items() if value is not None}
