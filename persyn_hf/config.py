"""What a run is made of: frozen pydantic models, read from one YAML file.

Validation is complete before anything starts and does no I/O besides looking at the environment and the file itself:
unknown keys, repeated teachers, missing variables and values out of range are reported by file and key, all at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from persyn_hf.errors import ConfigError

Alpha = Annotated[float, Field(ge=0.0, le=1.0)]
Normalization = Literal["minmax", "zscore", "rank"]
LearnabilityMetric = Literal["mean-logprob", "rsr"]
Objective = Literal["bradley-terry", "bradley-terry-margin", "expected-reward", "regression"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

#: The stages of a run in order. `--until` takes one of these names.
STAGES = ("probe", "score", "router", "route", "generate", "publish")


class Settings(BaseModel):
    """Base of every section: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Sampling(Settings):
    """How a teacher samples. Every field is part of the ledger's key.

    Args:
        temperature (`float`, defaults to 1.0): 0 is greedy decoding.
        top_p (`float`, defaults to 1.0): Nucleus sampling mass, in (0, 1].
        max_tokens (`int`, defaults to 1024): The longest completion, in tokens.
        stop (`tuple[str, ...]`, defaults to `()`): Strings that end a completion.
    """

    temperature: float = Field(1.0, ge=0.0, le=10.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    max_tokens: int = Field(1024, ge=1)
    stop: tuple[str, ...] = ()


class Teacher(Settings):
    """A teacher: a model *and* how it is asked.

    Args:
        name (`str`): The name in tables, routes and the router's labels.
        model (`str`): Hub repository id or local folder; for an endpoint, the model that it serves.
        revision (`str`, *optional*): Commit, tag or branch of `model`.
        backend (`"endpoint"` or `"local"`, defaults to `"endpoint"`): Over HTTP, or in this process.
        endpoint (`str`, *optional*): Base URL of an OpenAI-compatible server; required for `backend: endpoint`.
        api (`"chat"`, defaults to `"chat"`): Protocol of the endpoint.
        api_key_env (`str`, *optional*): Environment variable that holds the endpoint's key.
        use_hub_token (`bool`, defaults to `False`): Send the Hugging Face token to this endpoint.
        system_prompt (`str`, *optional*): Put before the prompt's own messages; never seen by the student.
        sampling (`Sampling`): Sampling parameters.
        max_concurrency (`int`, defaults to 32): Requests in flight at once.
        timeout (`float`, defaults to 120): Seconds for one request.
        batch_size (`int`, defaults to 32): Prompts per batch of `backend: local`.
        dtype (defaults to `"auto"`), device (*optional*): For `backend: local`.
        price_per_million_prompt_tokens, price_per_million_completion_tokens (`float`, defaults to 0): USD.
        family (`str`, *optional*): Model family ("Qwen2.5"), for the Family-Strong baseline.
        license (`str`, *optional*): SPDX or Hub licence identifier, for the cards.
    """

    name: str = Field(min_length=1)
    model: str = Field(min_length=1)
    revision: str | None = None
    backend: Literal["endpoint", "local"] = "endpoint"
    endpoint: str | None = Field(None, pattern=r"^https?://")
    api: Literal["chat"] = "chat"
    api_key_env: str | None = None
    use_hub_token: bool = False
    system_prompt: str | None = None
    sampling: Sampling = Sampling()
    max_concurrency: int = Field(32, ge=1)
    timeout: float = Field(120.0, gt=0)
    batch_size: int = Field(32, ge=1)
    dtype: Dtype = "auto"
    device: str | None = None
    price_per_million_prompt_tokens: float = Field(0.0, ge=0)
    price_per_million_completion_tokens: float = Field(0.0, ge=0)
    family: str | None = None
    license: str | None = None

    @model_validator(mode="after")
    def _endpoint_where_one_is_used(self) -> Teacher:
        if self.backend == "endpoint" and self.endpoint is None:
            raise ValueError("`endpoint` is required: the server's base URL, or set `backend: local`")
        if self.backend == "local" and self.endpoint is not None:
            raise ValueError("`endpoint` must be left out with `backend: local`")
        if self.api_key_env is not None and self.use_hub_token:
            raise ValueError("give `api_key_env` or `use_hub_token`, not both")
        return self

    @field_validator("api_key_env")
    @classmethod
    def _variable_is_set(cls, name: str | None) -> str | None:
        if name is not None and not os.environ.get(name):
            raise ValueError(f"the environment variable {name} is not set; export it before the run")
        return name


class Prompts(Settings):
    """Where prompts come from.

    Args:
        source (`str`): A `.jsonl`, `.json`, `.csv` or `.parquet` file, a folder of `save_to_disk`, or a Hub dataset.
        revision (`str`, *optional*): Commit, tag or branch of a Hub dataset.
        config (`str`, *optional*), split (`str`, defaults to `"train"`): Of a Hub dataset.
        column (`str`, defaults to `"prompt"`): The prompt column: strings or chat messages.
        answer_column (`str`, *optional*): The reference that verifiers read.
        limit (`int`, *optional*): Use only the first rows.
    """

    source: str = Field(min_length=1)
    revision: str | None = None
    config: str | None = None
    split: str = "train"
    column: str = "prompt"
    answer_column: str | None = None
    limit: int | None = Field(None, ge=1)


class Probe(Settings):
    """The prompts that every teacher answers. `size` defaults to the paper's 2,500."""

    size: int = Field(2500, ge=2)


class Student(Settings):
    """The student that scores answers (and is trained on them later).

    Args:
        model (`str`): Hub repository id or local folder.
        revision (`str`, *optional*): Commit, tag or branch.
        dtype (defaults to `"auto"`), device (*optional*): How it is run for scoring.
        token_budget (`int`, defaults to 8192): Tokens of one forward pass, padding included.
    """

    model: str = Field(min_length=1)
    revision: str | None = None
    dtype: Dtype = "auto"
    device: str | None = None
    token_budget: int = Field(8192, ge=1)


class Quality(Settings):
    """How good an answer is. Exactly one of the two is given.

    Args:
        verifier (`str`, *optional*): `math`, `exact`, or `package.module:function` called with
            `(prompt, completion, answer)` and returning a number.
        reward_model (`str`, *optional*): A one-label sequence classifier, Hub id or folder.
        revision (`str`, *optional*): Of the reward model.
    """

    verifier: str | None = None
    reward_model: str | None = None
    revision: str | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Quality:
        if (self.verifier is None) == (self.reward_model is None):
            raise ValueError("give exactly one of `verifier` and `reward_model`")
        return self


class Reward(Settings):
    """How quality and learnability become one reward: `(1 - alpha) * n(quality) + alpha * n(learnability)`."""

    alpha: Alpha = 0.4
    normalization: Normalization = "minmax"
    learnability_metric: LearnabilityMetric = "mean-logprob"


class Router(Settings):
    """How the router is trained, or which published one is used. Exactly one of the first two is given.

    Args:
        backbone (`str`, *optional*): Hub repository id or local folder of an encoder or decoder to train.
        pretrained (`str`, *optional*): A finished router, Hub id or folder: nothing is probed, scored or trained.
        revision (`str`, *optional*): Of either.
        objective (defaults to `"bradley-terry"`): The loss.
        fallback (`"best-single"` or `"none"`, defaults to `"best-single"`): What a router becomes that does not beat
            the best single teacher on held-out prompts.
        folds (`int`, defaults to 5): Folds of the cross-validation.
        max_length (`int`, defaults to 512): Tokens of a prompt that the router reads.
    """

    backbone: str | None = Field(None, min_length=1)
    pretrained: str | None = Field(None, min_length=1)
    revision: str | None = None
    objective: Objective = "bradley-terry"
    fallback: Literal["best-single", "none"] = "best-single"
    folds: int = Field(5, ge=2)
    max_length: int = Field(512, ge=8)

    @model_validator(mode="after")
    def _exactly_one_start(self) -> Router:
        if (self.backbone is None) == (self.pretrained is None):
            raise ValueError("give exactly one of `backbone` (to train a router) and `pretrained` (to use one)")
        return self


class Publish(Settings):
    """Where the results go. Without repositories they stay in the run folder.

    Args:
        dataset_repo_id, router_repo_id (`str`, *optional*): Hub repositories to push to.
        private (`bool`, defaults to `True`): Visibility of new repositories.
        license (`str`, *optional*): Licence identifier of the personalised dataset.
        language (`tuple[str, ...]`, defaults to `()`): Language codes of the dataset.
        keep_truncated (`bool`, defaults to `False`): Keep completions that were cut by `max_tokens`.
    """

    dataset_repo_id: str | None = None
    router_repo_id: str | None = None
    private: bool = True
    license: str | None = None
    language: tuple[str, ...] = ()
    keep_truncated: bool = False

    @model_validator(mode="after")
    def _router_goes_with_dataset(self) -> Publish:
        if self.router_repo_id is not None and self.dataset_repo_id is None:
            raise ValueError("`router_repo_id` needs `dataset_repo_id`: the router's card names the dataset")
        return self


class RunConfig(Settings):
    """One run, from prompts to the personalised dataset. The sections are the YAML file's.

    Args:
        output_dir (`str`): The run folder.
        seed (`int`, defaults to 0): Seeds the probe, the sampling of every row and the router.
        prompts, probe, teachers, student, quality, reward, router, publish: See the classes of these names.

    Example:
        >>> config = RunConfig.from_yaml("examples/quickstart.yaml")  # doctest: +SKIP
    """

    output_dir: str = Field(min_length=1)
    seed: int = Field(0, ge=0, lt=2**31)
    prompts: Prompts
    probe: Probe = Probe()
    teachers: tuple[Teacher, ...]
    student: Student | None = None
    quality: Quality | None = None
    reward: Reward = Reward()
    router: Router
    publish: Publish = Publish()

    @field_validator("teachers")
    @classmethod
    def _at_least_two_of_different_names(cls, teachers: tuple[Teacher, ...]) -> tuple[Teacher, ...]:
        if len(teachers) < 2:
            raise ValueError(f"give at least two teachers to choose from, got {len(teachers)}")
        require_distinct_teachers(teachers)
        return teachers

    @model_validator(mode="after")
    def _training_needs_scores(self) -> RunConfig:
        if self.router.pretrained is None and (self.student is None or self.quality is None):
            raise ValueError("`student` and `quality` are required to train a router, or set `router.pretrained`")
        return self

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> RunConfig:
        """Reads and validates a configuration file.

        Args:
            path (`str` or `PathLike`): The YAML file. `${VARIABLE}` is not expanded; secrets are named, not written.
            overrides (`Mapping[str, Any]`, *optional*): Top-level keys that replace the file's.

        Raises:
            ConfigError: One line per problem: the file, the key and what would be right.
        """
        name = os.fspath(path)
        try:
            data = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{name}: cannot be read: {error.strerror or error}.") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{name}: is not valid YAML: {' '.join(str(error).split())}.") from error
        if not isinstance(data, dict):
            raise ConfigError(f"{name}: must be a mapping with the keys {', '.join(cls.model_fields)}.")
        return cls.from_dict({**data, **(overrides or {})}, source=name)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str = "configuration") -> RunConfig:
        """Validates a mapping; `source` names it in errors.

        Raises:
            ConfigError: One line per problem.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ConfigError("\n".join(f"{source}: {line}" for line in _explain(error))) from None


def require_distinct_teachers(teachers: Sequence[Teacher]) -> None:
    """Refuses two teachers of one name.

    Raises:
        ValueError: Naming the repeated ones.
    """
    names = [teacher.name for teacher in teachers]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"teacher names must differ; named more than once: {', '.join(repeated)}")


def _explain(error: ValidationError) -> list[str]:
    """One line per problem. Only numbers are repeated: a text may be a secret in the wrong place."""
    lines = []
    for problem in error.errors(include_url=False):
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"unknown key; this section knows {', '.join(_known_keys(problem['loc']))}"
        elif problem["type"] == "missing":
            message = "is required"
        elif isinstance(problem["input"], int | float):
            message = f"{message}, got {problem['input']}"
        lines.append(f"`{key}`: {message}." if key else f"{message}.")
    return lines


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    section: Any = RunConfig
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        annotation = section.model_fields[part].annotation
        section = annotation if isinstance(annotation, type) else get_args(annotation)[0]
    return sorted(section.model_fields)
