"""Pushes through the real client libraries to a Hub on loopback, by LFS and by Xet."""

import os
import re
import subprocess
import sys

import pytest
import yaml
from datasets import DatasetDict

from persyn_hf.errors import PublishError
from tests.hub_server import READ_TOKEN
from tests.publishing.client import client_environment, command, load, push, push_twice_at_once, rows, warned
from tests.publishing.conftest import make_data
from tests.publishing.routers import TinyRouter


def metadata(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_fresh_push_and_exact_reload(hub, answers, router, either):
    done = either(push, answers, router=router, license="mit", language=("en",))
    data, model = hub.dataset(), hub.model()
    assert data.private and model.private
    assert data.commits() == [done.dataset.commit] and model.commits() == [done.router.commit]
    (shard,) = [path for path in data.files if path.endswith(".parquet")]
    assert re.fullmatch(r"data/train-00000-of-00001-[0-9a-f]{16}\.parquet", shard)
    assert set(data.files) == {
        ".gitattributes", "README.md", "persyn.json", "figures/allocation.png", "figures/reward.png", shard,
    }  # fmt: skip
    card = data.text("README.md")
    assert f'revision="{done.router.commit}"' in card and "[me/data]" in model.text("README.md")
    assert "commit" not in model.text("README.md")
    dataset, provenance, revision, scores = either(load)
    assert dataset.to_list() == [
        {
            "prompt": [{"role": "user", "content": prompt}], "completion": [{"role": "assistant", "content": text}],
            "prompt_id": identity, "teacher": teacher, "route_scores": [0.5, -0.5], "finish_reason": "stop",
            "prompt_tokens": 4, "completion_tokens": tokens,
        }
        for identity, prompt, teacher, text, tokens in [
            ("1", "one?", "terse", "One.", 2), ("2", "two?", "wordy", "Two, that is.", 5),
        ]
    ]  # fmt: skip
    assert revision == done.dataset.commit and len(scores[0]) == 2
    assert provenance.router_revision == done.router.commit and provenance.router == router.metadata
    assert provenance.dropped == {"the teacher failed": 1, "cut by max_tokens": 1, "no text": 1}
    assert [(t.name, t.rows, t.completion_tokens) for t in provenance.teachers] == [("terse", 1, 2), ("wordy", 1, 5)]


def test_nothing_changed_makes_no_commit(hub, answers, router, either):
    first = either(push, answers, router=router)
    hub.requests.clear()
    second = either(push, answers, router=router)
    assert (second.dataset.commit, second.router.commit) == (first.dataset.commit, first.router.commit)
    assert not second.dataset.changed and not second.router.changed and second.dataset.added == ()
    assert len(hub.dataset().commits()) == len(hub.model().commits()) == 1
    assert not [asked for asked in hub.requests if "preupload" in asked or "/commit/" in asked or "lfs" in asked]


def test_changed_rows_replace_the_old_shards_in_one_commit(hub, either):
    either(push, make_data("old", "rows"))
    (old,) = [path for path in hub.dataset().files if path.endswith(".parquet")]
    hub.dataset().write(**{"data__mine.csv": "a,b\n"})
    done = either(push, make_data("new", "rows", "more"))
    assert done.dataset.deleted == (old,) and old not in hub.dataset().files
    assert "data/mine.csv" in hub.dataset().files
    assert hub.dataset().messages() == ["Push with persyn-hf", "by a person", "Push with persyn-hf"]
    assert [row["completion"][0]["content"] for row in either(rows, split="train")] == ["new", "rows", "more"]
    info = metadata(hub.dataset().text("README.md"))["dataset_info"]
    assert info["splits"] == [{"name": "train", "num_bytes": info["dataset_size"], "num_examples": 3}]


def test_a_new_router_changes_both_repositories(hub, answers, client):
    first = client(push, answers, router=TinyRouter(seed=1))
    second = client(push, answers, router=TinyRouter(seed=2))
    assert second.router.added == ("model.safetensors",)
    assert second.router.commit != first.router.commit
    assert second.dataset.added == ("persyn.json", "README.md")
    assert second.router.commit in hub.dataset().text("README.md")


def test_old_weights_of_a_router_go(hub, answers, router, client):
    client(push, answers, router=router)
    old = {"model-00001-of-00002.safetensors": "x", "model.safetensors.index.json": "{}"}
    hub.model().write(**old, **{"notes.md": "n"})
    done = client(push, answers, router=router)
    assert sorted(done.router.deleted) == sorted(old)
    assert "notes.md" in hub.model().files


def test_two_pushes_at_once_end_in_one_of_both(hub, client):
    one, two = make_data("one"), make_data("two", "too")
    pushed = client(push_twice_at_once, one, two)
    repo = hub.dataset()
    assert len(repo.commits()) == 2 and {done.dataset.commit for done in pushed} == set(repo.commits())
    texts = [row["completion"][0]["content"] for row in client(rows, split="train")]
    assert texts in (["one"], ["two", "too"])
    (shard,) = [path for path in repo.files if path.endswith(".parquet")]
    (pattern,) = metadata(repo.text("README.md"))["configs"][0]["data_files"]
    assert pattern["path"].split("-")[-1] == shard.split("-")[-1]


def test_another_push_in_between_is_merged_not_overwritten(hub, client):
    client(push, make_data("a"))

    def someone_edits(repo):
        hub.before_commit = None
        repo.write(readme=repo.text("README.md").replace("# me/data", "# Renamed by hand"))

    hub.before_commit = someone_edits
    client(push, make_data("b"))
    assert hub.dataset().messages() == ["Push with persyn-hf", "by a person", "Push with persyn-hf"]
    assert "# Renamed by hand" in hub.dataset().text("README.md")
    assert [row["completion"][0]["content"] for row in client(rows, split="train")] == ["b"]


def test_more_files_than_one_commit_bears(hub, client, monkeypatch):
    first = client(push, make_data("old"), files_per_commit=2)
    assert len(hub.dataset().commits()) == 2 and first.dataset.commit == hub.dataset().sha
    messages = hub.dataset().messages()
    assert messages == ["Push with persyn-hf (part 1 of 2)", "Push with persyn-hf (part 2 of 2)"]
    old_card, half = hub.dataset().text("README.md"), []
    hub.before_commit = lambda repo: half.append(repo.text("README.md"))
    client(push, make_data("new"), files_per_commit=1)
    assert half == [old_card] * len(half) and len(half) >= 2  # the card changes with the last commit
    assert [row["completion"][0]["content"] for row in client(rows, split="train")] == ["new"]
    assert len([path for path in hub.dataset().files if path.endswith(".parquet")]) == 1


def test_a_branch_is_made_and_main_stays(hub, client):
    client(push, make_data("main"))
    before = hub.dataset().sha
    client(push, make_data("dev"), revision="dev")
    assert hub.dataset().sha == before and hub.dataset().resolve("dev") != before
    texts = [row["completion"][0]["content"] for row in client(rows, split="train", revision="dev")]
    assert texts == ["dev"]


def test_a_pull_request_leaves_main_alone(hub, answers, router, client):
    client(push, make_data("main"))
    before = hub.dataset().sha
    done = client(push, answers, router=router, create_pr=True, commit_message="Better answers")
    assert hub.dataset().sha == before
    assert done.dataset.pr_url.endswith("datasets/me/data/discussions/1")
    assert hub.dataset().messages("refs/pr/1") == ["Better answers"]
    assert len(client(rows, split="train", revision="refs/pr/1")) == 2
    with pytest.raises(PublishError, match="leave out `tags`"):
        client(push, answers, create_pr=True, tags=("v1.0",))


def test_a_large_pull_request_is_one_pull_request(hub, client):
    client(push, make_data("main"))
    done = client(push, make_data("more"), create_pr=True, files_per_commit=1)
    assert len(hub.dataset().commits("refs/pr/1")) > 1 and "refs/pr/2" not in hub.dataset().branches
    assert hub.dataset().resolve("refs/pr/1") == done.dataset.commit


def test_tags_mark_both_commits_and_are_never_moved(hub, answers, router, client):
    done = client(push, answers, router=router, tags=("v1.0",))
    assert hub.dataset().tags == {"v1.0": done.dataset.commit} and hub.model().tags == {"v1.0": done.router.commit}
    again = client(push, answers, router=router, tags=("v1.0",))
    assert not again.dataset.changed
    with pytest.raises(PublishError, match=r"The tag `v1.0` of the dataset `me/data` already marks the commit"):
        client(push, make_data("changed"), tags=("v1.0",))
    assert hub.dataset().sha == done.dataset.commit
    client(push, make_data("changed"), tags=("v1.1",))
    assert [r["completion"][0]["content"] for r in client(load, revision="v1.0", with_router=False)[0]] == [
        "One.", "Two, that is.",
    ]  # fmt: skip


def test_a_collection_by_title_and_by_slug(hub, answers, router, client):
    slug = client(push, answers, router=router, collection="My students").collection
    items = [("me/router", "model"), ("me/data", "dataset")]
    assert [(item["id"], item["type"]) for item in hub.collections[slug]["items"]] == items
    assert client(push, answers, router=router, collection=slug).collection == slug
    assert client(push, answers, router=router, collection="My students").collection == slug
    assert len(hub.collections[slug]["items"]) == 2 and hub.collections[slug]["private"]


def test_splits_and_configurations(hub, client):
    data = DatasetDict(train=make_data("a", "b"), test=make_data("c"))
    client(push, data, router=TinyRouter(), config_name="student-a")
    other = TinyRouter(seed=5, student="org/other")
    client(push, make_data("d", teacher="wordy"), router=other, router_repo_id="me/other", config_name="student-b")
    card = hub.dataset().text("README.md")
    facts = metadata(card)
    assert [config["config_name"] for config in facts["configs"]] == ["student-a", "student-b"]
    assert [info["config_name"] for info in facts["dataset_info"]] == ["student-a", "student-b"]
    assert "## student-a" in card and "| student-b | [org/other]" in card
    assert [r["completion"][0]["content"] for r in client(rows, "me/data", "student-a")["test"]] == ["c"]
    loaded, provenance, _, _ = client(load, config_name="student-a")
    assert {name: len(split) for name, split in loaded.items()} == {"train": 2, "test": 1}
    assert provenance.splits == {"train": 2, "test": 1} and provenance.router_repo_id == "me/router"
    assert client(load, config_name="student-b")[1].student == "org/other"
    with pytest.raises(PublishError, match="one of the configurations of the dataset `me/data`: student-a, student-b"):
        client(load)
    again = client(push, data, router=TinyRouter(), config_name="student-a")
    assert not again.dataset.changed


def test_a_dry_run_writes_what_a_push_sends(hub, answers, router, client):
    dry = client(push, answers, router=router, license="mit", dry_run=True)
    assert hub.repos == {} and dry.dataset.changed and dry.dataset.commit is None
    done = client(push, answers, router=router, license="mit")
    for folder, repo in ((dry.folder / "dataset", hub.dataset()), (dry.folder / "router", hub.model())):
        written = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        sent = {path: hub.content(file) for path, file in repo.files.items() if path != ".gitattributes"}
        assert set(written) == set(sent)
        for path, content in sent.items():
            # The one thing that a dry run cannot know is the commit that the router is going to have.
            told = content.replace(f'    revision="{done.router.commit}",\n'.encode(), b"")
            told = told.replace(f'"router_revision": "{done.router.commit}"'.encode(), b'"router_revision": null')
            assert written[path] == told, path
    changed = client(push, make_data("x"), dry_run=True)
    shards = [path for path in hub.dataset().files if path.endswith(".parquet")]
    assert changed.dataset.deleted == (*shards, "figures/reward.png")  # there is no router to draw


def test_a_repository_with_ten_thousand_files(hub, client):
    repo = hub.add("dataset", "me/data")
    repo.write(**{f"images/{number:05d}.txt": str(number) for number in range(10_000)})
    client(push, make_data("a"))
    assert sum("/tree/" in asked for asked in hub.requests) == 11  # pages of a thousand
    assert len(repo.files) == 10_000 + 5 and repo.files["images/09999.txt"].content == b"9999"
    assert not client(push, make_data("a")).dataset.changed


def test_unicode_everywhere(hub, either):
    names = ["教師", "المعلّم", "Ünï\u202ecødé", "🧑‍🏫"]
    block = {"teachers": [{"name": name, "model": f"org/{name}", "license": "mit"} for name in names]}
    text = "Zeile\r\n\u2028Ende \U0001f600 \u0000 e\u0301 </details> ---"
    data = make_data(text, teacher=names[1])
    either(push, data, router=TinyRouter(**block), commit_message="Größe 更新")
    assert hub.dataset().messages() == ["Größe 更新"]
    dataset, provenance, _, scores = either(load)
    assert dataset[0]["completion"][0]["content"] == text and dataset[0]["teacher"] == names[1]
    assert [teacher.name for teacher in provenance.teachers] == names and len(scores[0]) == 4
    body = hub.dataset().text("README.md").split("---\n", 2)[2]
    assert "教師" in body and "\u202e" not in body and "\u2068المعلّم\u2069" in body


def test_an_existing_public_repository_stays_public(hub, client):
    hub.add("dataset", "me/data", private=False)
    client(push, make_data("a"))
    assert not hub.dataset().private


def test_names_are_looked_at_first(hub, answers, router, client):
    for options, message in [
        ({"repo_id": "no owner"}, "`repo_id`: Repo id must use alphanumeric"),
        ({"repo_id": "data"}, "must include its owner, such as `me/data`"),
        ({"router_repo_id": "a//b", "router": router}, "`router_repo_id`"),
        ({"config_name": "a/b"}, "`config_name` must consist of letters"),
        ({"router_repo_id": "me/router"}, "`router_repo_id` needs `router`"),
    ]:
        with pytest.raises(PublishError, match=re.escape(message)):
            client(push, answers, **options)
    assert hub.requests == []


def test_the_token_is_looked_at_before_anything_is_sent(hub, answers, router, client):
    for token, message in [
        (READ_TOKEN, "Creating the dataset `me/data` needs a token with write access, got a read-only one"),
        ("hf_unknown", "the Hub rejects this token"),
    ]:
        with pytest.raises(PublishError, match=message) as caught:
            client(push, answers, router=router, token=token)
        assert token not in str(caught.value)
    with pytest.raises(
        PublishError, match="token of `me` cannot create the dataset `you/data`: it can write to me, my-org only"
    ):
        client(push, answers, repo_id="you/data")
    assert hub.repos == {} and not [asked for asked in hub.requests if not asked.startswith("GET")]
    hub.add("dataset", "me/data", private=False)
    with pytest.raises(PublishError, match="has no write access; create one that has"):
        client(push, answers, token=READ_TOKEN)
    client(push, answers, repo_id="my-org/data")


def test_a_name_of_the_other_type(hub, answers, router, client):
    client(push, answers, router=router)
    with pytest.raises(PublishError, match=r"`me/router` must be a dataset, but it is a model on the Hub.* swapped"):
        client(push, answers, repo_id="me/router")
    with pytest.raises(PublishError, match=r"`me/data` must be a model, but it is a dataset on the Hub.* swapped"):
        client(push, answers, repo_id="me/other", router=router, router_repo_id="me/data")
    assert set(hub.repos) == {("dataset", "me/data"), ("model", "me/router")}
    client(push, answers, repo_id="me/both", router=router, router_repo_id="me/both")
    assert {("dataset", "me/both"), ("model", "me/both")} <= set(hub.repos)


def test_the_hub_refuses_a_licence_before_anything_is_sent(hub, answers, router, client):
    with pytest.raises(PublishError, match=r'The Hub rejects the card .*"license" must be one of'):
        client(push, answers, router=router, license="my-own")
    assert hub.repos == {}


def test_warnings_of_licences(hub, client):
    closed = TinyRouter(teachers=[{"name": "terse", "model": "org/m", "license": "llama3"}])
    messages = client(warned, make_data("a"), router=closed, license="mit", private=False)
    assert [m for m in messages if "Teacher terse" in m] == [
        "Teacher terse has the licence llama3: Llama 3 forbids using its outputs to improve models other than Llama."
    ]
    assert "- Teacher terse has the licence llama3" in hub.dataset().text("README.md")
    assert any("`license` is not set" in m for m in client(warned, make_data("b"), private=False))


def test_secrets_stop_the_push_and_are_not_repeated(hub, client):
    secret = "hf_" + "aB3" * 12
    with pytest.raises(
        PublishError, match=r"split train, row 1 \(prompt 1\), column completion: looks like a Hug"
    ) as e:
        client(push, make_data("fine", f"use {secret} here"))
    assert secret not in str(e.value) and hub.repos == {}
    client(push, make_data("fine", f"use {secret} here"), allow_secrets=True)
    prompted = TinyRouter(teachers=[{"name": "terse", "system_prompt": "AKIA" + "ABCD" * 4}])
    with pytest.raises(PublishError, match="an AWS access key"):
        client(push, make_data("fine"), repo_id="me/other", router=prompted, router_repo_id="me/r")


def test_load_in_a_process_without_us(hub, answers, router, client, server, tmp_path):
    client(push, answers, router=router)
    code = re.search(r"```python\n(.*?)```", hub.dataset().text("README.md"), re.DOTALL).group(1)
    code += "\nimport sys\nassert 'persyn_hf' not in sys.modules"
    environment = os.environ | client_environment(server, tmp_path, xet=False)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "One." in done.stdout and "'label': 'wordy'" in done.stdout


def test_pull_command_and_the_folder_that_it_makes(hub, answers, router, client, tmp_path):
    client(push, answers, router=router)
    printed = client(command, ["pull", "me/data", str(tmp_path / "run"), "--quiet"])
    assert "default: 2 rows for org/student" in printed
    dataset, provenance, revision, scores = client(load, str(tmp_path / "run"))
    assert revision is None and provenance.rows == 2 and len(scores[0]) == 2
    assert dataset.to_list() == client(load)[0].to_list()


def test_a_gated_or_missing_router(hub, answers, router, client, tmp_path):
    client(push, answers, router=router)
    hub.model().gated = True
    with pytest.raises(PublishError, match=r"names the router `me/router` at \w{40}: it is gated.*with_router=False"):
        client(load)
    with pytest.raises(PublishError, match="it is gated"):
        client(command, ["pull", "me/data", str(tmp_path / "run")])
    del hub.repos["model", "me/router"]
    with pytest.raises(PublishError, match="the repository does not exist"):
        client(load)
    assert len(client(load, with_router=False)[0]) == 2
    with pytest.raises(PublishError, match="Loading the dataset `me/none` failed: the repository does not exist"):
        client(load, "me/none")
    with pytest.raises(PublishError, match="the revision does not exist"):
        client(load, revision="v9")
    hub.add("dataset", "me/plain").write(**{"data.csv": "a\n1\n"})
    with pytest.raises(PublishError, match=r"has no `persyn.json`, so persyn-hf did not push it"):
        client(load, "me/plain")
