"""Every exception that persyn_hf raises on purpose.

```
PersynError
├── ConfigError (ValueError)          a setting is wrong; names the file, the key and a valid value
├── DataError (ValueError)            a table or a row is wrong
│   ├── MissingColumnError            a table lacks a column that a stage reads
│   ├── DuplicatePromptError          a prompt occurs twice in a table that must have it once
│   └── PromptTooLongError            a prompt, or a prompt with its completion, exceeds the context
├── TeacherError                      one request to a teacher failed
│   ├── RetryableError                the same request may succeed later (overload, broken connection)
│   │   └── UnavailableError          the server is unavailable now (connection refused, 503)
│   ├── RowError                      this row can never succeed (refused by validation): the row gets `error`
│   └── TeacherDownError              no request can succeed (wrong key, no server): stop this teacher
├── LedgerError                       the ledger, or the table made from it, cannot be read or written
├── ScoringError                      a score could not be computed
│   └── RequestError                  a server that scores cannot answer this request; other requests may succeed
│       └── PassingError              the same request may succeed later
├── RouterError                       a router cannot be trained, loaded or used
│   ├── AllocationError               no allocation meets all limits; says which, and by how much
│   ├── RouterCheckpointError         the checkpoint is damaged, or is not a router
│   └── RouterMismatchError           the router was trained for other teachers
├── StudentError                      a student cannot be trained or evaluated
├── PublishError                      a dataset, a router or a card could not be published
└── MissingPackageError (ImportError) a package is missing, as in a light installation; carries the pip command
    └── MissingExtraError             an optional dependency is missing
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
    """A setting is wrong. The message names the file, the key and a valid value."""


class DataError(PersynError, ValueError):
    """A table or one of its rows does not meet a stage's requirements."""


class MissingColumnError(DataError):
    """A table lacks a column that a stage reads."""


class DuplicatePromptError(DataError):
    """A prompt occurs more than once in a table that must have each prompt once."""


class PromptTooLongError(DataError):
    """A prompt, with its completion if that is scored, does not fit the model's context."""


class TeacherError(PersynError):
    """One request to a teacher failed.

    Attributes:
        maybe_charged (`bool`): True if the server may have generated an answer and charged for it.
        status (`int`, *optional*): HTTP status of the response; `None` if there was no response.
        doubtful (`bool`): True if the error reads as if it applied to all requests, but may apply only to this one.
        is_page (`bool`): True if the response was an HTML page.
    """

    maybe_charged: bool = False
    doubtful: bool = False
    status: int | None = None
    is_page: bool = False


class RetryableError(TeacherError):
    """The same request may succeed later.

    Args:
        message (`str`): Error message, without secrets.
        retry_after (`float`, *optional*): Wait that the server asked for, in seconds.
        overloaded (`bool`, defaults to `False`): True if the server is overloaded (429, 503), so that concurrency
            should decrease.
        attempts (`int`, *optional*): Limit on the attempts for this kind of error; `None` for the caller's own limit.
    """

    def __init__(
        self, message: str, *, retry_after: float | None = None, overloaded: bool = False, attempts: int | None = None
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.overloaded = overloaded
        self.attempts = attempts


class UnavailableError(RetryableError):
    """The server is unavailable now (connection refused, 503); neither the row nor the concurrency is the cause."""


class RowError(TeacherError):
    """The teacher refused this row permanently; the row is kept with `error` set."""


class TeacherDownError(TeacherError):
    """No request to this teacher can succeed (wrong key, unknown model, no server)."""


class LedgerError(PersynError):
    """The ledger, or the table made from it, cannot be opened, read or written; the message says how to fix it."""


class ScoringError(PersynError):
    """A score could not be computed; the message names the row."""


class RequestError(ScoringError):
    """A server that scores cannot answer this request; other requests may succeed."""


class PassingError(RequestError):
    """The same request may succeed later.

    Args:
        message (`str`): Error message.
        retry_after (`float`, *optional*): Wait that the server asked for, in seconds.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RouterError(PersynError):
    """A router cannot be trained, loaded or used."""


class AllocationError(RouterError):
    """No allocation meets all limits; the message says which cannot be met, and by how much."""


class RouterCheckpointError(RouterError):
    """The checkpoint is damaged or is not a persyn router; the message says what is wrong and where."""


class RouterMismatchError(RouterError):
    """The router was trained for other teachers."""


class StudentError(PersynError):
    """A student cannot be trained or evaluated; the message says what to change."""


class PublishError(PersynError):
    """A dataset, a router or a card could not be published; nothing is published in part."""


class MissingPackageError(PersynError, ImportError):
    """A dependency is missing; a light installation leaves some out.

    Args:
        packages (`Sequence[str]`): Packages that cannot be imported.
        requirements (`Sequence[str]`): Arguments of `pip install` for them, such as `torch>=2.6`.
        purpose (`str`): Purpose of the packages, which completes "is needed to …".
    """

    def __init__(self, packages: Sequence[str], requirements: Sequence[str], purpose: str) -> None:
        *others, last = (f"`{package}`" for package in packages)
        names = f"{', '.join(others)} and {last}" if others else last
        verb, them = ("is", "it") if len(packages) == 1 else ("are", "them")
        wanted = " ".join(f"'{requirement}'" for requirement in requirements)
        super().__init__(
            f"{names} {verb} needed to {purpose}. Install {them} with: pip install {wanted}. "
            "(All dependencies: pip install persyn-hf)"
        )


class MissingExtraError(MissingPackageError):
    """An optional dependency is missing.

    Args:
        package (`str`): Package that cannot be imported.
        extra (`str`): Extra of persyn-hf that installs it.
        purpose (`str`): Purpose of the package, which completes "is needed to …".
        bare (`Sequence[str]`): Packages to install without their dependencies, which no extra installs.
    """

    def __init__(self, package: str, extra: str, purpose: str, bare: Sequence[str] = ()) -> None:
        message = f"`{package}` is needed to {purpose}. Install it with: pip install 'persyn-hf[{extra}]'"
        if bare:
            message += f" && pip install --no-deps {' '.join(bare)}"
        super(MissingPackageError, self).__init__(message)
