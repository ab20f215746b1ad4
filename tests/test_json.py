"""JSON that a run writes: whole or not at all, and JSON."""

import json
import math

from persyn_hf.tables import json_text, write_json


def refuse(name):
    raise AssertionError(name)


def test_what_is_no_finite_number_is_null(tmp_path):
    value = {"gap": math.nan, "rows": [1.5, -math.inf, {"deep": (math.inf, "NaN")}], 3: True}
    write_json(tmp_path / "report.json", value)
    text = (tmp_path / "report.json").read_text()
    assert json.loads(text, parse_constant=refuse) == {
        "gap": None,
        "rows": [1.5, None, {"deep": [None, "NaN"]}],
        "3": True,
    }
    assert json_text({"a": 1}) == '{\n  "a": 1\n}'
