"""Help texts, made from the commands, the settings and the defaults in the configs."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.config.settings import Settings, expected_value

from .bundle_files import BUNDLE_ROOT, read_configs
from .commands import COMMANDS, Command

SWITCHES = {
    "--fast": "score every second slice of a volume: the overlay configs/fast.json",
    "--config NAME": "overlay of the configs: the name of one in configs/, such as paper, or a file; may be repeated",
    "--print_command": "print the command that this one stands for, and run nothing",
    "--help": "print this",
}
COMPUTED = {"device": "cuda:0 if there is one, otherwise cpu"}  # defaults that are expressions of Python
EXIT_STATUS = "Exit status: 0 done, 1 an error or failed cases, 2 wrong usage, 130 interrupted."


def overview() -> str:
    """Return the help of all commands."""
    lines = [
        "usage: dpmm COMMAND ...",
        "",
        "Anomaly detection that learns from normal images alone. Not a medical device.",
        "",
        *_table([(f"{' '.join([name, *_words(command)])}", command.summary) for name, command in COMMANDS.items()]),
        "",
        "`dpmm COMMAND --help` lists the flags of a command.",
        EXIT_STATUS,
    ]
    return "\n".join(lines)


def command_help(command: Command, configs: Sequence[Path]) -> str:
    """Return the help of a command.

    Args:
        command: the command.
        configs: its configs, whose settings are flags and have the defaults.
    """
    content = read_configs(configs)
    taken = {each.name for each in command.arguments} | {BUNDLE_ROOT}
    settings = [name for name in Settings.model_fields if name in content and name not in taken]
    switches = {flag: text for flag, text in SWITCHES.items() if command.configs or "config" not in flag + text}
    lines = [f"usage: {' '.join(['dpmm', command.name, *_words(command)])} [--id value ...]", ""]
    lines += [f"{command.summary[0].upper()}{command.summary[1:]}.", ""]
    rows = [(each.metavar, each.description) for each in command.arguments]
    rows += [(f"--{each.name} {each.metavar}", each.description) for each in command.options]
    if command.configs:
        rows.append(("--bundle_root FOLDER", "another bundle to run, such as a copy with its model"))
    lines += _table([*rows, *switches.items()])
    if settings:
        lines += ["", "Settings, which are the ids of the configs (docs/reference.md):", ""]
        lines += _table([(f"--{name}", _setting(name, command, content)) for name in settings])
        lines += ["", "Parts of a config are flags as well, such as --mixture#weight_concentration 5."]
    return "\n".join([*lines, "", EXIT_STATUS])


def _words(command: Command) -> list[str]:
    return [each.metavar for each in command.arguments]


def _setting(name: str, command: Command, content: dict[str, Any]) -> str:
    description = _plain(str(Settings.model_fields[name].description))
    default = _default(name, {**content, **dict(command.defaults)}[name])
    return f"{description} [{expected_value(name)}; default {default}]"


def _plain(markdown: str) -> str:
    """Return the text of Markdown without its links and its marks of code."""
    without_remarks = re.sub(r" \(\[[^]]*\]\([^)]*\)\)", "", markdown)
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", without_remarks).replace("`", "")


def _default(name: str, value: Any) -> str:
    text = "off" if value is None else str(value)
    below = re.fullmatch(r"\$@(\w+) \+ '(.*)'", text)
    if below:
        return f"{below[2][1:]} in {below[1]}"
    return COMPUTED.get(name, f"that of {text[1:]}" if text.startswith("@") else text)


def _table(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Format rows of a name and its description, below each other where the name is long."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    lines = []
    for name, text in rows:
        wrapped = textwrap.wrap(text, width - 26, break_long_words=False, break_on_hyphens=False)
        head = f"  {name:<23}" if len(name) <= 22 else None
        lines += [f"{head} {wrapped[0]}"] if head else [f"  {name}", f"{'':26}{wrapped[0]}"]
        lines += [f"{'':26}{line}" for line in wrapped[1:]]
    return lines
