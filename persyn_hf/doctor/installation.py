"""The installation: Python, packages and extras, devices, memory, the Hub's token."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, requires, version

from persyn_hf import __version__
from persyn_hf.doctor.finding import Finding

#: What each extra brings, by the package that stands for it.
EXTRAS = {"math": "math-verify", "lora": "peft", "students": "trl"}


def check_installation() -> list[Finding]:
    """Looks at this process's Python, packages, devices and token. Sends nothing."""
    python = ".".join(map(str, sys.version_info[:3]))
    findings = [Finding("persyn_hf", "ok", f"{__version__} on Python {python}")]
    return findings + check_packages() + check_extras() + check_devices() + [check_token()]


def check_packages() -> list[Finding]:
    """Holds every required package against the range in the installed metadata."""
    from packaging.requirements import Requirement

    findings = []
    for line in requires("persyn-hf") or []:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            findings.append(
                Finding(wanted.name, "fail", f'is not installed: pip install "{wanted.name}{wanted.specifier}"')
            )
            continue
        if wanted.specifier.contains(found, prereleases=True):
            findings.append(Finding(wanted.name, "ok", found))
        else:
            mend = f'is {found}, must be {wanted.specifier}: pip install "{wanted.name}{wanted.specifier}"'
            findings.append(Finding(wanted.name, "fail", mend))
    return findings


def check_extras() -> list[Finding]:
    """Says which extras are there; an absent one is a note."""
    findings = []
    for extra, package in EXTRAS.items():
        try:
            findings.append(Finding(f"extra {extra}", "ok", f"{package} {version(package)}"))
        except PackageNotFoundError:
            findings.append(Finding(f"extra {extra}", "note", f"not installed: pip install 'persyn-hf[{extra}]'"))
    return findings


def check_devices() -> list[Finding]:
    """Names every accelerator with its memory and whether it computes in bfloat16."""
    import torch

    found = [Finding("CPU", "ok", f"{torch.get_num_threads()} threads")]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        half = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bfloat16"
        name = torch.cuda.get_device_name(index)
        found.append(
            Finding(f"cuda:{index}", "ok", f"{name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free, {half}")
        )
    if torch.backends.mps.is_available():
        found.append(Finding("mps", "ok", "Apple GPU"))
    if len(found) == 1:
        found.append(Finding("GPU", "note", "none is seen: scoring and training run on the CPU"))
    return found


def check_token() -> Finding:
    """Whether a Hub token is at hand. It is not shown and not sent anywhere."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        return Finding("Hub", "note", "HF_HUB_OFFLINE is set: models come from the cache, and nothing can be pushed")
    if get_token() is None:
        return Finding("Hub", "note", "no token: public models load, nothing can be pushed; run `hf auth login`")
    return Finding("Hub", "ok", f"a token is at hand for {constants.ENDPOINT}")
