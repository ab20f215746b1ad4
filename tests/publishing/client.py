"""Pushes and loads as a user would, in a process that knows only the tests' Hub.

`huggingface_hub` reads its endpoint when it is imported, so the functions here run in a child process, one for each
way of transfer; pytest's own process holds the Hub and looks into it.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.hub_server import TOKEN, Hub

if TYPE_CHECKING:
    from persyn_hf.publishing.push import Published

_sleep = time.sleep


def start_client(hub: Hub, home: Path, xet: bool) -> ProcessPoolExecutor:
    environment = client_environment(hub, home, xet)
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=_begin, initargs=(environment,))


def client_environment(hub: Hub, home: Path, xet: bool) -> dict[str, str]:
    environment = {
        "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "20",
        "HF_HUB_DISABLE_SYMLINKS_WARNING": "1",
        # hf_xet waits by itself, where the shorter sleep below does not reach.
        "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1", "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms",
    }  # fmt: skip
    return environment if xet else environment | {"HF_HUB_DISABLE_XET": "1"}


def _begin(environment: dict[str, str]) -> None:
    os.environ.pop("HF_HUB_OFFLINE", None)
    os.environ.update(environment)
    # The client libraries wait seconds between attempts; the tests' Hub needs no rest.
    time.sleep = lambda seconds: _sleep(min(float(seconds), 0.005))
    import warnings

    import transformers

    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")


def push(data: Any, repo_id: str = "me/data", router: Any = None, **options: Any) -> Published:
    from persyn_hf import push_personalized

    options.setdefault("router_repo_id", "me/router" if router is not None else None)
    return push_personalized(data, repo_id, router=router, **options)


def push_twice_at_once(first: Any, second: Any, **options: Any) -> list[Published]:
    with ThreadPoolExecutor(2) as threads:
        return [job.result() for job in [threads.submit(push, data, **options) for data in (first, second)]]


def push_until_it_works(data: Any, router: Any) -> str | None:
    """Two calls as a user makes them: the first meets whatever the Hub does; returns its error."""
    from persyn_hf.errors import PublishError

    try:
        push(data, router=router)
    except PublishError as error:
        return str(error)
    return None


def check_student(repo_id: str, **options: Any) -> None:
    from persyn_hf.publishing.push import StudentPush

    StudentPush(repo_id, **options).check()


def push_student(folder: Path, card: Any, repo_id: str = "me/student") -> Any:
    from persyn_hf.publishing.push import StudentPush

    return StudentPush(repo_id).send(folder, card)


def load(repo_id: str = "me/data", config_name: str | None = None, **options: Any) -> tuple[Any, Any, Any, Any]:
    from persyn_hf import load_personalized

    loaded = load_personalized(repo_id, config_name, **options)
    scores = None
    if loaded.router is not None:
        scores = loaded.router.scores(["Write about the sea"]).tolist()
    return loaded.dataset, loaded.provenance, loaded.revision, scores


def warned(data: Any, **options: Any) -> list[str]:
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        push(data, **options)
    return [str(warning.message) for warning in caught]


def command(arguments: list[str]) -> str:
    """The command line; returns what it printed."""
    import contextlib
    import io

    from persyn_hf.cli import app

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        app(arguments, standalone_mode=False)
    return out.getvalue()


def rows(repo_id: str = "me/data", *arguments: Any, **options: Any) -> Any:
    """What plain `datasets` reads."""
    from datasets import load_dataset

    return load_dataset(repo_id, *arguments, **options)
