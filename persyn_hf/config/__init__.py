"""What a run is made of: frozen pydantic models, read from one YAML file.

Validation is complete before anything starts and does no I/O besides looking at the environment and the file itself:
unknown keys, repeated teachers, missing variables and values out of range are reported by file and key, all at once.
"""

from persyn_hf.config.prompts import Probe, Prompts
from persyn_hf.config.publishing import Publish
from persyn_hf.config.routing import Objective, Router
from persyn_hf.config.run import STAGES, RunConfig
from persyn_hf.config.scoring import Alpha, LearnabilityMetric, Normalization, Quality, Reward, Student
from persyn_hf.config.settings import Dtype, Settings
from persyn_hf.config.teachers import Sampling, Teacher, require_distinct_teachers

__all__ = [
    "STAGES",
    "Alpha",
    "Dtype",
    "LearnabilityMetric",
    "Normalization",
    "Objective",
    "Probe",
    "Prompts",
    "Publish",
    "Quality",
    "Reward",
    "Router",
    "RunConfig",
    "Sampling",
    "Settings",
    "Student",
    "Teacher",
    "require_distinct_teachers",
]
