"""The packages that a run will need, looked for before its first request: nothing is paid for what cannot be used."""

from __future__ import annotations

from persyn_hf.config import STAGES, RunConfig
from persyn_hf.packages import require


def require_run_packages(config: RunConfig, until: str) -> None:
    """Refuses a run whose later stages lack packages, as in a light installation.

    Args:
        config (`RunConfig`): The run.
        until (`str`): Its last stage.

    Raises:
        MissingPackageError: Names all that are missing, with the pip command.
    """
    local = [teacher.name for teacher in config.teachers if teacher.backend == "local"]
    if local:
        require(f"ask the teacher {local[0]} in this process", "torch", "transformers")
    wanted = STAGES[: STAGES.index(until) + 1]
    if wanted[-1] == "probe":
        return
    needed = ["torch", "transformers"]
    if config.router.pretrained is None and "router" in wanted:
        needed += ["accelerate", "safetensors", "scipy"]
    if "publish" in wanted:
        needed.append("matplotlib")
    require("run the stages after `probe` (`until: probe` runs without)", *needed)
