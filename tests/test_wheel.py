"""The card templates are found in a wheel as well as in an editable install."""

import subprocess
import sys
import zipfile

from persyn_hf.publishing.cards import template_folder
from tests.conftest import ROOT


def test_templates_beside_an_editable_install():
    assert template_folder() == ROOT / "hub_cards"


def test_templates_inside_a_wheel(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "from persyn_hf.publishing.cards import template_folder, __file__ as f; print(f); print(template_folder())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    file, folder = done.stdout.split()
    assert file.startswith(str(tmp_path / "site"))
    assert folder == str(tmp_path / "site/persyn_hf/hub_cards")
    assert {path.name for path in (tmp_path / "site/persyn_hf/hub_cards").iterdir()} == {
        "cite.md.jinja", "dataset_card.md.jinja", "method.md.jinja", "results.md.jinja", "router_card.md.jinja",
        "student_card.md.jinja",
    }  # fmt: skip
