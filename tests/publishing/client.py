"""Pushes and loads as a user would, in a process that knows only the tests' Hub.

`huggingface_hub` reads its endpoint when it is imported, so the functions here run in a child process, one for each
way of transfer; pytest's own process holds the Hub and looks into it.
"""

import os
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from tests.hub_server import TOKEN

_sleep = time.sleep


def start_client(hub, home: Path, xet: bool) -> ProcessPoolExecutor:
    environment = client_environment(hub, home, xet)
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=_begin, initargs=(environment,))


def client_environment(hub, home: Path, xet: bool) -> dict[str, str]:
    environment = {
        "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "20",
        "HF_HUB_DISABLE_SYMLINKS_WARNING": "1",
        # hf_xet waits by itself, where the shorter sleep below does not reach.
        "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1", "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms",
    }  # fmt: skip
    return environment if xet else environment | {"HF_HUB_DISABLE_XET": "1"}


def _begin(environment):
    os.environ.pop("HF_HUB_OFFLINE", None)
    os.environ.update(environment)
    # The client libraries wait seconds between attempts; the tests' Hub needs no rest.
    time.sleep = lambda seconds: _sleep(min(seconds, 0.005))
    import warnings

    import transformers

    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")


def push(data, repo_id="me/data", router=None, **options):
    from persyn_hf import push_personalized

    options.setdefault("router_repo_id", "me/router" if router is not None else None)
    return push_personalized(data, repo_id, router=router, **options)


def push_twice_at_once(first, second, **options):
    with ThreadPoolExecutor(2) as threads:
        return [job.result() for job in [threads.submit(push, data, **options) for data in (first, second)]]


def push_until_it_works(data, router):
    """Two calls as a user makes them: the first meets whatever the Hub does; returns its error."""
    from persyn_hf.errors import PublishError

    try:
        push(data, router=router)
    except PublishError as error:
        return str(error)
    return None


def check_student(repo_id, **options):
    from persyn_hf.publishing.push import StudentPush

    StudentPush(repo_id, **options).check()


def push_student(folder, card, repo_id="me/student"):
    from persyn_hf.publishing.push import StudentPush

    return StudentPush(repo_id).send(folder, card)


def load(repo_id="me/data", config_name=None, **options):
    from persyn_hf import load_personalized

    loaded = load_personalized(repo_id, config_name, **options)
    scores = None
    if loaded.router is not None:
        scores = loaded.router.scores(["Write about the sea"]).tolist()
    return loaded.dataset, loaded.provenance, loaded.revision, scores


def warned(data, **options):
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        push(data, **options)
    return [str(warning.message) for warning in caught]


def command(arguments):
    """The command line; returns what it printed."""
    import contextlib
    import io

    from persyn_hf.cli import app

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        app(arguments, standalone_mode=False)
    return out.getvalue()


def rows(repo_id="me/data", *arguments, **options):
    """What plain `datasets` reads."""
    from datasets import load_dataset

    return load_dataset(repo_id, *arguments, **options)
