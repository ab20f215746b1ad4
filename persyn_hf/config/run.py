"""One run: all sections, read from one YAML file and explained where they are wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

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

#: The stages of a run in order. `--until` takes one of these names.
STAGES = ("probe", "score", "router", "route", "generate", "publish")


class Spending(Settings):
    """What answers and scores may cost.

    Args:
        max_cost (`float`, *optional*): USD that the answers of the ledger may cost in all, those that it has already
            included: teachers', judges' and those of a student behind a server. No request is sent whose longest
            answer could pass it; the rows that are left have `error` or `quality_error` set.
    """

    max_cost: Annotated[float | None, Unit("USD")] = Field(None, gt=0)


class GenerationOptions(Spending):
    """How [`generate_parallel`] and [`generate_routed`] make their tables.

    Args:
        max_cost (`float`, *optional*): See [`Spending`].
        drop_truncated (`bool`, defaults to `False`): Leave answers that `max_tokens` cut out of the table.
    """

    drop_truncated: bool = False


class ScoreOptions(Spending):
    """How [`score`] goes.

    Args:
        max_cost (`float`, *optional*): See [`Spending`].
        batch_size (`int`, defaults to 512): Rows that are rendered, and given to a judge, at a time.
    """

    batch_size: int = Field(512, ge=1)


class RunConfig(Spending):
    """One run, from prompts to the personalised dataset. The sections are the YAML file's.

    Args:
        output_dir (`str`): The run folder.
        seed (`int`, defaults to 0): Seeds the probe, the sampling of every row and the router.
        max_cost (`float`, *optional*): USD that the answers of all teachers may cost, probe, judge and a student
            behind a server included, and over all reruns: the run stops before it would be passed, and goes on once
            it is raised.
        rows_per_shard (`int`, defaults to 20,000): Prompts in one shard of a stage's table: what is made, kept and
            made again as a whole. Scores of answers in another cut agree within rounding; all else is the same.
        confirm_above (`float`, defaults to 0): USD. Where a changed setting makes a run buy answers again that its
            ledger has under the former one, and they cost more than this, the run asks first (or wants `--yes`).
        prompts (`Prompts`): Where prompts come from.
        hygiene (`Hygiene`): Which prompts leave before they are asked, and which answers before they are published.
        probe (`Probe`): The prompts that every teacher answers.
        teachers (`tuple[Teacher, ...]`): Two at least, of different names.
        student (`Student`, *optional*): The student that scores answers; required to train a router.
        quality (`Quality`, *optional*): How good an answer is; required to train a router.
        reward (`Reward`): How quality and learnability become one reward.
        router (`Router`): How the router is trained, or which published one is used.
        allocation (`Allocation`): How scores become routes for the whole set.
        accept (`Accept`, *optional*): When an answer is good enough, and what is asked where it is not.
        publish (`Publish`): Where the results go.
        training (`Training`): The recipe of fine-tuning that `train-student` and `compare` read.
        compare (`Compare`, *optional*): What the command of that name compares.

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
            raise ValueError(f"`allocation` names {', '.join(sorted(allocation.names - names))}, which is no teacher")
        if allocation.policy not in ("persyn", "random") and self.router.pretrained is not None:
            raise ValueError(f"`allocation.policy: {allocation.policy}` needs a scored probe; set `router.backbone`")
        if allocation.top_k > len(names):
            raise ValueError(f"`allocation.top_k` is {allocation.top_k}, but there are {len(names)} teachers")
        if allocation.top_k > 1 and (self.student is None or self.quality is None):
            raise ValueError("`allocation.top_k` above 1 needs `student` and `quality`, to choose the best answer")
        return self

    @model_validator(mode="after")
    def _acceptance_has_what_it_needs(self) -> RunConfig:
        if self.accept is None:
            return self
        if self.quality is None:
            raise ValueError("`accept` needs `quality`, which says how good an answer is")
        if self.quality.normalize in get_args(Normalization):
            raise ValueError(f"`quality.normalize: {self.quality.normalize}` leaves no scale for `accept.min_quality`")
        if self.allocation.top_k > 1:
            raise ValueError("`accept` and `allocation.top_k` above 1 both ask for several answers; give one of them")
        return self

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> RunConfig:
        """Reads and validates a configuration file.

        Args:
            path (`str` or `PathLike`): The YAML file. `${VARIABLE}` is not expanded; secrets are named, not written.
            overrides (`Mapping[str, Any]`, *optional*): Values that replace the file's, by dotted key, as `--set`
                takes them: `{"reward.alpha": 0.2, "teachers.qwen.timeout": 60}`.

        Raises:
            ConfigError: One line per problem: the file, the key and what would be right.
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
        cls, data: Mapping[str, Any], source: str = "configuration", overrides: Mapping[str, Any] | None = None
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
    """What is wrong with a YAML text and where, without the line itself: it may hold a secret."""
    if isinstance(error, UnicodeDecodeError):
        return "it is no UTF-8; save the file as UTF-8"
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or type(error).__name__
    if isinstance(error, yaml.composer.ComposerError | yaml.constructor.ConstructorError):
        what = what.partition(" '")[0]  # a name, a tag or a value of the file follows
    return what if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: {what}"
