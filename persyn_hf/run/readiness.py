"""Everything that can be known before the first paid answer, told at once, in the order of what it costs to know."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from persyn_hf import columns
from persyn_hf.config import RunConfig, Teacher
from persyn_hf.doctor.configuration import Examined, examine, scores, sift_prompts
from persyn_hf.doctor.findings import require_ready
from persyn_hf.doctor.servers import check_services, check_survey, survey_teachers
from persyn_hf.endpoints.keys import find_key
from persyn_hf.errors import ConfigError
from persyn_hf.run.folder import RunFolder
from persyn_hf.run.purchases import find_repurchases, teachers_to_ask
from persyn_hf.run.stages import PROBE_PROMPTS, PROMPTS, probe_prompts_stage, probe_stage, score_stage
from persyn_hf.run.trial import try_teachers
from persyn_hf.tables import write_json

if TYPE_CHECKING:
    from datasets import Dataset

    from persyn_hf.generation.describe import EndpointLimits

_log = logging.getLogger(__name__)
#: Seconds to wait for a server that does not answer: it may be starting.
PATIENCE = 10.0
#: Prompts that were left out, with the reasons, in the run folder.
DROPPED = "dropped.json"
#: Failures that leave no table to look into.
_GROUND = ("prompts.source", "probe.size", "output_dir")

Confirm = Callable[[str], bool]


class Readiness:
    """Gets a run ready: checks, the question before answers are bought again, the first answers.

    Args:
        config (`RunConfig`): The run.
        stages (`Sequence[str]`): The stages that are to run.
        source (`str`): Names the configuration in errors.
    """

    def __init__(self, config: RunConfig, stages: Sequence[str], source: str) -> None:
        self._config, self._stages, self._source = config, stages, source
        self._trains = config.router.pretrained is None
        self._scores = scores(config, stages)
        self.examined: Examined = examine(config, source, stages)

    @property
    def has_ground(self) -> bool:
        """Whether there are prompts, and a folder to work in."""
        failed = {finding.key for finding in self.examined.findings.failures}
        return self.examined.prompts is not None and not failed & set(_GROUND)

    def require_all(self) -> None:
        """Makes the checks that need no run folder, for a run that can have none, and raises what was found."""
        if self.examined.prompts is not None:
            self._ask_servers(self._config.teachers if self._trains else ())
            sift_prompts(self._config, self.examined)
        require_ready(self.examined.findings, self._source)

    def prepare(self, folder: RunFolder) -> Dataset:
        """Makes all checks and gives the prompts of the run, which the folder keeps.

        Raises:
            PersynError: With everything that stops the run.
        """
        config, examined = self._config, self.examined
        assert examined.prompts is not None
        sift_prompts(config, examined)
        self._leave_out_known(folder)
        self._keep(folder)
        limits = None
        if self._trains and not folder.is_finished(probe_stage(config, folder.ledger)):
            limits = self._ask_servers(teachers_to_ask(config, folder.read(PROBE_PROMPTS), folder.ledger))
            before = len(examined.dropped)
            failures = len(examined.findings.failures)
            if limits and not failures:
                sift_prompts(config, examined, limits)
                if len(examined.dropped) > before:
                    self._keep(folder)
        elif self._scores and not folder.is_finished(score_stage(config)):
            self._ask_services()
        self._require(folder)
        return examined.prompts

    def _keep(self, folder: RunFolder) -> None:
        assert self.examined.prompts is not None
        folder.keep(PROMPTS, self.examined.prompts)
        if self._trains:
            folder.table(probe_prompts_stage(self._config, where=f"{self._source}: probe"))

    def _require(self, folder: RunFolder) -> None:
        require_ready(self.examined.findings, self._source)
        for finding in self.examined.findings:
            if finding.state == "note" and finding.topic in ("settings", "prompts"):
                _log.warning("%s", finding.message)
        if self.examined.dropped:
            write_json(folder.path / DROPPED, self.examined.dropped)

    def _leave_out_known(self, folder: RunFolder) -> None:
        """Leaves out the prompts that an earlier run dropped, where it is not to be asked again why."""
        config, examined = self._config, self.examined
        assert examined.prompts is not None
        if config.prompts.on_bad_prompt != "drop" or not (folder.path / DROPPED).is_file():
            return
        known = json.loads((folder.path / DROPPED).read_text(encoding="utf-8"))
        ids = examined.prompts[columns.PROMPT_ID][:]
        again = {one: known[one] for one in ids if one in known}
        if again and self._trains:
            examined.dropped |= again
            examined.prompts = examined.prompts.select([row for row, one in enumerate(ids) if one not in again])

    def _ask_servers(self, teachers: Sequence[Teacher]) -> Mapping[tuple[str, str], EndpointLimits]:
        """Asks the teachers' endpoints what they serve, and the servers that score."""
        asked = [teacher for teacher in teachers if _has_key(teacher)]
        survey = survey_teachers(asked, PATIENCE)
        names = {teacher.name for teacher in asked}
        shown = self._config.model_copy(
            update={"teachers": tuple(t if t.name in names else _unasked(t) for t in self._config.teachers)}
        )
        self.examined.findings += check_survey(shown, survey)
        if self._scores:
            self._ask_services()
        return survey.limits

    def _ask_services(self) -> None:
        failed = {finding.topic for finding in self.examined.findings.failures}
        if self.examined.prompts is None or not len(self.examined.prompts) or failed & {"keys", "packages", "student"}:
            return
        self.examined.findings += check_services(self._config, self.examined.prompts[0][columns.PROMPT], PATIENCE)

    def confirm(self, folder: RunFolder, prompts: Dataset, yes: bool, ask: Confirm | None) -> None:
        """Says which answers a changed setting buys again, and asks where they cost more than `confirm_above`.

        Args:
            folder (`RunFolder`): The run's.
            prompts (`Dataset`): The run's.
            yes (`bool`): Whether the answer is known to be yes.
            ask (`Callable[[str], bool]`, *optional*): Asks a person.

        Raises:
            ConfigError: If nobody agrees. No requests were sent.
        """
        if "generate" not in self._stages:
            prompts = folder.read(PROBE_PROMPTS) if self._trains else prompts
        former = folder.path / "config.yaml"
        found = find_repurchases(self._config, prompts, Path(folder.ledger), former)
        for one in found:
            _log.warning("%s", one)
        cost = sum(one.cost or 0.0 for one in found if not one.begun)
        if yes or cost <= self._config.confirm_above:
            return
        question = f"Answers that cost about {cost:.2g} USD are bought again. Go on?"
        if ask is not None:
            if ask(question):
                return
            raise ConfigError("No requests were sent. Set the former values again, or agree.")
        lines = "\n".join(f"  {one}" for one in found)
        raise ConfigError(
            f"{self._source}: a changed setting would buy answers again for about {cost:.2g} USD, above "
            f"`confirm_above` ({self._config.confirm_above:g} USD). No requests were sent.\n{lines}\n"
            "Set the former values again, or agree: with --yes (`yes=True` in Python), or a higher `confirm_above`."
        )

    def try_first(self, folder: RunFolder) -> None:
        """Asks for the first answers of a probe that is not finished, and scores them.

        Raises:
            PersynError: With every teacher that does not answer, or with what cannot be scored.
        """
        if not self._trains or folder.is_finished(probe_stage(self._config, folder.ledger)):
            return
        probe = folder.read(PROBE_PROMPTS)
        failed = try_teachers(self._config, probe, folder.ledger, self._scores)
        require_ready(failed, self._source)


def _unasked(teacher: Teacher) -> Teacher:
    return teacher.model_copy(update={"preflight": False})


def _has_key(teacher: Teacher) -> bool:
    """Whether a teacher's key is there, or none is wanted; one that is absent is told by its own check."""
    try:
        find_key(teacher.api_key_env, teacher.use_hub_token, teacher.name)
    except ConfigError:
        return False
    return True
