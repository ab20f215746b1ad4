"""The folder of a run: one Parquet table per stage, and a record that says what each was made from.

A stage is done when its record's fingerprint is that of the present configuration and inputs. Fingerprints contain
the digest of the tables a stage reads, so a stage that is repeated with the same outcome leaves those after it valid.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persyn_hf import columns
from persyn_hf.errors import ConfigError
from persyn_hf.tables import no_bars, remove, write_atomically
from persyn_hf.version import __version__

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class StageRecord:
    """What is known of a finished stage.

    Args:
        name (`str`): The stage.
        fingerprint (`str`): Of its settings and inputs.
        digest (`str`): Of its output.
        rows (`int`): Rows of its table; 0 for a model.
        errors (`int`): Rows with `error` set. A stage with errors is tried again; what succeeded is not.
        seconds (`float`): Wall-clock time it took.
        reused (`bool`, defaults to `False`): Whether this run found it finished.
    """

    name: str
    fingerprint: str
    digest: str
    rows: int
    errors: int
    seconds: float
    reused: bool = False


class RunFolder:
    """Finds finished stages and keeps new ones, each put in place whole.

    Args:
        path (`str` or `PathLike`): The run folder; made where it is not there.
        ledger (`str` or `PathLike`, *optional*): Where answers are kept. Default: in the folder; several runs whose
            teachers are the same may share one.
    """

    def __init__(self, path: str | os.PathLike[str], ledger: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path)
        self.ledger = self.path / "ledger.sqlite" if ledger is None else Path(ledger)
        self.stages = self.path / "stages"
        self.records: list[StageRecord] = []
        self.stages.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second run out of this folder.

        Raises:
            ConfigError: If another process runs here.
        """
        with open(self.path / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"`output_dir`: another run is at work in {self.path}.") from None
            yield

    def table(self, name: str, inputs: dict[str, Any], make: Callable[[], Dataset]) -> Dataset:
        """Returns a stage's table, made now unless it is there already.

        Args:
            name (`str`): The stage.
            inputs (`dict`): Everything the table depends on, JSON-serialisable.
            make (`Callable`): Makes it.
        """
        path = self.stages / f"{name}.parquet"

        def write(staged: Path) -> tuple[int, int]:
            data = make()
            with no_bars():
                data.to_parquet(staged)
            errors = 0
            if columns.ERROR in data.column_names:
                errors = sum(error is not None for error in data[columns.ERROR])
            return len(data), errors

        self._once(name, path, inputs, write)
        return self._read(path)

    def model(self, name: str, inputs: dict[str, Any], make: Callable[[Path], None]) -> Path:
        """Returns the folder of a stage's checkpoint, made now unless it is there already."""
        path = self.stages / name

        def write(staged: Path) -> tuple[int, int]:
            staged.mkdir()
            make(staged)
            return 0, 0

        self._once(name, path, inputs, write)
        return path

    def digest(self, name: str) -> str:
        """The digest of a finished stage's output, for the fingerprints of those that read it."""
        return next(record.digest for record in self.records if record.name == name)

    def _once(self, name: str, path: Path, inputs: dict[str, Any], write: Callable[[Path], tuple[int, int]]) -> None:
        fingerprint = _fingerprint(name, inputs)
        known = self._record(name)
        if known and known.fingerprint == fingerprint and not known.errors and path.exists():
            self.records.append(StageRecord(**{**asdict(known), "reused": True}))
            return
        staged = path.with_name(f".{path.name}.staged")
        remove(staged)
        began = time.monotonic()
        rows, errors = write(staged)
        record = StageRecord(name, fingerprint, _digest(staged), rows, errors, time.monotonic() - began)
        (self.stages / f"{name}.json").unlink(missing_ok=True)
        remove(path)
        staged.rename(path)
        write_atomically(self.stages / f"{name}.json", json.dumps(asdict(record), indent=2) + "\n")
        self.records.append(record)

    def _record(self, name: str) -> StageRecord | None:
        try:
            return StageRecord(**json.loads((self.stages / f"{name}.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"`output_dir`: {self.stages / name}.json is damaged ({error}); delete it to make the stage again."
            ) from error

    def _read(self, path: Path) -> Dataset:
        from datasets import Dataset

        with no_bars():
            return Dataset.from_parquet(str(path), cache_dir=str(self.path / ".cache"))


def _fingerprint(name: str, inputs: dict[str, Any]) -> str:
    text = json.dumps([name, __version__, inputs], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(f"{file.relative_to(path).as_posix()}\0".encode())
            with open(file, "rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
