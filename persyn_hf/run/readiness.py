"""Checks before the first paid answer. Cheap checks run first, and all problems are reported at once."""

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
#: Time to wait for a server that does not answer, in seconds; it may be starting.
PATIENCE = 10.0
#: File in the run folder with the dropped prompts and the reasons.
DROPPED = "dropped.json"
#: Keys whose failures leave no prompts or no run folder for further checks.
_GROUND = ("prompts.source", "probe.size", "output_dir")

Confirm = Callable[[str], bool]


class Readiness:
    """Prepares a run: checks it, asks for confirmation of repeated costs and generates the first answers.

    Args:
        config (`RunConfig`): Configuration of the run.
        stages (`Sequence[str]`): Names of the stages to run.
        source (`str`): Name of the configuration in errors.
    """

    def __init__(self, config: RunConfig, stages: Sequence[str], source: str) -> None:
        self._config, self._stages, self._source = config, stages, source
        self._trains = config.router.pretrained is None
        self._scores = scores(config, stages)
        self.examined: Examined = examine(config, source, stages)

    @property
    def has_ground(self) -> bool:
        """True if the prompts were read and the run folder is usable."""
        failed = {finding.key for finding in self.examined.findings.failures}
        return self.examined.prompts is not None and not failed & set(_GROUND)

    def require_all(self) -> None:
        """Runs the checks that need no run folder and raises all problems, for a run without a usable folder."""
        if self.examined.prompts is not None:
            self._ask_servers(self._config.teachers if self._trains else ())
            sift_prompts(self._config, self.examined)
        require_ready(self.examined.findings, self._source)

    def prepare(self, folder: RunFolder) -> Dataset:
        """Runs all checks, stores the prompts in the folder and returns them.

        Raises:
            PersynError: If anything stops the run. The error lists all problems.
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
        """Leaves out the prompts that an earlier run dropped, without checking them again."""
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
        """Checks the teachers' endpoints and the servers that score."""
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
        """Logs the answers that a changed setting repeats, and asks for confirmation above `confirm_above`.

        Args:
            folder (`RunFolder`): Run folder.
            prompts (`Dataset`): Prompts of the run.
            yes (`bool`): Whether the cost is confirmed already.
            ask (`Callable[[str], bool]`, *optional*): Function that asks a person for confirmation.

        Raises:
            ConfigError: If nobody confirms. No requests were sent.
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
        question = f"Requesting answers again will cost about {cost:.2g} USD. Continue?"
        if ask is not None:
            if ask(question):
                return
            raise ConfigError("No requests were sent. Restore the former values, or confirm the cost.")
        lines = "\n".join(f"  {one}" for one in found)
        raise ConfigError(
            f"{self._source}: a changed setting requires new answers for about {cost:.2g} USD, above "
            f"`confirm_above` ({self._config.confirm_above:g} USD). No requests were sent.\n{lines}\n"
            "Restore the former values, or confirm: pass --yes (`yes=True` in Python), or raise `confirm_above`."
        )

    def try_first(self, folder: RunFolder) -> None:
        """Generates and scores the first answers of an unfinished probe.

        Raises:
            PersynError: If a teacher does not answer, or the answers cannot be scored. The error lists all problems.
        """
        if not self._trains or folder.is_finished(probe_stage(self._config, folder.ledger)):
            return
        probe = folder.read(PROBE_PROMPTS)
        failed = try_teachers(self._config, probe, folder.ledger, self._scores)
        require_ready(failed, self._source, "Only the first answers were requested")


def _unasked(teacher: Teacher) -> Teacher:
    return teacher.model_copy(update={"preflight": False})


def _has_key(teacher: Teacher) -> bool:
    """Returns True if a teacher's key is set or not needed. Another check reports a missing key."""
    try:
        find_key(teacher.api_key_env, teacher.use_hub_token, teacher.name)
    except ConfigError:
        return False
    return True
