"""The command line: parsing, early checks, and the run."""

from __future__ import annotations

import difflib
import importlib.util
import runpy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fire.parser import DefaultParseValue

from scripts.config.ids import MONAI_IDS, SEPARATOR, unknown_id
from scripts.config.settings import Settings, check_setting
from scripts.config.value_types import EXPRESSION, OFF
from scripts.errors import InputError

from .assembly import Invocation, assemble, config_files
from .bundle_files import BUNDLE_ROOT, config_file, own_root, read_configs, root_of
from .commands import COMMANDS, Command
from .help import command_help, overview
from .light_imports import import_libraries
from .weights import check_weights, find_weights

WRONG_USAGE = 2  # exit status, as of argparse and python-fire
SWITCHES = ("fast", "print_command", "help")
MONAI_FLAGS = ("logging_file", "tracking", *MONAI_IDS)  # of `monai.bundle run`
YES_NO = ("true", "false", "yes", "no", "on", "off", "1", "0")
NEEDS_TORCH = ("device",)  # settings that the run itself checks


class UsageError(InputError):
    """A command line that has no meaning: an unknown command or flag, or a missing argument."""


@dataclass(frozen=True)
class Parsed:
    """A command line.

    Attributes:
        values: texts by id or option, as they were typed.
        overlays: further configs, by name or file.
        switches: those of ``SWITCHES`` that were given.
    """

    values: dict[str, str]
    overlays: tuple[str, ...]
    switches: frozenset[str]


def run_command(arguments: Sequence[str]) -> int:
    """Run a command line.

    Args:
        arguments: those after the name of the program.

    Returns:
        The exit status: 0, or 2 for wrong usage. A failed run raises, or exits with its own status.

    Raises:
        InputError: a file or a value is wrong.
    """
    name = arguments[0] if arguments else "--help"
    if name in ("--help", "-h", "help"):
        print(overview())
        return 0
    if name == "--version":
        from scripts.metadata import bundle_version  # copies that earlier versions exported lack it

        print(bundle_version(own_root()))
        return 0
    if name not in COMMANDS:
        return _wrong_usage(unknown_command(name), "dpmm --help")
    command, root = COMMANDS[name], root_of(arguments)
    try:
        parsed = parse(command, arguments[1:])
        if "help" in parsed.switches:
            print(command_help(command, config_files(command, root, parsed.overlays)))
            return 0
        values = complete(command, root, parsed)
    except UsageError as error:
        return _wrong_usage(error, f"dpmm {name} --help")
    invocation = assemble(command, root, parsed.overlays, values)
    if "print_command" in parsed.switches:
        print(invocation)
        return 0
    sys.argv[1:] = invocation.arguments  # where the types of settings look up what was typed
    check_run(command, root, values)
    if command.module != "label" and are_own(root, parsed.overlays):
        import_libraries(training="train" in command.configs, tracking="tracking" in values)
    run(invocation)
    return 0


def run(invocation: Invocation) -> None:
    """Run a module in this process as ``python -m`` does."""
    runpy.run_module(invocation.module, run_name="__main__", alter_sys=True)


def parse(command: Command, arguments: Sequence[str]) -> Parsed:
    """Parse the arguments of a command: by place, ``--id value``, ``--id=value``, and switches.

    Raises:
        UsageError: an argument by place too many, or a flag without a value.
    """
    places, values, overlays, switches = list(command.arguments), {}, [], set()
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "-h":
            switches.add("help")
        elif not argument.startswith("--"):
            if not places:
                raise UsageError(f"dpmm {command.name} takes {_places(command)}; got {argument!r} as well.")
            values[places.pop(0).name] = _as_path(argument)
        else:
            name, equals, value = argument[2:].partition("=")
            name = name.replace("-", "_")
            if name in SWITCHES and not equals:
                switches.add(name)
                continue
            if not equals:
                is_switch = name in Settings.model_fields and Settings.model_fields[name].annotation is bool
                if is_switch and (not rest or rest[0].lower() not in YES_NO):
                    value = "True"
                elif not rest or rest[0].startswith("--"):
                    raise UsageError(f"--{name} needs a value, such as --{name} VALUE or --{name}=VALUE.")
                else:
                    value = rest.pop(0)
            if name == "config":
                overlays.append(value)
            else:
                values[name] = value
    if "fast" in switches:
        overlays.append("fast")
    return Parsed(values, tuple(overlays), frozenset(switches))


def complete(command: Command, root: Path, parsed: Parsed) -> dict[str, str]:
    """Check the names of the flags, and add the defaults of the command and the weights of the encoder.

    Returns:
        Texts by id or option, those by place first.

    Raises:
        UsageError: a flag or an overlay is unknown, or an argument is missing.
    """
    for name in parsed.overlays:
        if not config_file(root, name).is_file():
            raise UsageError(f"There is no config {name!r} in {root / 'configs'}, and no such file; name an overlay.")
    configs = read_configs(config_files(command, root, parsed.overlays))
    check_names(command, parsed, configs)
    given = {name: value for name, value in parsed.values.items() if name != BUNDLE_ROOT}
    by_place = {each.name: given.pop(each.name) for each in command.arguments}
    defaults = dict(command.defaults) if root == own_root() and "bundles" not in given else {}
    if command.name == "fit" and "weights_path" not in given:
        weights = find_weights(root, given.get("encoder_name", configs["encoder_name"]))
        defaults.update({"weights_path": str(weights)} if weights else {})
    return {**by_place, **defaults, **given}


def check_names(command: Command, parsed: Parsed, configs: Mapping[str, Any]) -> None:
    """Check that all flags exist and no argument is missing.

    Args:
        command: the command.
        parsed: what was typed.
        configs: content of the configs by id.

    Raises:
        UsageError: a flag is unknown, or an argument is missing.
    """
    own = {each.name for each in (*command.arguments, *command.options)}
    known = {*configs, *own, *(SWITCHES if command.configs else ()), *(MONAI_FLAGS if command.run_id else ())}
    for name in set(parsed.values) - {BUNDLE_ROOT}:
        if name.replace("#", SEPARATOR).partition(SEPARATOR)[0] not in known:
            raise UsageError(str(unknown_id(name.replace("#", SEPARATOR), known)))
    for each in command.arguments:
        if each.name not in parsed.values:
            raise UsageError(f"dpmm {command.name} needs {each.metavar}: {each.description}.")
    file = parsed.values.get("filepath", ".ts")
    if not file.endswith((".ts", ".onnx")):
        raise UsageError(f"FILE must end in .ts or .onnx, which is the format; got {file!r}.")


def check_run(command: Command, root: Path, values: Mapping[str, str]) -> None:
    """Check paths and settings before anything slow is imported.

    Args:
        command: the command.
        root: folder of the bundle.
        values: see `complete`.

    Raises:
        InputError: a path or a value is wrong.
    """
    words = {each.name: each.metavar for each in command.arguments}
    must_exist = {each.name for each in (*command.arguments, *command.options) if each.must_exist}
    for name, value in values.items():
        if value.startswith(EXPRESSION):
            continue
        is_remote = command.name == "serve" and value.startswith(("http://", "https://"))
        if name in Settings.model_fields and name not in NEEDS_TORCH:
            check_setting(name, None if value == "None" else DefaultParseValue(value))
        if name in must_exist.union(command.required) and value.lower() not in OFF and not is_remote:
            check_path(value, words.get(name, f"--{name}"), is_model=name == "ckpt_path")
    if command.name == "fit" and not {"weights_path", "pretrained_encoder"}.intersection(values):
        configs = read_configs(config_files(command, root, ()))
        check_weights(root, values.get("encoder_name", configs["encoder_name"]))
    if command.name == "export" and Path(values["filepath"]).exists():
        raise InputError(f"{values['filepath']} exists and is left alone; give a new file, or remove it first.")
    if command.name == "serve" and importlib.util.find_spec("monailabel") is None:
        raise InputError(
            "dpmm serve needs MONAI Label, which is not in this environment; install the bundle with its extra `label` "
            "in an environment of its own, see docs/label.md."
        )


def are_own(root: Path, overlays: Sequence[str]) -> bool:
    """Return whether all configs are of the bundle itself, whose components are known."""
    return root == own_root() and all(config_file(root, name).parent == root / "configs" for name in overlays)


def check_path(path: str, word: str, is_model: bool) -> None:
    """Raise `InputError` if there is nothing at a path."""
    if is_model and not Path(path).is_file():
        raise InputError(
            f"There is no fitted model {path}; fit one with `dpmm fit NORMALS`, or give --ckpt_path (`dpmm weights` "
            "writes a sample model, and says where)."
        )
    if not Path(path).exists():
        raise InputError(f"There is no file or folder {path}; give {word} one that exists.")


def unknown_command(name: str) -> UsageError:
    """Make the error for a command that does not exist, with the closest one."""
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    advice = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(COMMANDS)}."
    return UsageError(f"There is no command {name!r}; {advice}")


def _as_path(text: str) -> str:
    """Protect a path from MONAI, which evaluates what begins with one of ``$@%``, and from the word ``off``."""
    return f"./{text}" if text.startswith(EXPRESSION) or text.lower() in OFF else text


def _places(command: Command) -> str:
    words = [each.metavar for each in command.arguments]
    return f"only {' and '.join(words)} by place" if words else "nothing by place"


def _wrong_usage(error: InputError, advice: str) -> int:
    print(f"error: {error}\n       `{advice}` shows what is possible.", file=sys.stderr)
    return WRONG_USAGE
