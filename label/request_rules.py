"""Rules for requests, which keep them from reaching files outside the folder of the server.

The module is installed next to `server` in the folder of the app and imports no module of the bundle.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote

NAMES = frozenset(  # parameters that MONAI Label puts into paths
    {"id", "image", "images", "label", "label_tag", "tag", "session_id", "model", "model_filename"}
    | {"method", "result_extension", "run_id", "strategy", "tracking"}
)
PLACES = frozenset(
    {"bundle_path", "tracking_uri"}
)  # folders that MONAI Label runs code from, addresses that it writes to
JSON_FIELDS = frozenset({"info", "params", "wsi"})
RESERVED = frozenset({"strategy"})  # of the information on an image
NO = frozenset({"", "0", "f", "false", "n", "no", "off"})
MAX_BYTES = 200

Fields = Iterable[tuple[str, str]]


def refusal(
    method: str,
    path: str,
    path_params: Mapping[str, str],
    query: Fields = (),
    form: Fields = (),
    file_names: Iterable[str] = (),
    body: Any = None,
) -> tuple[int, str] | None:
    """Find the rule that a request breaks.

    Args:
        method: HTTP method.
        path: path of the URL.
        path_params: parameters in the path, e.g. ``model``.
        query: parameters of the query.
        form: fields of a form, without files.
        file_names: names of uploaded files; clients may send whole paths, whose last part counts.
        body: parsed JSON body.

    Returns:
        HTTP status and a sentence, or None if the request is allowed.
    """
    query, endpoint = list(query), path.split("/")[1]
    if endpoint == "session" and any(key == "uncompress" and value.lower() not in NO for key, value in query):
        return 403, "Archives are not unpacked here; upload the image itself, without uncompress."
    if endpoint == "proxy":
        if method not in ("GET", "HEAD"):
            return 403, "Images on the DICOMweb server are only read through this server; store them there directly."
        if ".." in unquote(path).replace("\\", "/").split("/"):
            return 422, "The address must lie below that of the DICOMweb server; got one with '..'."
    must_be_named = endpoint == "datastore"
    sentences = (
        *(name_error(key, value) for key, value in path_params.items() if key != "path"),
        *(name_error(key, value) for key, value in query if key in NAMES and (value or must_be_named)),
        *(name_error("The name of a file", base_name(name)) for name in file_names if name),
        *(form_error(key, value) for key, value in form),
        settings_error(body),
    )
    return next(((422, sentence) for sentence in sentences if sentence), None)


def name_error(key: str, name: str) -> str:
    """Return why a text is not a plain file name, or an empty string if it is one."""
    kinds = {unicodedata.category(character) for character in name}
    is_plain = name.strip() not in ("", ".", "..") and not {"/", "\\"}.intersection(name)
    if not is_plain or kinds & {"Cc", "Cs", "Zl", "Zp"}:
        return f"{key} must be a plain name, without folders or control characters; got {name[:MAX_BYTES]!r}."
    if len(name.encode()) > MAX_BYTES:
        return f"{key} must be a name of at most {MAX_BYTES} bytes; got {len(name.encode())}."
    return ""


def form_error(key: str, value: str) -> str:
    """Return what is wrong with a field of a form, or an empty string."""
    if key in NAMES:
        return name_error(key, value) if value else ""
    if key not in JSON_FIELDS or not value:
        return ""
    try:
        settings = json.loads(value, parse_constant=refuse_constant)
    except NotFiniteError as error:
        return str(error)
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        return f"{key} must be a JSON object, such as {{}}; got {value[:MAX_BYTES]!r}."
    if key == "info" and RESERVED.intersection(settings):
        return f"{', '.join(sorted(RESERVED))} of an image is kept by the server itself; leave it out."
    return settings_error(settings)


class NotFiniteError(ValueError):
    """JSON holds a number that no answer could repeat."""


def refuse_constant(name: str) -> None:
    """Refuse NaN and Infinity, which Python's parser of JSON takes."""
    raise NotFiniteError(f"Numbers must be finite; got {name}.")


def settings_error(value: Any, key: str = "") -> str:
    """Return what is wrong with settings: MONAI evaluates expressions, and MONAI Label puts names into paths.

    Args:
        value: parsed JSON.
        key: name of the value.

    Returns:
        A sentence, or an empty string.
    """
    pending = [(key, value)]
    while pending:  # iterative, as a deeply nested body would exhaust the stack
        key, value = pending.pop()
        if isinstance(value, Mapping):
            if hidden := [each for each in value if each.startswith("_")]:
                return f"Settings must be plain values; got the key {hidden[0][:MAX_BYTES]!r}."
            pending.extend(value.items())
        elif isinstance(value, list):
            pending.extend((key, each) for each in value)
        elif key in PLACES and value:
            return f"{key} names a place on the server, which a request must not; leave it out."
        elif isinstance(value, str):
            if value.lstrip().startswith(("$", "@", "%")):
                return f"{key or 'A setting'} must be a plain value, not an expression; got {value[:MAX_BYTES]!r}."
            if key in NAMES and value and (wrong := name_error(key, value)):
                return wrong
    return ""


def base_name(path: str) -> str:
    """Return the last part of a path of any operating system."""
    return path.replace("\\", "/").rpartition("/")[2]
