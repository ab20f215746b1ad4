"""Checks of the installation: packages, extras, devices and the Hub token."""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, version

from persyn_hf.doctor.findings import Finding
from persyn_hf.packages import HEAVY, absent, dependencies, extras, pip_command
from persyn_hf.version import __version__


def check_installation() -> list[Finding]:
    """Checks this process's Python, packages, devices and token, without sending a request."""
    python = ".".join(map(str, sys.version_info[:3]))
    findings = [Finding("persyn_hf", "ok", f"{__version__} on Python {python}")]
    return findings + check_packages() + check_extras() + check_devices() + [check_token()]


def check_packages() -> list[Finding]:
    """Checks the version of every required package against the installed metadata.

    A missing package that a light installation leaves out is a note, since many functions do not need it.
    """
    if not dependencies():
        mend = "is not installed, so its requirements are unknown: pip install --no-deps --editable . in its checkout"
        return [Finding("persyn-hf", "fail", mend)]
    findings = []
    for name, wanted in dependencies().items():
        try:
            found = version(name)
        except PackageNotFoundError:
            light = name in HEAVY
            what = "is not installed, as in a light installation" if light else "is not installed"
            findings.append(Finding(name, "note" if light else "fail", f"{what}: {pip_command(name)}"))
            continue
        if wanted.specifier.contains(found, prereleases=True):
            findings.append(Finding(name, "ok", found))
        else:
            findings.append(Finding(name, "fail", f"is {found}, must be {wanted.specifier}: {pip_command(name)}"))
    return findings


def check_extras() -> list[Finding]:
    """Lists the installed extras; a missing extra is a note."""
    findings = []
    for extra, packages in extras().items():
        try:
            found = ", ".join(f"{package} {version(package)}" for package in packages)
            findings.append(Finding(f"extra {extra}", "ok", found))
        except PackageNotFoundError:
            findings.append(Finding(f"extra {extra}", "note", f"not installed: pip install 'persyn-hf[{extra}]'"))
    return findings


def check_devices() -> list[Finding]:
    """Lists every accelerator with its memory and its support for bfloat16."""
    if absent("torch"):
        cores = Finding("CPU", "ok", f"{os.cpu_count()} cores")
        return [cores, Finding("GPU", "note", f"cannot be detected without torch: {pip_command('torch')}")]
    from persyn_hf.models.device import list_accelerators, thread_count

    found = [Finding("CPU", "ok", f"{thread_count()} threads")]
    found += [Finding(one.device, "ok", one.description) for one in list_accelerators()]
    if len(found) == 1:
        found.append(Finding("GPU", "note", "none was found: scoring and training run on the CPU"))
    return found


def check_token() -> Finding:
    """Checks for a Hub token. The token is neither shown nor sent."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        return Finding(
            "Hub", "note", "HF_HUB_OFFLINE is set: models are read from the cache, and pushing is not possible"
        )
    if get_token() is None:
        return Finding("Hub", "note", "no token: public models load, but pushing needs a token; run `hf auth login`")
    return Finding("Hub", "ok", f"found a token for {constants.ENDPOINT}")
