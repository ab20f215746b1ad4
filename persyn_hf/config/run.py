"""Configuration of one run: all sections, read from one YAML file and validated."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, get_args

import yaml
from pydantic import Field, field_validator, model_validator

from persyn_hf.config.accept import Accept
from persyn_hf.config.allocation import Allocation
from persyn_hf.config.hygiene import Hygiene
from persyn_hf.config.overrides import read_overridden
from persyn_hf.config.prompts import Probe, Prompts
from persyn_hf.config.publishing import Publish
from persyn_hf.config.routing import Router
from persyn_hf.config.scoring import Normalization, Quality, Reward, Student
from persyn_hf.config.settings import Settings, Unit, names_a_variable
from persyn_hf.config.students import Compare, Training
from persyn_hf.config.teachers import Teacher, require_distinct_teachers
from persyn_hf.errors import ConfigError

#: Stages of a run in order; the values of `--until`.
STAGES = ("probe", "score", "router", "route", "generate", "publish")


class Spending(Settings):
    """Limit on the cost of answers and scores.

    Args:
        max_cost (`float`, *optional*): Maximum cost in USD of all answers in the ledger, including those already paid
            for: answers of teachers, of judges and of a student behind a server. A request is not sent if its longest
            possible answer could exceed the limit; the remaining rows have `error` or `quality_error` set.
    """

    max_cost: Annotated[float | None, Unit("USD")] = Field(None, gt=0)


class GenerationOptions(Spending):
    """Options of [`generate_parallel`] and [`generate_routed`].

    Args:
        max_cost (`float`, *optional*): See [`Spending`].
        drop_truncated (`bool`, defaults to `False`): Whether to drop answers that were cut at `max_tokens`.
    """

    drop_truncated: bool = False


class ScoreOptions(Spending):
    """Options of [`score`].

    Args:
        max_cost (`float`, *optional*): See [`Spending`].
        batch_size (`int`, defaults to 512): Number of rows that are rendered, or sent to a judge, at a time.
    """

    batch_size: int = Field(512, ge=1)


class RunConfig(Spending):
    """Configuration of one run, from prompts to the personalised dataset.

    Args:
        output_dir (`str`): Run folder.
        seed (`int`, defaults to 0): Random seed of the probe, the sampling of every row and the router.
        max_cost (`float`, *optional*): Maximum cost in USD of all answers over all reruns: teachers, probe, judge and
            a student behind a server. The run stops before it exceeds the limit, and resumes once the limit is raised.
        rows_per_shard (`int`, defaults to 20,000): Number of prompts in one shard of a stage's table. A shard is
            computed, stored and recomputed as a whole. Another size changes scores within rounding and nothing else.
        confirm_above (`float`, defaults to 0): Cost in USD above which a run asks for confirmation (or `--yes`) before
            it pays again for answers that the ledger holds under a former setting.
        prompts (`Prompts`): Source and format of the prompts.
        hygiene (`Hygiene`): Filters on prompts before generation and on answers before publication.
        probe (`Probe`): Prompts that every teacher answers.
        teachers (`tuple[Teacher, ...]`): Teachers, at least two, with different names.
        student (`Student`, *optional*): Student that scores answers; required to train a router.
        quality (`Quality`, *optional*): Measure of an answer's quality; required to train a router.
        reward (`Reward`): Combination of quality and learnability into one reward.
        router (`Router`): Training of a router, or a published router.
        allocation (`Allocation`): Allocation of teachers to the whole set.
        accept (`Accept`, *optional*): Acceptance of answers, and retries for those that are not accepted.
        publish (`Publish`): Repositories of the results.
        training (`Training`): Fine-tuning recipe of `train-student` and `compare`.
        compare (`Compare`, *optional*): Comparison that `compare` runs.

    Example:
        >>> config = RunConfig.from_yaml("examples/quickstart.yaml")  # doctest: +SKIP
    """

    output_dir: str = Field(min_length=1)
    seed: int = Field(0, ge=0, lt=2**31)
    rows_per_shard: int = Field(20_000, ge=1)
    confirm_above: Annotated[float, Unit("USD")] = Field(0.0, ge=0)
    prompts: Prompts
    hygiene: Hygiene = Hygiene()
    probe: Probe = Probe()
    teachers: tuple[Teacher, ...]
    student: Student | None = None
    quality: Quality | None = None
    reward: Reward = Reward()
    router: Router
    allocation: Allocation = Allocation()
    accept: Accept | None = None
    publish: Publish = Publish()
    training: Training = Training()
    compare: Compare | None = None

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

    @model_validator(mode="after")
    def _allocation_has_what_it_needs(self) -> RunConfig:
        allocation, names = self.allocation, {teacher.name for teacher in self.teachers}
        if allocation.names - names:
            unknown = ", ".join(sorted(allocation.names - names))
            raise ValueError(f"`allocation` names {unknown}, but the teachers are {', '.join(sorted(names))}")
        if allocation.policy not in ("persyn", "random") and self.router.pretrained is not None:
            raise ValueError(f"`allocation.policy: {allocation.policy}` needs a scored probe; set `router.backbone`")
        if allocation.top_k > len(names):
            raise ValueError(f"`allocation.top_k` is {allocation.top_k}, but there are {len(names)} teachers")
        if allocation.top_k > 1 and (self.student is None or self.quality is None):
            raise ValueError("`allocation.top_k` above 1 needs `student` and `quality` to choose the best answer")
        return self

    @model_validator(mode="after")
    def _acceptance_has_what_it_needs(self) -> RunConfig:
        if self.accept is None:
            return self
        if self.quality is None:
            raise ValueError("`accept` needs `quality`, whose value it compares with `min_quality`")
        if self.quality.normalize in get_args(Normalization):
            raise ValueError(
                f"`quality.normalize: {self.quality.normalize}` is relative to each prompt, so `accept.min_quality` "
                "would have no scale; use `range`"
            )
        if self.allocation.top_k > 1:
            raise ValueError("`accept` and `allocation.top_k` above 1 both request several answers; give one of them")
        return self

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str], overrides: Mapping[str, object] | None = None) -> RunConfig:
        """Reads and validates a configuration file.

        Args:
            path (`str` or `PathLike`): Path of the YAML file. `${VARIABLE}` is not expanded, so that the configuration
                holds the names of secrets and never their values.
            overrides (`Mapping[str, object]`, *optional*): Values that replace the file's, by dotted key, like
                `--set`: `{"reward.alpha": 0.2, "teachers.qwen.timeout": 60}`.

        Raises:
            ConfigError: One line per problem, with the file, the key and the expected value.
        """
        name = os.fspath(path)
        try:
            text = Path(name).read_text(encoding="utf-8-sig")
            data = yaml.safe_load(text)
            repeated = _repeated_key(yaml.compose(text, Loader=yaml.SafeLoader))
        except OSError as error:
            raise ConfigError(f"{name}: cannot be read: {error.strerror or error}.") from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(f"{name}: is not valid YAML: {_problem(error)}.") from None
        if repeated is not None:
            raise ConfigError(f"{name}: {repeated}.")
        if not isinstance(data, dict):
            raise ConfigError(f"{name}: must be a mapping with the keys {', '.join(cls.model_fields)}.")
        return cls.from_dict(data, name, overrides)

    @classmethod
    def from_dict(
        cls, data: Mapping[str, object], source: str = "configuration", overrides: Mapping[str, object] | None = None
    ) -> RunConfig:
        """Validates a mapping; `source` names it in errors, and `overrides` are as in `from_yaml`.

        Raises:
            ConfigError: One line per problem.
        """
        return read_overridden(cls, data, overrides or {}, source)


def _repeated_key(node: yaml.Node | None) -> str | None:
    """The first key that stands twice in a mapping, which YAML forbids and PyYAML takes: the last one would count."""
    waiting, seen = [node], set()
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen or isinstance(node, yaml.ScalarNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            first: dict[str, int] = {}
            for key, value in node.value:
                word, line = str(key.value), key.start_mark.line + 1
                if isinstance(key, yaml.ScalarNode) and word in first and word != "<<":
                    what = f"the key `{word}`" if names_a_variable(word) else "a key"
                    return f"{what} stands twice, in line {first[word]} and in line {line}; keep one of them"
                first[word] = line
                waiting.append(value)
        else:
            waiting.extend(node.value)
    return None


def _problem(error: Exception) -> str:
    """Describes an error in a YAML text and its place, without the line itself, which may hold a secret."""
    if isinstance(error, UnicodeDecodeError):
        return "it is no UTF-8; save the file as UTF-8"
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or type(error).__name__
    if isinstance(error, yaml.composer.ComposerError | yaml.constructor.ConstructorError):
        what = what.partition(" '")[0]  # a name, a tag or a value of the file follows
    return what if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: {what}"
