from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
from datasets import Dataset, Features, List, Value

from persyn_hf.personalize import personalize
from tests.hub_server import Hub
from tests.publishing.client import start_client
from tests.publishing.routers import TinyRouter


@pytest.fixture
def router() -> TinyRouter:
    return TinyRouter()


@pytest.fixture
def answers() -> Dataset:
    rows = [
        ("1", "one?", "terse", "One.", "stop", 4, 2, None),
        ("2", "two?", "wordy", "Two, that is.", "stop", 4, 5, None),
        ("3", "three?", "wordy", "Three and", "length", 4, 3, None),
        ("4", "four?", "terse", None, None, None, None, "refused"),
        ("5", "five?", "terse", "  ", "stop", 4, 1, None),
    ]
    return make_answers(rows)


def make_answers(rows: Sequence[tuple[Any, ...]]) -> Dataset:
    features = Features(
        {
            "prompt_id": Value("string"), "prompt": Value("string"), "route": Value("string"),
            "route_scores": List(Value("float32")), "teacher": Value("string"), "completion": Value("string"),
            "finish_reason": Value("string"), "prompt_tokens": Value("int64"), "completion_tokens": Value("int64"),
            "error": Value("string"),
        }
    )  # fmt: skip
    return Dataset.from_list(
        [
            {
                "prompt_id": i, "prompt": p, "route": t, "route_scores": [0.5, -0.5], "teacher": t, "completion": c,
                "finish_reason": f, "prompt_tokens": n, "completion_tokens": m, "error": e,
            }
            for i, p, t, c, f, n, m, e in rows
        ],
        features=features,
    )  # fmt: skip


def make_data(*texts: str, teacher: str = "terse") -> Dataset:
    """A personalised table with one row per text."""
    return personalize(
        make_answers([(str(n), f"prompt {n}", teacher, text, "stop", 1, 2, None) for n, text in enumerate(texts)])
    )


@pytest.fixture(scope="session")
def server() -> Iterator[Hub]:
    with Hub() as running:
        yield running


@pytest.fixture
def hub(server: Hub) -> Hub:
    server.reset()
    return server


@pytest.fixture(scope="session")
def lfs_client(server: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessPoolExecutor]:
    with start_client(server, tmp_path_factory.mktemp("lfs-home"), xet=False) as running:
        yield running


@pytest.fixture(scope="session")
def xet_client(server: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessPoolExecutor]:
    with start_client(server, tmp_path_factory.mktemp("xet-home"), xet=True) as running:
        yield running


@pytest.fixture
def client(lfs_client: ProcessPoolExecutor) -> Callable[..., Any]:
    """Calls a function of `client.py` in a process that knows only this Hub; its errors are raised here."""
    return lambda function, *args, **options: lfs_client.submit(function, *args, **options).result(120)


@pytest.fixture(params=["lfs", "xet"])
def either(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """As `client`, once over LFS and once over Xet."""
    executor = request.getfixturevalue(f"{request.param}_client")
    return lambda function, *args, **options: executor.submit(function, *args, **options).result(120)
