"""Every shape in which prompts lie around becomes the same prompts."""

import json

import pytest

from persyn_hf.config import Prompts
from persyn_hf.errors import ConfigError, DataError, DuplicatePromptError
from persyn_hf.prompts import load_prompts

TALK = [{"role": "user", "content": "Name a sea."}, {"role": "assistant", "content": "The Aral Sea."}]
ASKED = [{"role": "user", "content": "Name a sea."}]
TOOLS = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}]


def written(tmp_path, rows, name="p.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def loaded(tmp_path, rows, **settings):
    return load_prompts(Prompts(source=written(tmp_path, rows), **settings))


SHAPES = {
    "prompt": ({"prompt": "Name a sea."}, "Name a sea.", None),
    "text": ({"text": "Name a sea."}, "Name a sea.", "text, from the column `text`"),
    "a string a line": ("Name a sea.", "Name a sea.", "text, from the column `text`"),
    "one column": ({"frage": "Name a sea."}, "Name a sea.", "text, from the column `frage`"),
    "question": ({"question": "Name a sea.", "answer": "Aral"}, "Name a sea.", "text, from the column `question`"),
    "alpaca": ({"instruction": "Name a sea.", "input": "", "output": "x"}, "Name a sea.", "alpaca, from the column"),
    "alpaca with input": ({"instruction": "Add", "input": "1, 2"}, "Add\n\n1, 2", "`instruction` and `input`"),
    "alpaca with a system": (
        {"instruction": "Name a sea.", "input": None, "system": "Be brief."},
        [{"role": "system", "content": "Be brief."}, *ASKED],
        "alpaca",
    ),
    "messages": ({"messages": TALK}, ASKED, "messages, from the column `messages`"),
    "prompt of messages": ({"prompt": ASKED}, ASKED, None),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Name a sea."}, {"from": "gpt", "value": "The Aral Sea."}]},
        ASKED,
        "sharegpt, from the column `conversations`",
    ),
    "sharegpt of openai's speakers": (
        {"conversations": [{"from": "user", "value": "Name a sea."}, {"from": "assistant", "value": "Aral"}]},
        ASKED,
        "sharegpt",
    ),
    "sharegpt with a system": (
        {"conversations": [{"from": "human", "value": "Name a sea."}], "system": "Be brief."},
        [{"role": "system", "content": "Be brief."}, *ASKED],
        "sharegpt",
    ),
    "sharegpt with a tool": (
        {
            "conversations": [
                {"from": "human", "value": "Name a sea."},
                {"from": "function_call", "value": '{"name": "seas"}'},
                {"from": "observation", "value": "Aral"},
                {"from": "gpt", "value": "Aral."},
            ]
        },
        [
            *ASKED,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"type": "function", "function": {"name": "seas", "arguments": {}}}],
            },
            {"role": "tool", "content": "Aral"},
        ],
        "sharegpt",
    ),
    "a mapping of lists": (
        {"conversation": {"role": ["user", "assistant"], "content": ["Name a sea.", "Aral"]}},
        ASKED,
        "messages",
    ),
    "messages as JSON in a string": ({"prompt": json.dumps(TALK)}, ASKED, "messages in strings"),
    "messages as Python in a string": ({"prompt": repr(TALK)}, ASKED, "messages in strings"),
    "ChatML": (
        {"prompt": "<|im_start|>user\nName a sea.<|im_end|>\n<|im_start|>assistant\n"},
        ASKED,
        "ChatML in strings",
    ),
    "HH-RLHF": (
        {"chosen": "\n\nHuman: Name a sea.\n\nAssistant: Aral", "rejected": "\n\nHuman: Name a sea.\n\nAssistant: No"},
        ASKED,
        "preference, from the column `chosen` and `rejected`",
    ),
    "explicit preferences": ({"prompt": "Name a sea.", "chosen": "Aral", "rejected": "No"}, "Name a sea.", None),
    "implicit preferences": (
        {"chosen": TALK, "rejected": [*ASKED, {"role": "assistant", "content": "No."}]},
        ASKED,
        "preference",
    ),
    "implicit preferences of strings": (
        {"chosen": "Name a sea. Aral", "rejected": "Name a sea. No"},
        "Name a sea.",
        "preference",
    ),
    "a question with preferences": (
        {"question": "Name a sea.", "chosen": "Aral", "rejected": "No"},
        "Name a sea.",
        "`question`",
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_found_read_and_said(shape, tmp_path, caplog):
    row, prompt, said = SHAPES[shape]
    assert loaded(tmp_path, [row])["prompt"][:] == [prompt]
    assert (said in caplog.text) if said else "read as" not in caplog.text


@pytest.mark.parametrize(
    ("shape", "row"),
    [
        ("text", {"prompt": json.dumps(TALK)}),
        ("messages", {"prompt": ASKED}),
        ("sharegpt", {"conversation": [{"from": "human", "value": "Name a sea."}]}),
        ("alpaca", {"instruction": "Name a sea.", "question": "x"}),
        ("qa", {"question": "Name a sea.", "instruction": "x"}),
        ("preference", {"chosen": TALK, "rejected": [*ASKED, {"role": "assistant", "content": "No."}]}),
    ],
)
def test_a_shape_can_be_named(shape, row, tmp_path, caplog):
    wanted = {"text": json.dumps(TALK), "alpaca": "Name a sea.", "qa": "Name a sea."}.get(shape, ASKED)
    assert loaded(tmp_path, [row], format=shape)["prompt"][:] == [wanted]
    with pytest.raises(ConfigError, match=r"prompts.format: .* has no column for .*; it has other"):
        loaded(tmp_path, [{"other": "x"}], format=shape)


def test_two_shapes_that_fit_are_a_question_with_its_choices(tmp_path):
    row = {"messages": TALK, "question": "Name a sea.", "id": 1}
    with pytest.raises(ConfigError) as raised:
        loaded(tmp_path, [row])
    assert str(raised.value).endswith("Choose one: `column: messages` (messages); `column: question` (qa).")
    assert loaded(tmp_path, [row], column="question").column_names == ["prompt_id", "prompt", "messages", "id"]


def test_no_shape_that_fits_lists_the_columns(tmp_path):
    with pytest.raises(ConfigError, match=r"it has title, url\. Set `column`, or a `template`"):
        loaded(tmp_path, [{"title": "x", "url": "y"}])


def test_a_template_makes_prompts_of_any_columns(tmp_path):
    rows = [{"title": "Seas", "words": 20}, {"title": "Lakes", "words": 30}]
    data = loaded(tmp_path, rows, template="Write {{ words }} words about {{ title | lower }}.")
    assert data["prompt"][:] == ["Write 20 words about seas.", "Write 30 words about lakes."]
    assert data.column_names == ["prompt_id", "prompt"]
    with pytest.raises(
        ConfigError, match=r"prompts.template: there is no column `name`; the columns are title, words"
    ):
        loaded(tmp_path, rows, template="{{ name }}")
    with pytest.raises(ConfigError, match=r"prompts.template: .*It must be a Jinja template over the columns"):
        loaded(tmp_path, rows, template="{{ title ")
    with pytest.raises(ValueError, match="`column` and `template` both define the prompt"):
        Prompts(source="x", column="a", template="{{ a }}")


def test_the_last_answer_is_dropped_and_counted_or_kept_or_refused(tmp_path, caplog):
    rows = [{"messages": TALK}, {"messages": [{"role": "user", "content": "And a lake?"}]}]
    assert loaded(tmp_path, rows).column_names == ["prompt_id", "prompt"]
    assert "the answer at the end of 1 conversations was dropped" in caplog.text
    kept = loaded(tmp_path, rows, last_assistant="reference")
    assert kept["prompt"][:] == [ASKED, rows[1]["messages"]] and kept["answer"][:] == ["The Aral Sea.", None]
    assert "the answer at the end of 1 conversations was kept as the reference `answer`" in caplog.text
    with pytest.raises(DataError, match=r"p\.jsonl, row 0: A prompt ends with an assistant's turn, 'The Aral Sea\.'"):
        loaded(tmp_path, rows, last_assistant="error")
    with pytest.raises(ValueError, match="both define the reference"):
        Prompts(source="x", answer_column="a", last_assistant="reference")


def test_a_conversation_of_answers_only_is_no_prompt(tmp_path):
    with pytest.raises(DataError, match=r"row 0: A prompt is empty: the conversation holds only an answer"):
        loaded(tmp_path, [{"messages": TALK[1:]}])


def test_other_columns_are_kept_and_ours_are_renamed(tmp_path, caplog):
    row = {
        "prompt": "Hi",
        "id": "007",
        "teacher": "Ann",
        "answer": "4",
        "tags": ["a"],
        "meta": {"n": None},
        "source_teacher": "x",
        "prompt_id": "17",
        "quality_math": 2,
    }
    data = loaded(tmp_path, [row])
    assert data.column_names == [
        "prompt_id",
        "prompt",
        "id",
        "source_source_teacher",
        "answer",
        "tags",
        "meta",
        "source_teacher",
        "source_prompt_id",
        "source_quality_math",
    ]
    assert data[0]["meta"] == {"n": None} and data[0]["id"] == "007" and data[0]["source_source_teacher"] == "Ann"
    assert "the column `teacher` was renamed to `source_source_teacher`, since persyn_hf uses `teacher`" in caplog.text
    chosen = loaded(tmp_path, [row], keep_columns=["id"], answer_column="answer")
    assert chosen.column_names == ["prompt_id", "prompt", "answer", "id"]
    assert loaded(tmp_path, [row], keep_columns=[]).column_names == ["prompt_id", "prompt"]
    with pytest.raises(ConfigError, match=r"prompts.keep_columns: there is no column `idd`"):
        loaded(tmp_path, [row], keep_columns=["idd"])


def test_our_own_prompt_ids_are_made_anew(tmp_path):
    first = loaded(tmp_path, [{"prompt": "Hi"}])
    first.to_json(tmp_path / "again.jsonl")
    assert load_prompts(Prompts(source=str(tmp_path / "again.jsonl"))).column_names == ["prompt_id", "prompt"]


def test_tools_are_read_from_lists_and_from_json(tmp_path):
    bare = json.dumps([TOOLS[0]["function"]])
    rows = [{"prompt": "a", "tools": TOOLS}, {"prompt": "b", "tools": None}, {"prompt": "a", "tools": []}]
    data = loaded(tmp_path, rows)
    assert data["tools"][:] == [TOOLS, None, None]
    assert data["prompt_id"][0] != data["prompt_id"][2]  # the same words with other tools are another prompt
    assert loaded(tmp_path, [{"prompt": "a", "fns": bare}], tools_column="fns")["tools"][:] == [TOOLS]
    other = loaded(tmp_path, [{"prompt": "Fix a door", "tools": ["hammer"]}])
    assert other.column_names == ["prompt_id", "prompt", "source_tools"]
    with pytest.raises(DataError, match="row 0: `tools` must be a list of function definitions"):
        loaded(tmp_path, [{"prompt": "Fix a door", "tools": "hammer"}], tools_column="tools")


def test_uneven_keys_stay_as_they_are(tmp_path):
    rows = [
        {
            "messages": [
                {"role": "user", "content": "Hi", "name": "Ann"},
                {"role": "assistant", "content": "Yes?", "refusal": None, "weight": 0},
                {"role": "user", "content": [{"type": "text", "text": "Go"}]},
            ]
        },
        {"messages": [{"role": "user", "content": "Bye"}]},
    ]
    made = loaded(tmp_path, rows)["prompt"][:]
    assert made[1] == [{"role": "user", "content": "Bye"}]
    assert made[0][0] == {"role": "user", "content": "Hi", "name": "Ann"}
    assert made[0][1] == {"role": "assistant", "content": "Yes?", "weight": 0}
    assert made[0][2]["content"] == [{"type": "text", "text": "Go"}]


WRONG = {
    "null": ([{"prompt": "a"}, {"prompt": None}], "row 1: A prompt must be a string, got null"),
    "blank": ([{"prompt": "a"}, {"prompt": " \n"}], "row 1: A prompt is empty"),
    "a number": ([{"prompt": "a"}, {"prompt": 5}], "row 1: A prompt must be a string, got int 5"),
    "two kinds": ([{"prompt": "a"}, {"prompt": ASKED}], "the first is a string, but this is chat messages"),
    "no messages": ([{"messages": ASKED}, {"messages": []}], "row 1: A prompt is empty"),
    "no content": ([{"messages": [{"role": "user"}]}], r"must have `role` and `content`, got the keys \['role'\]"),
    "a number as content": ([{"messages": [{"role": "user", "content": 5}]}], "a string or a list of parts, got int"),
    "a stranger": ([{"conversations": [{"from": "narrator", "value": "x"}]}], "`from` must be one of human, user"),
    "system only": ([{"messages": [{"role": "system", "content": "x"}]}], "has no turn of a user"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_row_that_is_no_prompt_is_named_with_its_file(kind, tmp_path):
    rows, said = WRONG[kind]
    with pytest.raises(DataError, match=said) as raised:
        loaded(tmp_path, rows)
    assert str(raised.value).startswith(f"{tmp_path / 'p.jsonl'}, row ")


def test_all_wrong_rows_are_counted_and_the_first_are_named(tmp_path):
    with pytest.raises(DataError) as raised:
        loaded(tmp_path, [{"prompt": "a"}, *({"prompt": ""} for _ in range(9))])
    said = str(raised.value).replace(str(tmp_path), "HERE")
    assert (
        "HERE/p.jsonl, row 1: A prompt is empty" in said
        and "8 more rows are wrong" in said
        and said.endswith("row 5 ….")
    )


def test_repeated_prompts_name_both_rows(tmp_path):
    written(tmp_path, [{"prompt": "a"}, {"prompt": "b"}], "1.jsonl")
    written(tmp_path, [{"prompt": "c"}, {"prompt": "b"}], "2.jsonl")
    with pytest.raises(DuplicatePromptError) as raised:
        load_prompts(Prompts(source=str(tmp_path / "*.jsonl")))
    said = str(raised.value).replace(str(tmp_path), "HERE")
    assert "1 rows repeat an earlier prompt; the first is HERE/2.jsonl, row 1, which repeats HERE/1.jsonl" in said


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "Human", "value": "Name a sea."}, {"from": "Assistant", "value": "Aral"}]},
        {"messages": [{"role": "User", "content": "Name a sea."}, {"role": "Assistant", "content": "Aral"}]},
        {"messages": [{"role": "HUMAN ", "content": "Name a sea."}]},
    ],
)
def test_capitals_in_the_names_of_speakers_do_not_count(tmp_path, row):
    assert loaded(tmp_path, [row])["prompt"][:] == [ASKED]


def test_a_speaker_that_is_no_name_is_named_by_its_row(tmp_path):
    with pytest.raises(DataError, match=r"row 0: `from` must be one of human, .* got "):
        loaded(tmp_path, [{"conversations": [{"from": ["human"], "value": "Name a sea."}]}], format="sharegpt")
