"""The command line of every program: one absl flag for each field of its frozen Config dataclass.

A program contains:

    @dataclasses.dataclass(frozen=True)
    class Config:
        population: int = 16  # cells alive at the same time
        folder: Path = Path("runs/amoebanet")  # results, and the state to resume from

    PRESETS = {"laptop": Config(), "paper": Config(population=100), "smoke": Config(population=4)}

    def search(config: Config) -> Genotype: ...

    if __name__ == "__main__":
        _main.run(search, PRESETS)

A user can then run `python -m recipes.amoebanet --preset=paper --population=50`; `--help` shows the program's
docstring, its fields and their comments. So that `--help` and errors answer at once, Config and PRESETS need no
TensorFlow: a program imports heavy packages inside the functions that use them.

* A field's help is the comment on its last line or, if there is none, the comment lines right above it;
  `metadata={"help": ...}` replaces both. Inherited fields are flags too.
* Types: bool (`--x`, `--nox`, `--x=false`), int, float, str, Path (`~` is expanded), Literal (one of its values),
  tuple and list of these (comma-separated; `tuple[int, int]` takes exactly two), and `T | None` (`--x=none`).
* Metadata {"positional": True}: the field, a tuple of paths, takes the words that are not flags.
* Metadata {"old_names": ("size",)}: flags of the previous version, accepted with a warning.
* The first preset is the default. A preset gives every field a value; explicit flags override it.
* `Config.__post_init__` checks the values: it raises ValueError with the value, what was expected and the remedy.
  Field names in such texts are printed as the flags that a user types.
* The field `folder`, if there is one, is where the program keeps its results and state. It is checked to be writable
  before the work starts. After Ctrl-C (exit code 130) the user reads that the same command resumes, so it must.
* ValueError and ImportError raised by zoo or recipes, and every OSError, are for the user: one line on stderr and exit
  code 2. Any other exception is our bug and keeps its traceback; `--traceback` shows the traceback of both.
"""

import ast
import dataclasses
import difflib
import inspect
import io
import itertools
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from absl import flags

Config = TypeVar("Config")

_OUR_PACKAGES = ("zoo", "recipes", "benchmarks", "__main__")
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_ARGUMENTS = {"size": "image_size", "input_shape": "image_size"}  # function arguments whose flags are named otherwise
_PROBE_BYTES = 1 << 20  # must fit on the disk before the work starts


class UsageError(ValueError):
    """The command line is wrong; the text says which part, and what was expected."""


def run(
    main: Callable[[Config], object], presets: Mapping[str, Config], arguments: Sequence[str] | None = None
) -> None:
    """Parses the command line into a Config and calls `main` with it; the return value of `main` is dropped.

    Args:
        main: the program; the docstring of its module heads the help.
        presets: name -> complete Config; the first is the default.
        arguments: `sys.argv[1:]` unless given.

    Raises:
        SystemExit: 0 after `--help`, 2 after an error that the user can correct, 130 after Ctrl-C, 141 if the reader of
            stdout has gone.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal cannot show must not end the program
        sys.stdout.reconfigure(errors="backslashreplace")
    program = _name_program(main)
    traceback_wanted = "--traceback" in arguments
    config = None
    try:
        values = _parse_flags(arguments, presets)
        if values["help"].value:
            print(help_text(presets, program, inspect.getdoc(inspect.getmodule(main)) or ""))
            sys.exit(0)
        config = _make_config(values, presets)
        _require_tensorflow()
        _require_writable(config)
        main(config)
    except KeyboardInterrupt:
        print(f"\n{_explain_stop(config, [*program.split(), *arguments])}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (ValueError, OSError, ImportError) as error:
        if traceback_wanted or not _is_for_the_user(error):
            raise
        names = [field.name for field, _ in _list_fields(type(next(iter(presets.values()))))]
        print(f"error: {_with_flags(_one_line(error), names, refused=config is None)}", file=sys.stderr)
        sys.exit(2)


def parse(arguments: Sequence[str], presets: Mapping[str, Config]) -> Config:
    """Returns the Config for a command line.

    Raises:
        UsageError: a flag is unknown, or a value does not fit its field's type.
        ValueError: the Config refuses the values.
    """
    return _make_config(_parse_flags(arguments, presets), presets)


def help_text(presets: Mapping[str, Config], program: str, description: str) -> str:
    """Returns the text of `--help`: usage, description, and each flag with its type, help and value in each preset."""
    width = max(60, min(120, shutil.get_terminal_size().columns))
    names = list(presets)
    fields, comments = _list_fields(type(presets[names[0]])), field_help(type(presets[names[0]]))
    words = _find_positional(fields)
    usage = f"usage: {program} [--preset={'|'.join(names)}] [--flag=value ...]" + (f" {words.upper()}" if words else "")
    lines = [usage, "", description, ""]
    lines += [f"The default preset is {names[0]}; explicit flags override the preset.", "", "flags:"]
    for field, hint in fields:
        negative = "[no]" if hint is bool else ""
        value = "" if hint is bool else f"={_describe_type(hint)}"
        lines.append(f"  --{negative}{field.name}{value}")
        text = comments.get(field.name, "")
        shown = {name: show_value(getattr(config, field.name)) for name, config in presets.items()}
        same = len(set(shown.values())) == 1
        default = shown[names[0]] if same else ", ".join(f"{name} {value}" for name, value in shown.items())
        for paragraph in filter(None, (text, f"default: {default or 'empty'}")):
            lines += textwrap.wrap(paragraph, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    lines += ["", "flags of every program:", f"  --preset={'|'.join(names)}", "      the set of defaults to start from"]
    lines += ["  --flagfile=FILE", "      read more flags from FILE, one per line"]
    lines += ["  --traceback", "      show where an error was raised", "  --help", "      show this text"]
    return "\n".join(lines)


def _parse_flags(arguments: Sequence[str], presets: Mapping[str, Any]) -> flags.FlagValues:
    """Reads the flags into a separate set: absl's global set would include the flags of every imported library."""
    values = flags.FlagValues()
    first, preset = next(iter(presets.items()))
    flags.DEFINE(_Parser(Literal[tuple(presets)]), "preset", first, "", flag_values=values)
    flags.DEFINE_boolean("traceback", False, "", flag_values=values)
    flags.DEFINE_boolean("help", False, "", flag_values=values, short_name="h")
    fields = _list_fields(type(preset))
    for field, hint in fields:
        for name in (field.name, *field.metadata.get("old_names", ())):
            # `boolean` makes absl accept `--x` and `--nox`
            flags.DEFINE_flag(flags.Flag(_Parser(hint), None, name, None, "", boolean=hint is bool), flag_values=values)
    try:
        rest = values(["recipe", *arguments])[1:]
    except flags.UnrecognizedFlagError as error:
        near = _suggest(error.flagname, values, "--") or ";"
        raise UsageError(f"unknown flag --{error.flagname}{near} --help lists all flags") from None
    except flags.Error as error:
        raise UsageError(_one_line(error)) from None
    for field, _ in fields:
        for old in field.metadata.get("old_names", ()):
            if values[old].present:
                _rename(values, old, field.name)
    words = _find_positional(fields)
    if rest and (words is None or values[words].present):
        raise UsageError(f"unexpected {rest[0]!r}: every option is written --name=value; --help lists all options")
    if rest:
        values[words].value = tuple(Path(word).expanduser() for word in rest)
        values[words].present = 1
    return values


def _rename(values: flags.FlagValues, old: str, new: str) -> None:
    if values[new].present:
        raise UsageError(f"--{old} is the old name of --{new}; give --{new} alone")
    print(f"warning: --{old} is called --{new} now; the next version only accepts the new name", file=sys.stderr)
    values[new].value, values[new].present = values[old].value, 1


def _make_config(values: flags.FlagValues, presets: Mapping[str, Config]) -> Config:
    preset = presets[values["preset"].value]
    names = [field.name for field, _ in _list_fields(type(preset)) if values[field.name].present]
    explicit = {name: values[name].value for name in names}
    return dataclasses.replace(preset, **explicit)  # pyright: ignore[reportArgumentType]


def _list_fields(config_class: type) -> list[tuple[dataclasses.Field, Any]]:
    """Returns the fields that a caller may set, each with its resolved type."""
    hints = typing.get_type_hints(config_class)
    return [(field, hints[field.name]) for field in dataclasses.fields(config_class) if field.init]


def _find_positional(fields: list[tuple[dataclasses.Field, Any]]) -> str | None:
    """Returns the name of the field that takes the words that are not flags, if there is one."""
    return next((field.name for field, _ in fields if field.metadata.get("positional")), None)


class _Parser(flags.ArgumentParser):
    """Converts a flag's text into a value of the type `hint`; absl prefixes errors with the flag's name."""

    def __init__(self, hint: Any):
        super().__init__()
        self.hint = hint
        _describe_type(hint)  # an unsupported type must fail at once, not when a user sets the flag

    def parse(self, argument: Any) -> Any:
        return _convert(argument, self.hint)


def _convert(text: str, hint: Any) -> Any:
    """Returns `text` as a value of the type `hint`, or raises ValueError with what was expected."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return None if text.lower() in ("none", "") else _convert(text, _without_none(arguments))
    if origin is Literal:
        choices = {show_value(choice): choice for choice in arguments}
        if text not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}{_suggest(text, choices)}")
        return choices[text]
    if origin in (tuple, list):
        parts = [part.strip() for part in text.split(",")] if text.strip() else []
        if origin is list or arguments[-1] is Ellipsis:
            arguments = arguments[:1] * len(parts)
        if len(parts) != len(arguments):
            raise ValueError(f"expected {len(arguments)} values separated by commas, got {len(parts)}")
        return origin(_convert(part, argument) for part, argument in zip(parts, arguments, strict=True))
    if hint is bool:
        if text.lower() not in _TRUTH:
            raise ValueError("expected true or false")
        return _TRUTH[text.lower()]
    if hint is Path:
        return Path(text).expanduser()
    try:
        return hint(text)
    except ValueError:
        raise ValueError("expected a whole number" if hint is int else "expected a number") from None


def _describe_type(hint: Any) -> str:
    """Returns how the help shows a type, or raises TypeError for an unsupported one."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType) and len(arguments) == 2 and type(None) in arguments:
        return f"{_describe_type(_without_none(arguments))}|none"
    if origin is Literal:
        return "|".join(show_value(choice) for choice in arguments)
    if origin is list or (origin is tuple and arguments[-1] is Ellipsis):
        return f"{_describe_type(arguments[0])},..."
    if origin is tuple:
        return ",".join(_describe_type(argument) for argument in arguments)
    names = {bool: "true|false", int: "int", float: "float", str: "text", Path: "path"}
    if hint not in names:
        raise TypeError(
            f"no flag can hold a {hint}: use bool, int, float, str, Path, Literal, or a tuple or list of these"
        )
    return names[hint]


def _without_none(arguments: tuple) -> Any:
    return next(argument for argument in arguments if argument is not type(None))


def show_value(value: Any) -> str:
    """Returns a value as a user types it on the command line."""
    if isinstance(value, (tuple, list)):
        return ",".join(show_value(item) for item in value)
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def field_help(config_class: type) -> dict[str, str]:
    """Returns field -> help text, from the metadata or the comments in the source; a subclass overrides its bases."""
    found = {}
    for owner in reversed(config_class.__mro__):
        if dataclasses.is_dataclass(owner):
            found.update(_read_comments(owner))
    metadata = {field.name: field.metadata.get("help") for field in dataclasses.fields(config_class)}
    return found | {name: text for name, text in metadata.items() if text}


def _read_comments(owner: type) -> dict[str, str]:
    """Returns field -> the comment on its last line or, if there is none, the comment lines right above it.

    Comments for tools, such as `# fmt: skip`, are ignored.
    """
    try:
        lines = textwrap.dedent(inspect.getsource(owner)).splitlines()
    except (OSError, TypeError):  # made at run time, or installed without source
        return {}
    found = {}
    for node in typing.cast(ast.ClassDef, ast.parse("\n".join(lines)).body[0]).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            last_line = lines[(node.end_lineno or node.lineno) - 1].encode()  # ast's columns count bytes
            after = re.sub(r"# (fmt|noqa|pyright)\b.*", "", last_line[node.end_col_offset :].decode()).strip()
            before = reversed([line.strip() for line in lines[: node.lineno - 1]])
            above = [*itertools.takewhile(lambda line: line.startswith("#"), before)][::-1]
            comment = [after] if after.startswith("#") else above
            found[node.target.id] = " ".join(line.lstrip("#").strip() for line in comment)
    return {name: text for name, text in found.items() if text}


def _name_program(main: Callable) -> str:
    """Returns the command that starts the program, as a user types it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None) if main.__module__ == "__main__" else None
    return f"python -m {spec.name if spec else main.__module__}".removesuffix(".__main__")


def _require_tensorflow() -> None:
    """Raises UsageError if Keras would use another backend: the programs only work with TensorFlow."""
    try:  # Keras' own sources, in its order
        home = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
        backend = json.loads(Path(home, "keras.json").read_text(encoding="utf-8")).get("backend")
    except (OSError, ValueError):
        backend = None
    backend = os.environ.get("KERAS_BACKEND") or backend or "tensorflow"
    if backend != "tensorflow":
        raise UsageError(
            f"Keras' backend is {backend!r}, and the programs need TensorFlow: set KERAS_BACKEND=tensorflow. "
            "(zoo.build works with every backend.)"
        )


def _require_writable(config: Any) -> None:
    """Raises OSError if the folder of the results cannot be written to; leaves nothing there."""
    folder = getattr(config, "folder", None)
    if folder is None or getattr(config, "dry_run", False):
        return
    try:
        absolute = folder.expanduser().absolute()
        existing = next(path for path in (absolute, *absolute.parents) if path.exists())
        with tempfile.TemporaryFile(dir=existing) as stream:
            stream.write(bytes(_PROBE_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise OSError(
            f"folder={folder}: nothing can be written there ({error.strerror}). Free some space, or choose a folder "
            "that you may write to"
        ) from error


def _explain_stop(config: Any, command: Sequence[str]) -> str:
    folder = getattr(config, "folder", None)
    if folder is None:
        return "Stopped."
    return f"Stopped. Finished work is kept in {folder}; the same command resumes: {shlex.join(command)}"


def _is_for_the_user(error: BaseException) -> bool:
    """Whether an error's text is all that a user needs, because it is about a file or raised by our code."""
    if isinstance(error, OSError):
        return True
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    module = frame.tb_frame.f_globals.get("__name__", "") if frame is not None else ""
    return module.partition(".")[0] in _OUR_PACKAGES


def _with_flags(text: str, names: Sequence[str], refused: bool) -> str:
    """Returns an error's text with field names written as flags, wherever a name can only mean the field.

    These are `name=`, a name with an underscore, `name is` and `name:` at the start and, if the Config `refused` a
    value, any name at the start.
    """
    own = {name: name for name in names}
    for name, flag in {**{key: name for key, name in _ARGUMENTS.items() if name in own}, **own}.items():
        start = f"^{name}" + ("(?= |:)" if refused else "(?= is |:)")
        anywhere = rf"(?<![\w./'\"-]){name}" + (r"(?![\w.('\"])" if "_" in name else "(?==)")
        text = re.sub(f"{start}|{anywhere}", f"--{flag}", text)
    return text


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _suggest(word: str, known: Iterable[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(word.replace("-", "_"), list(known), n=2)
    return f"; did you mean {' or '.join(prefix + name for name in close)}?" if close else ""
