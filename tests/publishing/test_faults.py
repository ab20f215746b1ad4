"""The line cut at every request in turn, and everything else that a Hub may answer."""

import pytest

from persyn_hf.errors import PublishError
from tests.publishing.client import command, load, push, push_until_it_works, rows
from tests.publishing.conftest import make_data
from tests.publishing.routers import TinyRouter

OLD, NEW = TinyRouter(seed=1), TinyRouter(seed=2)


def texts(client, **options):
    return [row["completion"][0]["content"] for row in client(rows, split="train", **options)]


def state(hub):
    """What a stranger can read: the rows' digest in shard names and card, the router's weights."""
    found = {}
    for (kind, name), repo in hub.repos.items():
        found[kind, name] = {path: file.oid for path, file in repo.files.items() if path != ".gitattributes"}
    return found


def cut_at_every_request(hub, client, late, changes):
    """Pushes with the line dead from request n on, for n = 0, 1, 2 … until one comes through.

    After every cut each repository holds the old or the new state, and running the push again completes it. Rows and
    weights differ every time, so that nothing is there already. Returns how often the line was cut.
    """
    for number in range(100):
        if changes:
            before = state(hub)
        else:
            hub.repos.clear()
            before = {}
        data, router = make_data(f"new {number}", "rows"), TinyRouter(seed=number, held_out={})
        hub.cut_after, hub.cut_late = number, late
        error = client(push_until_it_works, data, router)
        hub.cut_after = None
        between = state(hub)
        assert client(push_until_it_works, data, router) is None
        after = state(hub)
        for key in after:
            assert between.get(key, {}) in (before.get(key, {}), after[key]), (number, key)
        if error is None:
            assert between == after
            return number
        assert "failed: " in error or "is not writable: " in error or "rejects the card" in error
    raise AssertionError("no push came through")


@pytest.mark.slow
def test_the_line_cut_before_every_request_of_a_fresh_push(hub, client):
    assert cut_at_every_request(hub, client, late=False, changes=False) >= 25
    assert "rows" in texts(client)


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("changes", [False, True])
def test_the_line_cut_at_every_request(hub, either, late, changes):
    either(push, make_data("old"), router=OLD)
    assert cut_at_every_request(hub, either, late, changes) >= 12
    assert "rows" in texts(either)


def test_the_answer_of_a_commit_is_lost(hub, client):
    """The commit was made, nobody heard of it: the next attempt finds it and makes no second one."""
    hub.add("dataset", "me/data")
    hub.add("model", "me/router")
    calls = []

    def lose(repo):
        calls.append(repo.name)
        hub.fail(r"GET /api/(datasets|models)/me/", 503, times=1)

    hub.before_commit = lose
    client(push, make_data("a"), router=NEW)
    assert len(hub.dataset().commits()) == len(hub.model().commits()) == 1


@pytest.mark.parametrize("status", [429, 500, 503, 412])
def test_what_passes_is_tried_again(hub, client, status):
    headers = {"Retry-After": "1"} if status == 429 else None
    for pattern in ("POST .*/commit/", "GET .*/revision/", "GET .*/tree/", "POST .*/preupload/", "objects/batch"):
        hub.fail(pattern, status, times=1, headers=headers)
    client(push, make_data(f"through {status}"), router=NEW)
    assert len(hub.dataset().commits()) == len(hub.model().commits()) == 1
    assert texts(client) == [f"through {status}"]


@pytest.mark.parametrize(
    "status, message",
    [
        (401, "the Hub rejects this token"),
        (403, "has no write access"),
        (409, "injected|409"),
        (412, "concurrent pushes changed the repository"),
        (429, "429"),
        (500, "Run the same push again"),
    ],
)
def test_what_does_not_pass_is_an_error_and_leaves_the_old_state(hub, client, status, message):
    client(push, make_data("old"))
    before = state(hub)
    hub.fail("POST .*/commit/", status, times=50)
    with pytest.raises(PublishError, match=message) as caught:
        client(push, make_data("new"))
    assert "Pushing the dataset `me/data` failed" in str(caught.value) and "hf_test_token" not in str(caught.value)
    assert state(hub) == before
    hub.faults.clear()
    client(push, make_data("new"))
    assert texts(client) == ["new"]


def test_a_read_only_token_is_found_out_before_the_router_goes(hub, client):
    client(push, make_data("old"), router=OLD)
    hub.fail("GET /api/datasets/me/data/auth-check/write", 403, times=50)
    before = state(hub)
    with pytest.raises(PublishError, match="The dataset `me/data` is not writable: this token has no write access"):
        client(push, make_data("new"), router=NEW)
    assert state(hub) == before


def test_half_of_a_push_in_several_commits_shows_the_old_data(hub, client):
    client(push, make_data("old"))
    made = []

    def fail_after_the_first(repo):
        made.append(repo.sha)
        if len(made) == 1:
            hub.fail("POST .*/commit/", 403, times=50)

    hub.before_commit = fail_after_the_first
    with pytest.raises(PublishError):
        client(push, make_data("new"), files_per_commit=1)
    assert len(hub.dataset().commits()) == 2 and texts(client) == ["old"]
    hub.faults.clear()
    hub.before_commit = None
    client(push, make_data("new"), files_per_commit=1)
    assert texts(client) == ["new"]
    assert len([path for path in hub.dataset().files if path.endswith(".parquet")]) == 1


@pytest.mark.parametrize(
    "readme, message",
    [
        ("---\nlicense: [mit\n---\n# x\n", r"metadata that is not valid YAML at line 2"),
        ("---\n- a\n- b\n---\n# x\n", "metadata that is a mapping, got list"),
        ("---\nlicense: mit\n---\n<!-- persyn:begin use -->\n# x\n", "must be one of a pair"),
    ],
)
def test_a_card_that_cannot_be_merged_stops_the_push(hub, client, readme, message):
    client(push, make_data("old"), router=OLD)
    hub.dataset().write(readme=readme)
    before = state(hub)
    with pytest.raises(PublishError, match=message):
        client(push, make_data("new"), router=NEW)
    assert state(hub) == before and not [a for a in hub.requests[-6:] if "/commit/" in a]


def test_what_a_person_wrote_stays(hub, client):
    client(push, make_data("old"), router=OLD, license="mit", language=("en",))
    card = hub.dataset().text("README.md")
    edited = card.replace("# me/data\n", "# Our data\n\nWritten by hand. {{ x }}\n")
    edited = edited.replace("license: mit", "license: cc-by-4.0\npretty_name: Ours\nextra_gated_prompt: Be nice")
    edited = edited.replace("- persyn\n", "- persyn\n- mine\n").replace("n<1K", "1M<n<10M")
    limits = "<!-- persyn:begin limits -->"
    edited = edited.replace(limits, f"A note before the limits.\n\n{limits}")
    edited = edited.replace("Answers are model output", "TAMPERED") + "\nThe end.\n"
    hub.dataset().write(readme=edited)
    client(push, make_data("new", "rows"), router=NEW)
    merged = hub.dataset().text("README.md")
    assert "# Our data\n\nWritten by hand. {{ x }}\n" in merged and "\nThe end.\n" in merged
    assert f"A note before the limits.\n\n{limits}" in merged and "# me/data" not in merged
    assert "license: cc-by-4.0\n" in merged and "pretty_name: Ours\n" in merged and "extra_gated_prompt" in merged
    assert "- mine\n" in merged and "n<1K" in merged and "num_examples: 2" in merged
    assert "TAMPERED" not in merged and merged.count("## Limits") == 1
    assert texts(client) == ["new", "rows"]
    client(push, make_data("new", "rows"), router=NEW, license="apache-2.0")
    assert "license: apache-2.0\n" in hub.dataset().text("README.md")
    assert client(load)[1].rows == 2


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True])
def test_one_cut_connection_never_ends_a_push(hub, client, late):
    for number in range(60):
        hub.reset()
        hub.cut_once, hub.cut_late = number, late
        assert client(push_until_it_works, make_data(f"{late} {number}"), TinyRouter(seed=number, held_out={})) is None
        if hub.cut_once >= 0:
            break
    assert number >= 20


@pytest.mark.parametrize("route", ["whoami-v2", "validate-yaml", "auth-check", "/api/collections"])
def test_checks_and_collections_are_tried_again(hub, client, route):
    client(push, make_data("old"), router=OLD)
    hub.repos.pop(("model", "me/router"))
    hub.fail(route, 503, times=2)
    client(push, make_data("new"), router=NEW, collection="Ours")
    assert texts(client) == ["new"] and not [fault for fault in hub.faults if fault.times]


def test_a_failed_pull_says_to_pull_again(hub, client, tmp_path):
    client(push, make_data("old"), router=OLD)
    hub.fail("GET /api/datasets/me/data", 500, times=99)
    with pytest.raises(
        PublishError, match=r"Pulling the dataset `me/data` failed: .* Run the same pull again to resume"
    ):
        client(command, ["pull", "me/data", str(tmp_path / "run"), "--quiet"])
    with pytest.raises(PublishError, match=r"Loading the dataset `me/data` failed: .* Run the same load again"):
        client(load)
