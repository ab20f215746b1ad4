"""Every exception that persyn_hf raises on purpose.

```
PersynError
├── ConfigError (ValueError)          a setting is wrong; names the file, the key and what would be right
├── DataError (ValueError)            a table or a row is wrong
│   ├── MissingColumnError            a stage was given a table without a column that it reads
│   ├── DuplicatePromptError          one prompt stands twice where each must stand once
│   └── PromptTooLongError            a prompt, or a prompt with its completion, exceeds the context
├── TeacherError                      one request to a teacher failed
│   ├── RetryableError                the same request may succeed later (overload, broken connection)
│   │   └── UnavailableError          nobody serves there now (connection refused, 503)
│   ├── RowError                      this row can never succeed (refused by validation): the row gets `error`
│   └── TeacherDownError              nothing can succeed (wrong key, nobody listening): stop this teacher
├── LedgerError                       the ledger, or the table made of it, cannot be read or written
├── ScoringError                      a score could not be computed
│   └── RequestError                  a server that scores cannot answer this request; others it may
│       └── PassingError              the same request may succeed later
├── RouterError                       a router cannot be trained, loaded or used
│   ├── AllocationError               no allocation keeps all limits; says which, and by how much
│   ├── RouterCheckpointError         the checkpoint is damaged, or is no router
│   └── RouterMismatchError           the router was trained for other teachers
├── StudentError                      a student cannot be trained or judged
├── PublishError                      a dataset, a router or a card could not be published
└── MissingPackageError (ImportError) a package is absent, as in a light installation; carries the pip command
    └── MissingExtraError             an optional dependency is absent
```
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "AllocationError",
    "ConfigError",
    "DataError",
    "DuplicatePromptError",
    "LedgerError",
    "MissingColumnError",
    "MissingExtraError",
    "MissingPackageError",
    "PersynError",
    "UnavailableError",
    "RequestError",
    "PassingError",
    "PromptTooLongError",
    "PublishError",
    "RetryableError",
    "RouterCheckpointError",
    "RouterError",
    "RouterMismatchError",
    "RowError",
    "ScoringError",
    "StudentError",
    "TeacherDownError",
    "TeacherError",
]


class PersynError(Exception):
    """Base of every exception raised on purpose by persyn_hf."""


class ConfigError(PersynError, ValueError):
    """A setting is wrong. The message names the file, the key and what would be right."""


class DataError(PersynError, ValueError):
    """A table or one of its rows is not what a stage needs."""


class MissingColumnError(DataError):
    """A stage was given a table that lacks a column it reads."""


class DuplicatePromptError(DataError):
    """The same prompt stands more than once where each must stand once."""


class PromptTooLongError(DataError):
    """A prompt (with its completion, where one is scored) does not fit the model's context."""


class TeacherError(PersynError):
    """One request to a teacher failed.

    Attributes:
        maybe_charged (`bool`): Whether the server may have made an answer, and charges for it, all the same.
        status (`int`, *optional*): The HTTP status that said so; `None` where no response did.
        doubtful (`bool`): Whether it may be meant for this one request, though it reads as if meant for all: other
            requests show it.
        is_page (`bool`): Whether the response was a page for browsers.
    """

    maybe_charged: bool = False
    doubtful: bool = False
    status: int | None = None
    is_page: bool = False


class RetryableError(TeacherError):
    """The same request may succeed later.

    Args:
        message (`str`): What happened, without secrets.
        retry_after (`float`, *optional*): Seconds the server asked to wait.
        overloaded (`bool`, defaults to `False`): Whether the server refused for load (429, 503), so that
            concurrency should fall.
        attempts (`int`, *optional*): At most this many attempts make sense for this kind of error
            (`None`: the caller's own limit).
    """

    def __init__(
        self, message: str, *, retry_after: float | None = None, overloaded: bool = False, attempts: int | None = None
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.overloaded = overloaded
        self.attempts = attempts


class UnavailableError(RetryableError):
    """Nobody serves there now (connection refused, 503): it says nothing against the row or the concurrency."""


class RowError(TeacherError):
    """The teacher refused this row for good; the row is kept with `error` set."""


class TeacherDownError(TeacherError):
    """No request to this teacher can succeed (wrong key, unknown model, nobody listening)."""


class LedgerError(PersynError):
    """The ledger, or the table made of it, cannot be opened, read or written; the message says the way out."""


class ScoringError(PersynError):
    """A score could not be computed; the message names the row."""


class RequestError(ScoringError):
    """This request cannot be answered; others may."""


class PassingError(RequestError):
    """The same request may succeed later.

    Args:
        message (`str`): What happened.
        retry_after (`float`, *optional*): Seconds that the server asked to wait.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RouterError(PersynError):
    """A router cannot be trained, loaded or used."""


class AllocationError(RouterError):
    """No allocation keeps all limits; the message says which cannot be kept, and by how much."""


class RouterCheckpointError(RouterError):
    """The checkpoint is damaged or is no persyn router; the message says what is wrong and where."""


class RouterMismatchError(RouterError):
    """The router was trained for other teachers than those it is used with."""


class StudentError(PersynError):
    """A student cannot be trained or judged; the message says what to change."""


class PublishError(PersynError):
    """A dataset, a router or a card could not be published; nothing is half done."""


class MissingPackageError(PersynError, ImportError):
    """A package is absent that `pip install persyn-hf` brings; a light installation leaves it out.

    Args:
        packages (`Sequence[str]`): The packages that cannot be imported.
        requirements (`Sequence[str]`): What to give pip for them, as `torch>=2.6`.
        purpose (`str`): What they are needed for, as the end of "is needed to …".
    """

    def __init__(self, packages: Sequence[str], requirements: Sequence[str], purpose: str) -> None:
        *others, last = (f"`{package}`" for package in packages)
        names = f"{', '.join(others)} and {last}" if others else last
        verb, them = ("is", "it") if len(packages) == 1 else ("are", "them")
        wanted = " ".join(f"'{requirement}'" for requirement in requirements)
        super().__init__(
            f"{names} {verb} needed to {purpose}. Install {them} with: pip install {wanted}. "
            "(All that persyn_hf can use: pip install persyn-hf)"
        )


class MissingExtraError(MissingPackageError):
    """An optional dependency is absent.

    Args:
        package (`str`): The package that could not be imported.
        extra (`str`): The extra of persyn-hf that brings it.
        purpose (`str`): What it is needed for, as the end of "is needed to …".
        bare (`Sequence[str]`): Packages that no extra brings, to be installed without their dependencies.
    """

    def __init__(self, package: str, extra: str, purpose: str, bare: Sequence[str] = ()) -> None:
        message = f"`{package}` is needed to {purpose}. Install it with: pip install 'persyn-hf[{extra}]'"
        if bare:
            message += f" && pip install --no-deps {' '.join(bare)}"
        super(MissingPackageError, self).__init__(message)
