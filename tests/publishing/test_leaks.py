"""The search for keys and tokens before anything is sent."""

import json
from random import Random

import pyarrow as pa
import pytest
from datasets import Dataset, Features, Json, List, Value

from persyn_hf.publishing.leaks import find_in_tables, find_in_text, find_in_values
from persyn_hf.publishing.randomness import is_placeholder, is_random_text
from persyn_hf.publishing.secret_kinds import KINDS
from tests.publishing.secret_texts import HARMLESS, KEYS, harmless, keys

RANDOM = Random(7)


def key(kind: str) -> str:
    return KEYS[kind](RANDOM)


@pytest.mark.parametrize("seed", range(3))
def test_keys_of_every_kind_are_found_and_harmless_texts_pass(seed):
    """200 keys of more than 25 kinds and 500 harmless texts: all are found, and nothing else."""
    assert len(KEYS) >= 25 and len(HARMLESS) >= 20
    assert [(kind, text) for kind, text in keys(seed, 200) if not find_in_text(text, "x")] == []
    assert [(kind, text) for kind, text in harmless(seed, 500) if find_in_text(text, "x")] == []


def test_the_search_of_tables_finds_what_the_search_of_texts_finds():
    rows = [text for _, text in keys(11, 200)]
    data = Dataset.from_dict({"completion": rows + [text for _, text in harmless(11, 500)]})
    found = find_in_tables({"train": data}, limit=10_000)
    assert {leak.where for leak in found} == {f"split train, row {n}, column completion" for n in range(200)}


@pytest.mark.parametrize(
    "text",
    [
        "Use this:\n{}", "\t{}\t", "MY_{}", "x\\n{}", '{{"a": "{{\\"b\\": \\"{}\\"}}"}}', "https://x.io/?token%3D{}",
        "a\\u0022{}", "密钥{}", "&quot;{}&quot;",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["hugging face", "openai", "aws", "github"])
def test_what_stands_around_a_key_does_not_hide_it(text, kind):
    assert len(find_in_text(text.format(key(kind)), "x")) == 1


@pytest.mark.parametrize(
    "inside", ["\u200b", "\u00ad", "\n", "\r\n    ", " \\\n  ", '"\n    "', '" +\n"', "\\u200b", "\\\n"]
)
def test_what_stands_inside_a_key_does_not_hide_it(inside):
    secret = key("github")
    assert [leak.kind for leak in find_in_text(f'k = "{secret[:11]}{inside}{secret[11:]}"\nnow', "x")] == [
        "a GitHub token"
    ]


def test_a_key_in_escaped_markdown():
    assert find_in_text(key("hugging face").replace("_", r"\_"), "card")


def test_the_message_does_not_repeat_the_secret():
    secret = key("replicate")
    (leak,) = find_in_text(f"take {secret}", "README.md")
    assert str(leak) == f"README.md: looks like a Replicate token (`r8_{secret[3]}…`, fingerprint {leak.fingerprint})"
    assert len(leak.fingerprint) == 12
    (address,) = find_in_text("https://alice:Sommer2024x@db.io/", "x")
    assert address.shown == "http" and address.kind == "an address with a password"


def test_one_finding_is_allowed_by_its_fingerprint():
    first, second = key("groq"), key("npm")
    one, two = find_in_text(f"{first} and {second}", "x")
    assert find_in_text(f"{first} and {second}", "x", {one.fingerprint}) == [two]
    data = Dataset.from_dict({"completion": [first, f"again {first}", second]})
    (left,) = find_in_tables({"train": data}, allowed={one.fingerprint})
    assert (left.where, left.fingerprint) == ("split train, row 2, column completion", two.fingerprint)


def test_values_are_searched_leaf_by_leaf_with_their_keys():
    secret = key("hugging face")
    value = {"teachers": [{"system_prompt": f"Use this:\n{secret}\n"}, {}]}
    (leak,) = find_in_values(value, "persyn.json")
    assert leak.where == "persyn.json, teachers.0.system_prompt"
    (leak,) = find_in_values({"a": {secret: 1}}, "f")
    assert (leak.where, leak.kind) == ("f, a", "a Hugging Face token")
    (leak,) = find_in_values({secret: {"b": secret[::-1], "c": ["x", key("aws")]}}, "f")[1:]
    assert leak.where == "f, ….c.1"
    # The name of a value says that it is a key.
    plain = "".join(Random(3).choices("abcdefghjkmnp23456789XYZ", k=32))
    assert find_in_values({"note": plain}, "f") == []
    assert [leak.where for leak in find_in_values({"api_key": plain}, "f")] == ["f, api_key"]


def test_every_place_of_a_table_that_holds_text_is_searched():
    secret = key("anthropic")
    message = {"role": Value("string"), "content": Value("large_string")}
    columns = {
        "deep": (
            List(List(message)),
            [[[{"role": "user", "content": "x" * 30}]], [[], [{"role": "user", "content": secret}]]],
        ),
        "json": (Json(), [{"a": 1}, {"tool": {"arguments": {secret: 1}}}]),
        "fixed": (List(Value("string"), length=2), [["a", "b"], ["a", f"b {secret}"]]),
        "text": (Value("string"), [None, secret]),
    }  # fmt: skip
    for name, (feature, values) in columns.items():
        data = Dataset.from_dict({name: values}, features=Features({name: feature}))
        (leak,) = find_in_tables({"test": data})
        assert leak.where == f"split test, row 1, column {name}"
    named = Dataset.from_dict({secret: ["x"]})
    assert [leak.kind for leak in find_in_tables({"train": named})] == ["an Anthropic API key"]
    coded = Dataset(pa.table({"c": pa.array(["x" * 20, secret]).dictionary_encode()}))
    assert [leak.where for leak in find_in_tables({"train": coded})] == ["split train, row 1, column c"]


def test_rows_are_counted_over_pieces_and_slices():
    secret = key("stripe")
    data = Dataset.from_dict({"completion": [["x" * 40]] * 50 + [[], [None, secret]] + [["y" * 40]] * 3}).select(
        range(10, 55)
    )
    assert [leak.where for leak in find_in_tables({"a": data})] == ["split a, row 41, column completion"]


@pytest.mark.parametrize(
    "value, random, placeholder",
    [
        ("learn-is-a-machine-learning-library", False, False),
        ("your-api-key-goes-here-1234", False, True),
        ("xxxxxxxxxxxxxxxxxxxxxxxx", False, True),
        ("1234567890abcdef1234567890", False, True),
        ("SomeVeryLongCamelCaseIdentifierName", False, False),
        ("slovakia-travel-guide-2024", False, False),
        ("a1B2a1B2a1B2a1B2", True, False),
        ("b520173bcbcb22c54494148bdabdcdcb", True, False),
        ("qzxkvbwjpfhgqmzxkwvbj", True, False),
    ],
)
def test_drawn_text_is_told_from_words_and_placeholders(value, random, placeholder):
    assert (is_random_text(value), is_placeholder(value)) == (random, placeholder)


def test_the_table_of_kinds():
    assert all("value" in kind.pattern.groupindex and kind.words and kind.hint for kind in KINDS)
    pa.compute.match_substring_regex(pa.array(["x"]), "|".join(kind.hint for kind in KINDS))  # RE2 takes them all
    assert json.dumps([kind.name for kind in KINDS])
