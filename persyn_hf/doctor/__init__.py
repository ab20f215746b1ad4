"""Checks before the first paid request: the installation, and a configuration with its prompts, models and servers.

The command `doctor` shows all findings. A run makes the same checks and reports all failures in one error.
"""

from persyn_hf.doctor.configuration import check_configuration
from persyn_hf.doctor.findings import Finding, Findings, require_ready
from persyn_hf.doctor.installation import check_devices, check_extras, check_installation, check_packages, check_token
from persyn_hf.doctor.servers import check_endpoints

__all__ = [
    "Finding",
    "Findings",
    "check_configuration",
    "check_devices",
    "check_endpoints",
    "check_extras",
    "check_installation",
    "check_packages",
    "check_token",
    "require_ready",
]
