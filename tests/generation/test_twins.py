"""Teachers whose answers the ledger could take for each other's."""

import pytest

from persyn_hf.config import Teacher
from persyn_hf.errors import ConfigError
from persyn_hf.generation.generate import generate_parallel, generate_routed
from persyn_hf.generation.jobs import resolved
from persyn_hf.generation.twins import find_twins
from tests.generation.servers import Teacher as Double
from tests.generation.servers import serve


def teacher(name, endpoint="http://127.0.0.1:1", model="llm", **more):
    return Teacher(name=name, model=model, endpoint=endpoint, **more)


@pytest.mark.parametrize(
    ("other", "apart"),
    [
        (teacher("b"), False),
        (teacher("b", "http://127.0.0.1:2"), True),
        (teacher("b", ("http://127.0.0.1:1", "http://127.0.0.1:2")), False),
        (teacher("b", "http://127.0.0.1:2", revision="v2"), None),
        (teacher("b", "http://127.0.0.1:2", model="llm-b"), None),
        (teacher("b", "http://127.0.0.1:2", system_prompt="Be."), None),
        (teacher("b", "http://127.0.0.1:2", sampling={"temperature": 0.3}), None),
        (teacher("b", "http://127.0.0.1:2", reasoning="keep", timeout=9), True),
    ],
)
def test_what_tells_two_teachers_apart(other, apart):
    found = list(find_twins([resolved(teacher("a")), resolved(other), resolved(teacher("c", model="another"))]))
    assert [one.apart for one in found] == ([] if apart is None else [apart])
    assert all(one.names == ["a", "b"] for one in found)


@pytest.mark.parametrize("routed", [False, True])
def test_two_models_served_under_one_name_are_refused_before_anything_is_asked(routed):
    with serve(Double()) as first, serve(Double()) as second:
        teachers = [teacher("a", first.url), teacher("b", second.url)]
        with pytest.raises(ConfigError, match=r"`a` and `b` have the same `model`.* give each its own `revision`"):
            if routed:
                generate_routed([{"prompt": "Hi", "route": "a"}, {"prompt": "Ho", "route": "b"}], teachers)
            else:
                generate_parallel(["Hi", "Ho"], teachers, progress=False)
        assert not first.bodies and not second.bodies
        told_apart = [teachers[0], teacher("b", second.url, revision="b")]
        assert generate_parallel(["Hi"], told_apart, progress=False)["error"][:] == [None, None]
        assert (len(first.bodies), len(second.bodies)) == (1, 1)
