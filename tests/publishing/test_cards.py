"""Cards and pictures: escaping, merging, what the student's card says."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from persyn_hf.errors import PublishError
from persyn_hf.publishing import cards
from persyn_hf.publishing.contents import write_facts
from persyn_hf.publishing.figures import Figures, _cut_lines, _far_from, describe_figures
from persyn_hf.publishing.markdown import escape, repository_link
from persyn_hf.publishing.metadata import (
    join_card,
    merge_body,
    merge_metadata,
    renew_card,
    router_metadata,
    size_category,
    split_card,
)
from persyn_hf.publishing.provenance import Provenance, Strength, TeacherShare
from tests.publishing.routers import PERSYN

HOSTILE = [
    "</details>", "---", "{{ 7 * 7 }}{% raw %}", "<script>alert(1)</script>", "\u202egnp.exe", "a\x00b\x1b[31m",
    "x" * 10_000, "$a$ | b", "| a | b |\n|---|---|", "```\n# head", "<!-- persyn:end run default -->",
    "[x](javascript:alert(1))", "![](http://evil)", "שלום\u2067", "]](", "`", "\n\n## Section\n", "&lt;", "--><b>",
]  # fmt: skip


def provenance_of(name):
    strength = Strength(3, 0.5, -1.0, 0.5, 0.5, 0.5)
    teacher = TeacherShare(
        name=name, rows=3, share=1.0, completion_tokens=9, model=name, revision=name, license=name, family=name,
        system_prompt=name, sampling={"stop": [name], name: 1}, strength=strength,
    )  # fmt: skip
    block = PERSYN | {
        "student": name, "backbone": name, "quality": name, "fallback": name, "objective": name,
        "prompts": {"source": name, "revision": name},
        "held_out": PERSYN["held_out"] | {"reason": name},
    }  # fmt: skip
    return Provenance(
        [teacher], 3, {"train": 3}, block, dropped={name: 2}, prompts_source=name, prompts_revision=name,
        generations=3, generations_all=9,
    )  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_stays_text(name):
    provenance = provenance_of(name)
    figures = {key: cards.Figure(f"figures/{key}.png", alt) for key, alt in describe_figures(provenance).items()}
    bodies = [
        cards.dataset_body([cards.Run("default", provenance, figures)], location="me/data", warnings=[name]),
        cards.router_body(provenance, location="me/router", dataset_location="me/data", figures=figures),
        cards.student_card(
            {"student": name, "settings": {name: name}, "versions": {name: name}, "steps": 3}, location="me/student",
            results=[{"task": name, "metric": name, "value": 0.5, "baseline": name}], limits=[name],
        ),
    ]  # fmt: skip
    calm = provenance_of("plain")
    plain = [
        cards.dataset_body([cards.Run("default", calm, figures)], location="me/data", warnings=["w"]),
        cards.router_body(calm, location="me/router", dataset_location="me/data", figures=figures),
        cards.student_card(
            {"student": "s", "settings": {"a": "b"}, "versions": {"a": "b"}, "steps": 3}, location="me/student",
            results=[{"task": "t", "metric": "m", "value": 0.5, "baseline": "b"}], limits=["l"],
        ),
    ]  # fmt: skip
    for body, harmless in zip(bodies, plain, strict=True):
        text = split_card(body)[1]
        assert not re.search(r"</?(details|script|b)\b", text) and "49" not in text
        assert not set(text) & set("\x00\x1b\u202e\u2067")
        # The shape of the page is that of a card of harmless names: headings, rules, fences, tables, markers.
        for shape in (r"^#+ ", r"^-{3,}", r"^```", r"^\|", r"<!-- persyn:", r"(?<!\\)!\[", r"(?<!\\)\]\("):
            expected = re.findall(shape, split_card(harmless)[1], re.MULTILINE)
            found = re.findall(shape, text, re.MULTILINE)
            assert len(found) == len(expected), (shape, name[:30])
        assert len(text) < 14_000
        assert merge_body(text, split_card(harmless)[1]).strip() == split_card(harmless)[1].strip()


@pytest.mark.parametrize("name", ["$a$ | b", "x" * 10_000, "a\x00b", "教師", "שלום", ""])
def test_any_name_can_be_drawn(name):
    drawn = Figures(provenance_of(name)).drawn
    assert len(drawn) == 3 and all(Image.open(io.BytesIO(png)).format == "PNG" for png in drawn.values())


def test_escape_leaves_words_alone():
    assert escape("Qwen2.5-1.5B Instruct, temperature 0.7") == "Qwen2.5-1.5B Instruct, temperature 0.7"
    assert escape(3) == "3" and escape("a\tb \n c") == "a b c"
    assert escape("المعلم") == "\u2068المعلم\u2069"
    assert repository_link("org/model", "v1") == "[org/model](https://huggingface.co/org/model/tree/v1)"
    assert repository_link("./local model") == "./local model"


def test_size_categories():
    assert [size_category(n) for n in (1, 999, 1000, 5 * 10**6, 10**8)] == [
        "n<1K", "n<1K", "1K<n<10K", "1M<n<10M", "100M<n<1B",
    ]  # fmt: skip


def part(name, text):
    return f"<!-- persyn:begin {name} -->\n{text}\n<!-- persyn:end {name} -->"


def test_only_generated_parts_are_rewritten():
    old = f"# Mine\n\nintro\n\n{part('a', 'old a')}\n\nbetween\n\n{part('b', 'old b')}\n\noutro\n"
    new = f"# Theirs\n\n{part('a', 'new a')}\n\n{part('b', 'new b')}\n"
    merged = f"# Mine\n\nintro\n\n{part('a', 'new a')}\n\nbetween\n\n{part('b', 'new b')}\n\noutro\n"
    assert merge_body(old, new) == merged
    assert merge_body(merged, new) == merged


def test_parts_that_are_gone_come_back_in_their_place():
    new = "\n\n".join(part(name, f"new {name}") for name in "abcd")
    old = f"top\n\n{part('b', 'old')}\n\nmiddle\n\n{part('d', 'old')}\n\nend"
    assert merge_body(old, new) == "\n\n".join(
        ["top", part("a", "new a"), part("b", "new b"), part("c", "new c"), "middle", part("d", "new d"), "end"]
    )
    assert merge_body("hand-written\n", "# Title\n\n" + new) == f"hand-written\n\n{new}"


@pytest.mark.parametrize(
    "body",
    [
        "<!-- persyn:begin a -->\ntext",
        "text\n<!-- persyn:end a -->",
        "<!-- persyn:begin a -->\n<!-- persyn:begin b -->\n<!-- persyn:end b -->\n<!-- persyn:end a -->",
        f"{part('a', '1')}\n{part('a', '2')}",
    ],
)
def test_damaged_markers_are_an_error(body):
    with pytest.raises(PublishError, match=r"must be one of a pair.*nothing was sent"):
        merge_body(body, part("a", "x"))


def test_metadata_is_merged_key_by_key():
    old = {
        "license": "mit", "tags": ["mine", "persyn"], "size_categories": ["1M<n<10M"], "pretty_name": "Ours",
        "language": "de", "base_model": "org/old", "model-index": [{"name": "theirs"}, {"name": "router", "old": 1}],
    }  # fmt: skip
    new = {
        "license": "apache-2.0", "tags": ["persyn", "trl"], "size_categories": ["n<1K"], "language": ["en"],
        "base_model": "org/new", "model-index": [{"name": "router", "results": []}],
    }  # fmt: skip
    merged = merge_metadata(old, new)
    assert merged == {
        "license": "mit", "tags": ["persyn", "trl", "mine"], "size_categories": ["n<1K"], "pretty_name": "Ours",
        "language": ["en", "de"], "base_model": "org/new",
        "model-index": [{"name": "router", "results": []}, {"name": "theirs"}],
    }  # fmt: skip
    assert list(merged)[:4] == ["license", "tags", "size_categories", "pretty_name"]
    assert merge_metadata(old, new, frozenset({"license"}))["license"] == "apache-2.0"
    assert merge_metadata(merged, new) == merged


def test_a_card_is_taken_apart_and_joined():
    for text in ("---\r\nlicense: mit\r\n---\r\n# T\r\n", "\ufeff---\nlicense: mit\n---\n# T\n"):
        head, body = split_card(text)
        assert head == {"license": "mit"} and body.strip() == "# T"
    assert split_card("# no metadata\n") == ({}, "# no metadata\n")
    assert split_card("---\n---\n# T") == ({}, "# T")
    assert split_card(join_card({"a": "ü: ---"}, "body")) == ({"a": "ü: ---"}, "\nbody\n")


def test_the_students_card_and_its_snippet(tiny_lm, capsys):
    report = {
        "student": "org/student", "student_revision": "c" * 40, "seed": 3, "steps": 12, "loss": 1.25,
        "counts": {"rows": 480, "learnt_tokens": 9000}, "settings": {"learning_rate": 2e-5, "max_steps": None},
        "versions": {"trl": "1.16.0"},
    }  # fmt: skip
    results = [
        {"task": "gsm8k", "metric": "exact match", "value": 0.314, "low": 0.3, "high": 0.33, "baseline": "0.28"}
    ]
    card = cards.student_card(
        report, location=str(tiny_lm), dataset_location="me/data", dataset_revision="v1.0", license="mit",
        language=("en",), results=results,
    )  # fmt: skip
    head, body = split_card(card)
    assert head == {
        "license": "mit", "language": ["en"], "library_name": "transformers", "pipeline_tag": "text-generation",
        "base_model": "org/student", "datasets": ["me/data"], "tags": ["persyn", "distillation", "trl", "sft"],
    }  # fmt: skip
    assert "| gsm8k | exact match | 0.314 | 0.300 to 0.330 | 0.28 |" in body
    assert "| training rows | 480 |" in body and "| learning\\_rate | 2e-05 |" in body and "max\\_steps" not in body
    assert "[me/data](https://huggingface.co/datasets/me/data/tree/v1.0) at v1.0" in body
    exec(re.search(r"```python\n(.*?)```", body, re.DOTALL).group(1), {})
    assert len(capsys.readouterr().out) > 1


def test_the_same_numbers_give_the_same_picture():
    provenance = provenance_of("teacher")
    first, again = Figures(provenance).drawn, Figures(provenance).drawn
    assert first == again and set(first) == {"allocation", "teachers", "reward"}
    assert set(Figures(Provenance([], 0)).drawn) == {"allocation"}


def test_pictures_read_on_white_and_on_black():
    """The ink stands out from both grounds: at least 3 to 1, as WCAG asks of graphics."""
    for name, png in Figures(provenance_of("teacher")).drawn.items():
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"), dtype=float) / 255
        assert pixels[0, 0, 3] == 0, name  # the ground is transparent
        inked = pixels[pixels[..., 3] > 0.99][:, :3]
        linear = np.where(inked <= 0.04045, inked / 12.92, ((inked + 0.055) / 1.055) ** 2.4)
        luminance = linear @ [0.2126, 0.7152, 0.0722]
        assert np.quantile(1.05 / (luminance + 0.05), 0.05) >= 2.2, name
        assert np.quantile((luminance + 0.05) / 0.05, 0.05) >= 3, name


def test_the_number_of_a_line_stands_away_from_points_and_frame():
    along = np.column_stack([np.linspace(0, 10, 101), np.full(101, 0.5)])
    low, high = np.array([0.0, 0.0]), np.array([10.0, 1.0])
    points = np.array([[5.0, 0.5], [9.0, 0.5]])
    nowhere = np.empty((0, 2))
    [(x, y)] = _far_from(points, [[along], [], [nowhere]], low, high)
    # The point at 5 is four times as far as the frame; nearer to the middle the point is nearer, to the end the frame.
    assert (x, y) == pytest.approx((1.0, 0.5))
    rising = np.column_stack([np.linspace(0, 10, 101), np.linspace(0.9, 1.0, 101)])
    [(x, y)] = _far_from(points, [[rising]], low, high)
    assert x < 5
    assert y < 0.95


def test_the_alt_text_says_what_is_seen():
    alts = describe_figures(provenance_of("teacher"))
    assert alts == {
        "allocation": "Training rows per teacher: teacher 100%",
        "teachers": "Mean quality and learnability per teacher, normalised within the prompt: teacher 0.50 and 0.50",
        "reward": "Mean held-out reward: random teacher 0.400, best single teacher 0.500, PerSyn router 0.550, "
        "oracle 0.800",
    }


def test_metadata_and_table_call_a_policy_the_same():
    provenance = provenance_of("teacher")
    block = provenance.router["held_out"] | {"knn": {"mean": 0.52, "low": 0.41, "high": 0.63}}
    provenance = replace(provenance, router=provenance.router | {"held_out": block})
    (model,) = router_metadata(provenance, "me/router", None, None, ())["model-index"]
    assert [(metric["name"], metric["value"]) for metric in model["results"][0]["metrics"]] == [
        ("Mean held-out reward, PerSyn router", 0.55),
        ("Mean held-out reward, best single teacher", 0.5),
        ("Mean held-out reward, random teacher", 0.4),
        ("Mean held-out reward, oracle", 0.8),
        ("Share of the gap to the oracle closed", 0.17),
    ]
    body = cards.router_body(provenance, location="me/router", dataset_location=None, figures={})
    lines = [line for line in body.splitlines() if re.search(r" to 0\.\d+ \|$", line)]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in lines]
    assert rows == ["random teacher", "best single teacher", "kNN on the embeddings", "PerSyn router", "oracle"]
    shown = describe_figures(provenance)["reward"].removeprefix("Mean held-out reward: ")
    assert [part.rsplit(" ", 1)[0] for part in shown.split(", ")] == rows


def test_templates_are_all_used():
    rendered = {"dataset_card", "router_card", "student_card", "results", "method", "cite"}
    assert {path.name.split(".")[0] for path in cards.template_folder().iterdir()} == rendered


def shares(*rows):
    return [
        TeacherShare(name=name, rows=n, share=0.5, completion_tokens=n) for name, n in zip("ab", rows, strict=True)
    ]


def first_sentence(provenance):
    body = cards.dataset_body([cards.Run("default", provenance)], location="me/data")
    text = body.split("<!-- persyn:begin summary -->")[1].split("<!-- persyn:end")[0]
    return " ".join(text.split()).split(" ([PerSyn]")[0]


def test_the_card_says_in_its_first_sentence_that_one_teacher_answered():
    fallback = PERSYN | {"fallback": "a"}
    assert first_sentence(Provenance(shares(3, 2), 5, {"train": 5}, PERSYN)).startswith(
        "A training set in which every prompt is answered by the teacher that one student is expected to learn most "
        "from. A router chose"
    )
    assert first_sentence(Provenance(shares(5, 0), 5, {"train": 5}, fallback)) == (
        "A training set in which one teacher, a, answers every prompt: on held-out prompts the router did not beat "
        "the best single teacher, a"
    )
    assert first_sentence(Provenance(shares(3, 2), 5, {"train": 5}, fallback)) == (
        "A training set in which the prompts are not routed individually: on held-out prompts the router did not beat "
        "the best single teacher, a"
    )
    assert first_sentence(Provenance(shares(0, 4), 4, {"train": 4}, PERSYN)) == (
        "A training set in which one teacher, b, answers every prompt: the router chose it for each prompt before "
        "generation"
    )
    several = [cards.Run(name, Provenance(shares(4, n), 4 + n, {"train": 4})) for name, n in (("x", 0), ("y", 1))]
    body = cards.dataset_body(several, location="me/data")
    assert (
        "| x | not recorded | 4 | one teacher, a |" in body and "| y | not recorded | 5 | several teachers |" in body
    )


def test_the_students_card_says_that_one_teacher_answered():
    one = cards.student_card({"student": "org/s", "teachers": {"a": 9}}, location="me/s")
    two = cards.student_card({"student": "org/s", "teachers": {"a": 9, "b": 1}}, location="me/s")
    assert "fine-tuned on answers of one teacher, a\n" in one and "| rows by a | 9 |" in one
    assert (
        "fine-tuned on answers of the teachers that it is expected to learn most from" in two
        and "| rows by b | 1 |" in two
    )


def test_no_figure_that_is_no_number_is_published():
    nan = float("nan")
    entry = {"mean": nan, "low": nan, "high": nan}
    held_out = PERSYN["held_out"] | {"gap_closed": entry, "random": entry}
    provenance = Provenance(shares(1, 1), 2, {"train": 2}, PERSYN | {"held_out": held_out}, cost=nan)
    body = cards.router_body(provenance, location="me/r", dataset_location=None, figures={})
    assert "there is no gap that routing could close" in body and "nan" not in body and "random teacher" not in body
    (model,) = router_metadata(provenance, "me/r", None, None, ())["model-index"]
    assert [metric["value"] for metric in model["results"][0]["metrics"]] == [0.55, 0.5, 0.8]
    assert b"NaN" not in write_facts({"default": provenance}) and b'"cost": null' in write_facts({"d": provenance})
    assert "nan" not in str(describe_figures(provenance)) and set(Figures(provenance).drawn) == {
        "allocation",
        "reward",
    }
    nothing = Provenance(shares(1, 1), 2, {"train": 2}, PERSYN | {"held_out": {"router": entry, "best_single": entry}})
    assert "model-index" not in router_metadata(nothing, "me/r", None, None, ())
    assert "Evaluation" not in cards.router_body(nothing, location="me/r", dataset_location=None, figures={})


def test_the_card_says_how_each_teacher_was_asked_and_what_was_left_out():
    sampling = {
        "temperature": None, "top_p": 0.9, "max_tokens": 64, "stop": [],
        "seed": None, "max_tokens_field": "max_tokens",
        "extra_body": {"top_k": 20, "chat_template_kwargs": {"enable_thinking": False}},
    }  # fmt: skip
    teacher = TeacherShare("a", 1, 1.0, 1, sampling=sampling)
    provenance = Provenance(
        [teacher], 1, {"train": 1}, PERSYN | {"quality": "org/judge"}, hygiene={"near duplicate": 2},
        dropped={"refused": 1}, generations=3, generations_all=9, failed=2, judges=["org/judge"],
        sample={"prompt": "Is 1 < 2? | yes", "completion": "See www.evil.example", "teacher": "a"},
    )  # fmt: skip
    body = cards.dataset_body([cards.Run("default", provenance)], location="me/data")
    assert (
        "- a: top\\_p 0.9, max\\_tokens 64, extra\\_body.top\\_k 20, "
        "extra\\_body.chat\\_template\\_kwargs "
        '\\{"enable\\_thinking": false\\}; left to the server: temperature, seed'
    ) in body
    assert "- 2 prompts: near duplicate" in body and "- 1 answer: refused" in body
    assert "3 answers were generated, and 2 requests failed." in body
    assert "- Quality: a language model judged each answer: [org/judge](https://huggingface.co/org/judge)." in body
    assert "| prompt | Is 1 &lt; 2? \\| yes |" in body
    assert "| completion, by a | See www<!-- -->.evil.example |" in body


@pytest.mark.parametrize(
    "text", ["www.evil.example", "WWW.EVIL.example", "x@y.example", "https://a.example", "a://b@c"]
)
def test_no_reader_of_markdown_makes_a_link_of_text(text):
    shown = str(escape(f"see {text} now"))
    assert not re.search(r"www\.|[\w]@|://", shown, re.IGNORECASE)
    assert shown.replace("<!-- -->", "") == f"see {text} now"


PART = part("a", "ours")


@pytest.mark.parametrize(
    "head, body",
    [
        ("license: mit\nextra_gated_prompt: |\n  Terms ---\n  ---\n  end\nextra_gated_fields:\n  Name: text", "# T"),
        ("license: mit # chosen\n# a note\ntags:\n- mine   # kept", "| a |\n|---|\n| b ---\n\n---\n\nafter the rule"),
        ("pretty_name: a---\nlicense: mit", "text ---\n\nmore\n---\nend"),
    ],
)
@pytest.mark.parametrize("line, start", [("\n", ""), ("\r\n", ""), ("\n", "\ufeff")])
def test_what_a_person_wrote_is_kept_to_the_letter(head, body, line, start):
    old = start + f"---\n{head}\n---\n{body}\n".replace("\n", line)
    new = renew_card(old, {"license": "apache-2.0", "size_categories": ["n<1K"]}, PART, "w")
    assert new == f"---\n{head}\nsize_categories:\n- n<1K\n---\n\n" + body.replace("\n", line) + f"\n\n{PART}\n"
    assert renew_card(new, {"license": "apache-2.0", "size_categories": ["n<1K"]}, PART, "w") == new


@pytest.mark.parametrize("text", ["# T\n\n---\n\nrule\n", "a ---\n---\nb\n", "| a |\n|---|\n"])
def test_a_card_without_metadata_is_all_body(text):
    assert split_card(text) == ({}, text)


def test_no_line_runs_through_a_name():
    from matplotlib.figure import Figure

    axis = Figure().subplots()
    grid = np.meshgrid(np.linspace(0, 1, 101), np.linspace(0, 1, 101))
    lines = axis.contour(*grid, grid[1], levels=[0.5, 0.8])
    _cut_lines(lines, [(0.3, 0.4, 0.6, 0.6)])
    through, beside = (path.vertices for path in lines.get_paths())
    assert not ((through[:, 0] >= 0.3) & (through[:, 0] <= 0.6)).any() and len(beside) == 101
    path = lines.get_paths()[0]
    starts = [
        tuple(place.round(2)) for place, code in zip(path.vertices, path.codes, strict=True) if code == path.MOVETO
    ]
    assert len(starts) == 2 and {x for x, _ in starts} <= {0.0, 1.0, 0.29, 0.61}
