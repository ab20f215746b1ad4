"""A ledger that is deleted while a run goes on: it is told, and nothing that was paid for is lost."""

import os
import re
import shutil

import pytest

from persyn_hf.errors import LedgerError
from persyn_hf.generation.generate import generate_parallel
from persyn_hf.ledger.completion import Completion
from persyn_hf.ledger.ledger import Ledger
from tests.generation.servers import Teacher, serve


def remove(path):
    for name in (path, f"{path}-wal", f"{path}-shm"):
        if os.path.exists(name):
            os.unlink(name)


@pytest.mark.parametrize("how", ["deleted", "replaced", "with its folder"])
def test_what_a_deleted_ledger_held_is_saved_beside_it(tmp_path, how):
    path = tmp_path / "run" / "ledger.sqlite"
    with Ledger(path) as ledger:
        for number in range(5):
            ledger.put(f"k{number}", Completion(f"answer {number}", "stop", 3, 2))
        if how == "with its folder":
            shutil.rmtree(path.parent)
        else:
            remove(path)
        if how == "replaced":
            path.write_bytes(b"")
        with pytest.raises(LedgerError, match=r"deleted or replaced while it was in use\. Its 5 answers") as caught:
            ledger.put("k5", Completion("answer 5", "stop", 3, 2))
    saved = re.search(r"are in (\S+)\.", str(caught.value))[1]
    with Ledger(saved) as copy:
        assert copy.get_many(["k3"])["k3"].text == "answer 3"
        assert len(copy) == 5


def test_a_run_whose_ledger_is_deleted_goes_on_from_what_was_saved(tmp_path):
    path = tmp_path / "ledger.sqlite"

    def behave(n, body):
        if n == 30:
            remove(path)

    with serve(Teacher(behave)) as server:
        teacher = {"name": "t", "model": "m", "endpoint": server.url, "max_concurrency": 1}
        prompts = [f"p{n}" for n in range(60)]
        with pytest.raises(LedgerError, match="deleted or replaced") as caught:
            generate_parallel(prompts, [teacher], path, progress=False)
        remove(path)
        os.rename(re.search(r"are in (\S+)\.", str(caught.value))[1], path)
        asked = len(server.bodies)
        table = generate_parallel(prompts, [teacher], path, progress=False)
        assert table["error"][:] == [None] * 60
        assert len(server.bodies) - asked <= 60 - asked + 4  # those that were not committed yet are asked again
