"""A student's repository."""

import pytest

from persyn_hf.errors import PublishError
from persyn_hf.publishing.cards import student_card
from tests.hub_server import READ_TOKEN
from tests.publishing.client import check_student, push_student


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "checkpoints/9").mkdir(parents=True)
    for path in ("config.json", "model.safetensors", "README.md", "checkpoints/9/model.safetensors"):
        (tmp_path / path).write_text(f"old {path}")
    return tmp_path


def card(**report):
    return student_card({"student": "org/student", **report}, location="me/student")


def test_one_private_commit_and_none_without_a_change(hub, folder, client):
    first = client(push_student, folder, card(steps=10))
    model = hub.model("me/student")
    assert first.changed and first.commit == model.sha and model.private
    assert set(model.files) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert model.text("README.md") == card(steps=10)
    assert len(model.messages()) == 1
    assert not client(push_student, folder, card(steps=10)).changed
    assert len(model.messages()) == 1


def test_words_of_a_person_stay_and_old_weights_go(hub, folder, client):
    client(push_student, folder, card(steps=10))
    model = hub.model("me/student")
    edited = model.text("README.md").replace("tags:", "mine: yes\ntags:").replace("# ", "# My own ", 1)
    model.write(**{"README.md": edited, "model-00001-of-00002.safetensors": "old"})
    (folder / "model.safetensors").write_text("other weights")
    done = client(push_student, folder, card(steps=20))
    text = model.text("README.md")
    assert "# My own " in text and "mine:" in text and "| optimiser steps | 20 |" in text
    assert "optimiser steps | 10 |" not in text
    assert done.deleted == ("model-00001-of-00002.safetensors",) and done.deleted[0] not in model.files


def test_what_cannot_be_pushed_is_said_before_a_training(hub, folder, client):
    with pytest.raises(PublishError, match="must include its owner"):
        client(check_student, "student")
    with pytest.raises(PublishError, match="got a read-only one"):
        client(check_student, "me/student", token=READ_TOKEN)
    with pytest.raises(PublishError, match="cannot create the model `other/student`"):
        client(check_student, "other/student")
    client(push_student, folder, card())
    hub.model("me/student").write(**{"README.md": "---\n- a list\n---\n"})
    with pytest.raises(PublishError, match="metadata that is a mapping, got list"):
        client(check_student, "me/student")


def test_a_card_that_a_person_wrote_alone_is_taken_in(hub, folder, client):
    client(push_student, folder, card())
    hub.model("me/student").write(readme="# Mine\n\nAll by hand.\n")
    client(check_student, "me/student")
    client(push_student, folder, card(steps=10))
    text = hub.model("me/student").text("README.md")
    assert "# Mine\n\nAll by hand.\n\n<!-- persyn:begin summary -->" in text and "| optimiser steps | 10 |" in text
