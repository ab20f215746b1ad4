"""Configuration of a run: frozen pydantic models, read from one YAML file.

The whole configuration is validated before the run starts, without I/O besides reading the file itself. Unknown keys,
repeated teachers and values out of range are all reported at once, by file and key. API keys are read only when a
request needs them.
"""

from persyn_hf.config.accept import Accept
from persyn_hf.config.allocation import Allocation
from persyn_hf.config.hygiene import COMPARED, Hygiene
from persyn_hf.config.policies import (
    CAR_BETA,
    DRAWN,
    HELD_OUT_POLICIES,
    MIX_STRONG_SHARE,
    POLICIES,
    POLICY_LABELS,
    AllocationPolicy,
    Policy,
    policy_label,
)
from persyn_hf.config.prompts import Probe, Prompts
from persyn_hf.config.publishing import Publish
from persyn_hf.config.routing import Objective, Router
from persyn_hf.config.run import STAGES, RunConfig
from persyn_hf.config.sampling import Sampling
from persyn_hf.config.scoring import (
    Alpha,
    Judge,
    LearnabilityMetric,
    Metric,
    Normalization,
    Quality,
    QualitySource,
    Reward,
    Service,
    Student,
    StudentEndpoint,
)
from persyn_hf.config.settings import Dtype, Settings, base_url, default_of, merged, read_settings, require_known
from persyn_hf.config.students import Compare, ComparedStudent, Decoding, LmEval, Lora, Training
from persyn_hf.config.teachers import Teacher, priced, require_distinct_teachers

__all__ = [
    "CAR_BETA",
    "COMPARED",
    "DRAWN",
    "HELD_OUT_POLICIES",
    "POLICY_LABELS",
    "MIX_STRONG_SHARE",
    "POLICIES",
    "STAGES",
    "Accept",
    "Allocation",
    "AllocationPolicy",
    "Alpha",
    "Compare",
    "ComparedStudent",
    "Decoding",
    "Dtype",
    "Hygiene",
    "Judge",
    "LearnabilityMetric",
    "LmEval",
    "Lora",
    "Metric",
    "Normalization",
    "Objective",
    "Policy",
    "Probe",
    "Prompts",
    "Publish",
    "Quality",
    "QualitySource",
    "Reward",
    "Router",
    "RunConfig",
    "Sampling",
    "Service",
    "Settings",
    "Student",
    "StudentEndpoint",
    "Teacher",
    "Training",
    "policy_label",
    "priced",
    "base_url",
    "default_of",
    "merged",
    "read_settings",
    "require_distinct_teachers",
    "require_known",
]
