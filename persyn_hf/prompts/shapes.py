"""Detection of prompt formats: the columns that hold the prompts, and the conversion of rows to prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from persyn_hf.config import Prompts
from persyn_hf.errors import ConfigError, DataError
from persyn_hf.prompts.conversations import CellReader, chat_reader, conversation

Row = Mapping[str, Any]

#: Columns that may hold the prompts of a format, in order of preference.
_COLUMNS_OF = {
    "text": ("prompt", "text", "instruction", "question", "problem", "query", "input"),
    "messages": ("messages", "conversation", "conversations", "prompt"),
    "sharegpt": ("conversations", "conversation", "messages", "prompt"),
    "qa": ("question", "problem", "query"),
}
#: Columns that determine the format if there is no `prompt`. If several are present, the user must choose.
_TELLING = {
    "messages": "messages",
    "conversation": "messages",
    "conversations": "sharegpt",
    "instruction": "alpaca",
    "question": "qa",
    "problem": "qa",
    "query": "qa",
}
_PREFERENCE = ("chosen", "rejected")
#: Columns that are used if no other column fits.
_LAST = ("input", "text")
_ALPACA = "{{ instruction }}{% if input %}\n\n{{ input }}{% endif %}"
_KNOWN = (
    "`prompt`; `messages` or `conversations` (chats); `instruction` with `input` (Alpaca); `question`, `problem` or "
    "`query`; `chosen` with `rejected`; `text`"
)


@dataclass(frozen=True)
class Shape:
    """Format of the prompts, and the columns that hold them.

    Args:
        format (`str`): Value of `prompts.format`.
        reads (`tuple[str, ...]`): Columns that become the prompt; they are not kept as other columns.
        template (`str`, *optional*): Template that renders the prompt from a row's columns.
        system (`str`, *optional*): Column of the system messages.
        found (`bool`): True if the format was detected, so that it is logged.
    """

    format: str
    reads: tuple[str, ...]
    template: str | None = None
    system: str | None = None
    found: bool = False

    def said(self, kind: str) -> str:
        """Describes the format, with the kind of its cells."""
        what = self.format if self.format in ("alpaca", "preference") else kind
        return f"{what}, from the column {' and '.join(f'`{name}`' for name in self.reads)}"


def find_shape(names: Sequence[str], prompts: Prompts, where: str) -> Shape:
    """Detects the columns of a table that hold the prompts.

    Args:
        names (`Sequence[str]`): Columns of the table.
        prompts (`Prompts`): Section of the configuration. Columns that it does not name are detected.
        where (`str`): Name of the section in errors.

    Raises:
        ConfigError: If a named column is missing, or not exactly one format fits. The error lists the choices.
    """
    for key in ("column", "system_column", "tools_column", "answer_column"):
        named = getattr(prompts, key)
        if named is not None and named not in names:
            raise ConfigError(
                f"{where}.{key}: there is no column `{named}` in {prompts.location}; it has {', '.join(names)}."
            )
    if prompts.template is not None:
        shape = Shape("alpaca", _template_columns(prompts.template, names, where), prompts.template)
    elif prompts.column is not None:
        shape = Shape(prompts.format, (prompts.column,))
    elif prompts.format == "auto":
        shape = _looked_for(names, prompts, where)
    else:
        shape = _of_format(names, prompts, where)
    system = prompts.system_column
    if system is None and "system" in names and _has_system(shape):
        system = "system"
    return Shape(shape.format, shape.reads, shape.template, system, shape.found)


def _has_system(shape: Shape) -> bool:
    """Returns True if tables of this format hold system messages in a separate column."""
    return shape.format in ("sharegpt", "alpaca") or shape.reads[0] in ("conversations", "conversation")


def _looked_for(names: Sequence[str], prompts: Prompts, where: str) -> Shape:
    if "prompt" in names:
        return Shape("auto", ("prompt",))
    fits = [(name, shape) for name, shape in _TELLING.items() if name in names]
    if not fits and all(name in names for name in _PREFERENCE):
        return Shape("preference", _PREFERENCE, found=True)
    fits = fits or [(name, "text") for name in _LAST if name in names][:1]
    if not fits and len(names) == 1:
        fits = [(names[0], "text")]
    if len(fits) == 1:
        name, shape = fits[0]
        if shape == "alpaca":
            return _alpaca(names, found=True)
        return Shape("auto", (name,), found=True)
    if not fits:
        raise ConfigError(
            f"{where}.column: cannot detect the prompts' column of {prompts.location}; it has {', '.join(names)}. "
            f"Set `column`, or a `template` over several columns. Detected columns are {_KNOWN}."
        )
    choices = "; ".join(f"`column: {name}` ({shape})" for name, shape in fits)
    raise ConfigError(
        f"{where}.column: several columns of {prompts.location} may hold the prompts. Choose one: {choices}."
    )


def _of_format(names: Sequence[str], prompts: Prompts, where: str) -> Shape:
    """Finds the columns of a configured format."""
    if prompts.format == "alpaca" and "instruction" in names:
        return _alpaca(names)
    if prompts.format == "preference":
        if "prompt" in names:
            return Shape("preference", ("prompt", *(name for name in _PREFERENCE if name in names)))
        if all(name in names for name in _PREFERENCE):
            return Shape("preference", _PREFERENCE)
    found = [name for name in _COLUMNS_OF.get(prompts.format, ()) if name in names]
    if not found:
        raise ConfigError(
            f"{where}.format: {prompts.location} has no column for `{prompts.format}`; it has {', '.join(names)}. "
            "Set `column` to the one that holds the prompts."
        )
    return Shape(prompts.format, (found[0],))


def _alpaca(names: Sequence[str], found: bool = False) -> Shape:
    reads = tuple(name for name in ("instruction", "input") if name in names)
    return Shape("alpaca", reads, _ALPACA if len(reads) > 1 else "{{ instruction }}", found=found)


def _template_columns(template: str, names: Sequence[str], where: str) -> tuple[str, ...]:
    from jinja2 import TemplateError, meta
    from jinja2.sandbox import SandboxedEnvironment

    try:
        used = meta.find_undeclared_variables(SandboxedEnvironment().parse(template))
    except TemplateError as error:
        raise ConfigError(f"{where}.template: {error}. It must be a Jinja template over the columns.") from error
    missing = sorted(used - set(names))
    if missing:
        raise ConfigError(f"{where}.template: there is no column `{missing[0]}`; the columns are {', '.join(names)}.")
    return tuple(name for name in names if name in used)


def reader_of(shape: Shape, rows: Sequence[Row]) -> CellReader:
    """Chooses the reader that converts a row to a prompt, which may still end with an answer.

    Args:
        shape (`Shape`): Format from [`find_shape`].
        rows (`Sequence[Mapping]`): All rows, which determine if strings are texts or written chats.

    Returns:
        `CellReader`: Reader of rows.
    """
    plain = _plain_reader(shape, rows)
    if shape.system is None:
        return plain
    system = shape.system

    def with_system(row: Row) -> object:
        made, said = plain.read(row), row.get(system)
        if said is not None and not isinstance(said, str):
            raise DataError(f"`{system}` must be a string, got {type(said).__name__}.")
        # All prompts of a table are of one kind: with system messages, all of them are chats.
        messages = [{"role": "user", "content": made}] if isinstance(made, str) else made
        if not said or not said.strip() or not messages or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": said}, *messages]

    return CellReader(plain.kind, with_system)


def _plain_reader(shape: Shape, rows: Sequence[Row]) -> CellReader:
    if shape.template is not None:
        return CellReader("a template", _templated(shape.template, shape.reads))
    if shape.reads == _PREFERENCE:
        of_two = chat_reader([row[name] for row in rows for name in _PREFERENCE], "auto")
        return CellReader(of_two.kind, lambda row: _common(*(of_two.read(row[name]) for name in _PREFERENCE)))
    name = shape.reads[0]
    kind = "auto" if shape.format in ("auto", "qa", "preference") else shape.format
    one = chat_reader([row[name] for row in rows], kind)
    return CellReader(one.kind, lambda row: one.read(row[name]))


def _templated(template: str, reads: Sequence[str]) -> Callable[[Row], Any]:
    from jinja2 import StrictUndefined, TemplateError
    from jinja2.sandbox import SandboxedEnvironment

    made = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(template)

    def render(row: Row) -> str:
        for name in reads:
            if isinstance(row[name], list | Mapping):
                raise DataError(f"`{name}` must be text for the template, got {type(row[name]).__name__}.")
        if all(row[name] is None for name in reads):
            raise DataError(f"{' and '.join(f'`{name}`' for name in reads)} must hold text, got null.")
        try:
            return made.render({name: "" if row[name] is None else row[name] for name in reads})
        except (TemplateError, TypeError, ValueError) as error:
            raise DataError(f"The template cannot be rendered: {error}.") from error

    return render


def _common(chosen: object, rejected: object) -> Any:
    """Returns the prompt that a chosen and a rejected text share, like TRL's `extract_prompt`."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        length = _shared(chosen, rejected)
        if length and chosen[length - 1] == " ":  # the space before both answers
            length -= 1
        made: Any = chosen[:length]
    else:
        ours, theirs = conversation(chosen), conversation(rejected)
        made = ours[: min(_shared(ours, theirs), len(ours) - 1)]
    if not made:
        raise DataError("`chosen` and `rejected` must begin with the same prompt, but they begin differently.")
    return made


def _shared(one: Sequence[object], other: Sequence[object]) -> int:
    """Returns the length of the common prefix of two sequences."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))
