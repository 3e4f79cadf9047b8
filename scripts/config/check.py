"""The check of a run's config before its work begins.

MONAI is imported only where it is used, because the help of the command `dpmm` reads the settings without it.
"""

from __future__ import annotations

import inspect
import logging
import pydoc
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import InputError, cause_of, reason_of
from .ids import MONAI_IDS, SECTIONS, SEPARATOR, unknown_id
from .settings import Settings, check_setting
from .value_types import typed_text

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

logger = logging.getLogger(__name__)


def check_config(float64: bool = False) -> None:
    """Check all ids and settings of the config that contains this component.

    It is the first item of every run. It replaces the values of settings by values of the right type: None for ``off``,
    the typed path for the number that `fire` made of it.

    Args:
        float64: whether the run computes in 64-bit floats on the device, which Apple's GPUs do not have.

    Raises:
        InputError: an unknown id that nothing refers to, an argument that a component of this bundle does not have, a
            value of a wrong type or out of its range, or a device without the floats that the run needs.
        RuntimeError: the caller is not MONAI's `ConfigParser`.
    """
    parser = running_parser()
    config = parser.get()
    references = list(find_references(config))
    check_ids(config, references)
    check_arguments(config)
    settled: set[str] = set()
    for name in Settings.model_fields:
        if name in config:
            settle(name, parser, settled)
            if name != "bundle_root" and typed_text(name) is not None and not is_used(name, references):
                logger.warning(f"{name} changes nothing: this run does not use it.")
    if float64 and str(parser.ref_resolver.resolved_content.get("device")).startswith("mps"):
        raise InputError(
            "A fit needs 64-bit floats, which the device mps does not have; use --device cpu. The model that it "
            "saves runs on either device."
        )


def running_parser() -> ConfigParser:
    """Find the parser that is instantiating the component that calls this.

    MONAI passes only arguments to a component, so the parser, which has all ids, is searched in the calling frames.

    Raises:
        RuntimeError: there is no parser.
    """
    from monai.bundle import ConfigParser

    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, ConfigParser):
            return caller
        frame = frame.f_back
    raise RuntimeError("check_config is a component of a config; no ConfigParser of monai.bundle has called it.")


def find_references(config: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Find the references in a config.

    Args:
        config: the config or a part of it.
        place: id of the part.

    Yields:
        Pairs of ids: the referring one and its target.
    """
    from monai.bundle import ReferenceResolver

    if isinstance(config, str):
        for target in ReferenceResolver.match_refs_pattern(config):
            yield place, target
    elif isinstance(config, dict | list):
        for _, inner, content in ReferenceResolver.iter_subconfigs(place, config):
            yield from find_references(content, inner)


def is_used(name: str, references: list[tuple[str, str]]) -> bool:
    """Return whether anything outside an id refers to it, to one of its parents or to one of its parts."""
    return any(
        not _is_within(place, name) and (_is_within(name, target) or _is_within(target, name))
        for place, target in references
    )


def check_ids(config: dict[str, Any], references: list[tuple[str, str]]) -> None:
    """Check that every id is known or used.

    Raises:
        InputError: an id is neither, so it would have no effect.
    """
    known = {*Settings.model_fields, *SECTIONS, *MONAI_IDS}
    sections = {name.partition(SEPARATOR)[0] for name in SECTIONS if SEPARATOR in name}
    inner = [f"{name}{SEPARATOR}{child}" for name in sorted(sections & set(config)) for child in config[name] or ()]
    for name in [*config, *inner]:
        if name not in known and not _is_run(config.get(name)) and not is_used(name, references):
            raise unknown_id(name, known.union(config))


def check_arguments(config: Any, place: str = "") -> None:
    """Check that a config gives the components of this bundle no unknown arguments.

    Raises:
        InputError: an argument is unknown.
    """
    from monai.bundle import ConfigComponent, ReferenceResolver

    if not isinstance(config, dict | list):
        return
    target = config.get("_target_") if isinstance(config, dict) else None
    component: Any = pydoc.locate(target) if isinstance(target, str) and target.startswith("scripts.") else None
    if component is not None:
        arguments = inspect.signature(component).parameters
        if not any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values()):
            for name in sorted(set(config) - set(arguments) - ConfigComponent.non_arg_keys):
                raise unknown_id(
                    f"{place}{SEPARATOR}{name}", {f"{place}{SEPARATOR}{argument}" for argument in arguments}
                )
    for _, inner, content in ReferenceResolver.iter_subconfigs(place, config):
        check_arguments(content, inner)


def settle(name: str, parser: ConfigParser, settled: set[str]) -> None:
    """Replace a setting by its checked value, after the settings that it refers to.

    Args:
        name: id of the setting.
        parser: the parser of the config.
        settled: ids of checked settings; extended in place.

    Raises:
        InputError: the value cannot be evaluated, has a wrong type or is out of its range.
    """
    if name in settled:
        return
    settled.add(name)
    raw = parser[name]
    for _, target in find_references(raw, name):
        if target in Settings.model_fields:
            settle(target, parser, settled)
    try:
        # MONAI drops a None of the command line
        value = None if typed_text(name) == "None" else parser.ref_resolver.get_resolved_content(name)
    except Exception as error:
        reason = reason_of(cause_of(error))
        raise InputError(f"{name} {raw!r} cannot be evaluated ({reason}); check the expression.") from error
    parser.ref_resolver.resolved_content[name] = check_setting(name, value)


def _is_within(name: str, outer: str) -> bool:
    return name == outer or name.startswith(f"{outer}{SEPARATOR}")


def _is_run(content: Any) -> bool:
    from monai.bundle import ConfigExpression

    return isinstance(content, list) and bool(content) and all(ConfigExpression.is_expression(item) for item in content)
