"""What the doctor says of this installation; its look at a configuration is tried with `plan`'s."""

from importlib.metadata import PackageNotFoundError, version

import pytest

from persyn_hf import packages
from persyn_hf.doctor import installation as doctor
from persyn_hf.doctor.findings import Finding


@pytest.fixture
def installed(monkeypatch):
    """Versions by package, instead of those that are installed; `None` for one that is not."""
    others: dict[str, str | None] = {}

    def find(package: str) -> str:
        found = others[package] if package in others else version(package)
        if found is None:
            raise PackageNotFoundError(package)
        return found

    monkeypatch.setattr(doctor, "version", find)
    return others


def said(findings: list[Finding]) -> dict[str, tuple[str, str]]:
    return {finding.topic: (finding.state, finding.message) for finding in findings}


def test_an_absent_package_is_a_note_where_a_light_installation_leaves_it_out_and_else_a_failure(installed):
    installed |= {"torch": None, "aiohttp": None, "datasets": "4.9.1", "numpy": "2.9.0rc1"}
    found = said(doctor.check_packages())
    assert found["torch"] == ("note", "is not installed, as in a light installation: pip install 'torch>=2.6'")
    assert found["aiohttp"] == ("fail", "is not installed: pip install 'aiohttp>=3.11'")
    assert found["datasets"] == ("fail", "is 4.9.1, must be >=5.0: pip install 'datasets>=5.0'")
    assert found["numpy"] == ("ok", "2.9.0rc1")


def test_a_checkout_that_was_never_installed_is_a_failure(monkeypatch):
    def absent(package: str) -> None:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("importlib.metadata.metadata", absent)
    packages.dependencies.cache_clear()
    packages.extras.cache_clear()
    try:
        assert said(doctor.check_packages())["persyn-hf"][0] == "fail"
        assert doctor.check_extras() == []
        assert packages.pip_command("torch") == "pip install 'torch'"
    finally:
        packages.dependencies.cache_clear()
        packages.extras.cache_clear()


def test_every_extra_of_the_metadata_is_looked_for_but_those_for_development(installed):
    installed |= {"peft": None, "trl": "1.16.0"}
    found = said(doctor.check_extras())
    assert sorted(found) == [
        "extra dedup", "extra demo", "extra json-schema", "extra lm-eval", "extra lora", "extra math",
        "extra reasoning-gym", "extra semhash", "extra students", "extra zstd",
    ]  # fmt: skip
    assert found["extra lora"] == ("note", "not installed: pip install 'persyn-hf[lora]'")
    assert found["extra students"] == ("ok", "trl 1.16.0")


def test_devices_without_torch_are_a_note(monkeypatch):
    monkeypatch.setitem(doctor.sys.modules, "torch", None)
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 7)
    assert said(doctor.check_devices()) == {
        "CPU": ("ok", "7 cores"),
        "GPU": ("note", "cannot be detected without torch: pip install 'torch>=2.6'"),
    }
