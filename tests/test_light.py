"""A light installation: what runs no model here imports and runs without torch, transformers, scipy and matplotlib."""

import json
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import persyn_hf
from persyn_hf import packages
from persyn_hf.errors import MissingExtraError, MissingPackageError, PersynError
from persyn_hf.publishing.personalized import save_personalized
from tests.conftest import ROOT
from tests.publishing.conftest import make_data

TOUR = ROOT / "tests" / "light_tour.py"
TORCH = "pip install 'torch>=2.6'"
BOTH = "pip install 'torch>=2.6' 'transformers>=5.0'"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A personalised set, saved by a full installation."""
    folder = tmp_path_factory.mktemp("light") / "published"
    folder.mkdir()
    return save_personalized(make_data("One.", "Two."), folder).parent


def tour(python, folder, *options, **environment):
    done = subprocess.run(
        [python, str(TOUR), str(folder), *options],
        cwd=folder,
        env={name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found(published):
    """What the tour finds where the heavy packages are hidden."""
    return tour(sys.executable, published, "--hide", PYTHONPATH=str(ROOT))


def check_tour(found):
    """What a light installation must come to, hidden or real."""
    assert found["modules"] == {}, "only modules that run a model may need torch to be imported"
    assert found["heavy"] == []
    commands = found["commands"]
    assert set(commands["help"].values()) == {0} and len(commands["help"]) >= 17
    assert {"ledger prune", "compare", "train-student", "demo"} < set(commands["help"])
    assert commands["doctor"]["code"] == 0 and re.search(
        rf"note +torch .*{re.escape(TORCH)}", commands["doctor"]["said"]
    )
    assert "'persyn-hf[reasoning-gym]'" in commands["doctor"]["said"]
    needed = " ".join(commands["doctor config"]["said"].split())
    assert commands["doctor config"]["code"] == 1 and "fail packages `torch`, `transformers`," in needed
    assert f"(`until: probe` runs without). Install them with: {BOTH}" in needed
    plan = commands["plan"]
    assert plan["code"] == 0 and "generate-then-select" in plan["said"]
    why = "since `transformers` is not installed (pip install 'transformers>=5.0')"
    assert f"characters divided by 4, {why}" in plan["said"]
    assert f"Scoring is not included: this needs torch and transformers ({BOTH})." in plan["said"]
    for name, code, asked in (("run", 1, 0), ("run until probe", 0, 6), ("again", 0, 0), ("ledger show", 0, 0)):
        assert (commands[name]["code"], commands[name]["asked"]) == (code, asked), commands[name]
    assert "`until: probe` runs without" in commands["run"]["said"] and BOTH in commands["run"]["said"]
    assert commands["exported"] == 6
    values = found["functions"]
    assert (values["probe"], values["answers"]) == (3, 6)
    assert values["routes"] == ["a", "b"] * 4 and values["scores"] == [1.5, 0.25]
    assert values["completions"] == [f"org/{'ab'[n % 2]}: Say number {n}." for n in range(8)]
    assert values["mapped"] == [f"org/a: Say number {n}." for n in range(8)]
    assert values["loaded"] == [{"role": "assistant", "content": "One."}]
    assert values["personalised"] == [{"role": "assistant", "content": "org/a: Say number 0."}]
    assert values["shared"] == ["a", "b"] and values["quality"]["quality"] == 1.0


def check_refusals(found):
    """What is missing is named with its pip command, before anything is asked."""
    refusals = found["refusals"]
    assert refusals.pop("asked") == 0
    commands = {
        what: re.search("Install (it|them) with: (pip install .*?)($|\\. )", said)[2]
        for what, (_, said, _) in refusals.items()
    }
    assert commands == {
        "score": BOTH,
        "load a router": f"{BOTH} 'safetensors>=0.4.3'",
        "route here": f"{BOTH} 'safetensors>=0.4.3'",
        "train a router": TORCH,
        "allocate": "pip install 'scipy>=1.15'",
        "ask here": BOTH,
        "ask a TGI": "pip install 'transformers>=5.0'",
        "train a student": "pip install 'persyn-hf[students]'",
        "verify": "pip install 'persyn-hf[math]'",
    }
    extras = {"train a student", "verify"}
    assert {what: kind for what, (kind, _, _) in refusals.items()} == {
        what: "MissingExtraError" if what in extras else "MissingPackageError" for what in refusals
    }
    assert all(ours for _, _, ours in refusals.values())


def test_everything_that_runs_no_model_runs_without_the_heavy_packages(found):
    assert Path(found["file"]).parent == ROOT / "persyn_hf"
    check_tour(found)


def test_what_is_missing_is_named_with_its_pip_command(found):
    check_refusals(found)


def test_light_requirements_are_the_dependencies_but_for_the_heavy_ones():
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lines = (ROOT / "requirements" / "light.txt").read_text().splitlines()
    light = {str(Requirement(line)) for line in lines if line and not line.startswith("#")}
    heavy = {str(Requirement(line)) for line in dependencies} - light
    assert {Requirement(line).name for line in heavy} == packages.HEAVY
    assert light < {str(Requirement(line)) for line in dependencies}


def test_extras_are_those_of_the_metadata():
    extras = {extra: sorted(brought) for extra, brought in packages.extras().items()}
    assert extras == {
        "dedup": ["datasketch"],
        "demo": ["gguf"],
        "json-schema": ["jsonschema"],
        "lm-eval": ["lm-eval"],
        "lora": ["peft"],
        "math": ["math-verify"],
        "reasoning-gym": ["reasoning-gym"],
        "semhash": ["semhash"],
        "students": ["trl"],
        "zstd": ["zstandard"],
    }
    assert "torch" in packages.dependencies() and "trl" not in packages.dependencies()


def test_require_names_all_that_is_missing_and_nothing_else(monkeypatch):
    packages.require("do nothing", "torch", "pyyaml", "math-verify")
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingPackageError) as raised:
        packages.require("do something", "torch", "pyyaml", "scipy")
    assert str(raised.value) == (
        "`torch` and `scipy` are needed to do something. Install them with: pip install 'torch>=2.6' 'scipy>=1.15'. "
        "(All dependencies: pip install persyn-hf)"
    )
    assert isinstance(raised.value, ImportError) and not isinstance(raised.value, MissingExtraError)


def test_a_module_that_is_no_dependency_stays_the_error_that_it_is():
    strange = ModuleNotFoundError("No module named 'theirs'", name="theirs.own")
    assert packages.explained(strange, "run") is strange
    submodule = ModuleNotFoundError("No module named 'lm_eval.tasks'", name="lm_eval.tasks")
    known = packages.explained(submodule, "run")
    assert isinstance(known, PersynError) and "'persyn-hf[lm-eval]'" in str(known)


def test_a_public_name_that_needs_torch_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(vars(persyn_hf), "add_teacher", raising=False)
    for name in ("persyn_hf.routing.roster", "persyn_hf.routing.backbone"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(MissingPackageError, match=r"needed to use persyn_hf.add_teacher. .*'torch>=2.6'"):
        persyn_hf.add_teacher  # noqa: B018


def test_the_command_says_what_is_missing_in_one_line():
    code = (
        "import sys; sys.path.insert(0, 'tests'); from without import hide; hide()\n"
        "from persyn_hf.cli import app, main\n"
        "@app.command('heavy')\n"
        "def heavy() -> None:\n"
        "    import torch.nn\n"
        "@app.command('theirs')\n"
        "def theirs() -> None:\n"
        "    import theirs\n"
        "main()"
    )
    call = [sys.executable, "-c", code]
    done = subprocess.run([*call, "heavy"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(f"persyn-hf: `torch` is needed to run this command. Install it with: {TORCH}")
    assert done.stderr.count("\n") == 1
    done = subprocess.run([*call, "theirs"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "ModuleNotFoundError: No module named 'theirs'" in done.stderr


@pytest.mark.slow
def test_the_wheel_without_dependencies_in_a_light_environment(published, tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    light = ["--constraint", str(ROOT / "constraints.txt"), "--requirement", str(ROOT / "requirements" / "light.txt")]
    for arguments in (light, ["--no-deps", str(wheel)]):
        done = subprocess.run([*pip, *arguments], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    found = tour(python, published)
    assert Path(found["file"]).is_relative_to(tmp_path / "venv")
    check_tour(found)
    check_refusals(found)
    files = [path for path in (tmp_path / "venv").rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(path.stat().st_size for path in files) < 700e6, "the full installation takes nine times as much"
    command = [str(tmp_path / "venv" / "bin" / "persyn-hf"), "doctor"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and TORCH in done.stdout
