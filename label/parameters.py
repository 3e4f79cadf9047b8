"""Parameters of requests: those of viewers, and the settings that a model lets a request change.

The module is installed in the folder of the app and imports no module of the bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NoReturn, TypeVar

from fastapi import HTTPException
from monailabel.utils.others.generic import device_list, device_map
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

MAX_SHOWN = 80
GPUS = r"^(all|\d+(,\d+)*)?$"
DEVICES = ("cpu", "cuda", "mps")  # MONAI Label takes the device that is there for "cuda"

Model = TypeVar("Model", bound=BaseModel)


class CommonParameters(BaseModel):
    """Parameters that MONAI Label's clients send with every request; MONAI Label or this server reads them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    device: str | list[str] = ""
    model_filename: str | list[str] = "model.pt"
    client_id: str | None = Field(None, max_length=200)
    logging: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str | list[str]) -> str:
        name = value if isinstance(value, str) else value[0] if value else ""
        known = (*DEVICES, *device_map().values(), *device_list())
        if name and name not in known:
            raise ValueError(f"device must be one of {', '.join(dict.fromkeys(known))}; got {shown(name)}.")
        return name

    @field_validator("model_filename")
    @classmethod
    def _only_model(cls, value: str | list[str]) -> str | list[str]:
        if value not in ("model.pt", ["model.pt"]):
            raise ValueError(f"model_filename must be model.pt, the only model of a bundle; got {shown(value)}.")
        return value


class AnswerParameters(CommonParameters):
    """Parameters of the answer to an inference."""

    result_extension: Literal[".nii.gz", ".nii", ".nrrd", ".seg.nrrd", ".mha", ".png", ".tif"] | None = None
    result_dtype: Literal["uint8", "int16", "uint16", "int32", "float32"] | None = None
    result_compress: bool = False
    restore_label_idx: bool = False
    label_info: list[dict[str, Any]] | None = None
    save_label: bool = False
    label_tag: str = "original"


class BatchParameters(AnswerParameters):
    """Parameters of an inference on many images, which run one after another."""

    save_label: bool = True
    multi_gpu: bool = False
    gpus: str = Field("all", pattern=GPUS)
    max_workers: int = Field(1, ge=0)
    max_batch_size: int = Field(0, ge=0)


class FitParameters(CommonParameters):
    """Parameters of a fit."""

    max_epochs: int = 50
    val_split: float = Field(0.2, ge=-1, lt=1, allow_inf_nan=False)
    pretrained: bool = True
    multi_gpu: bool = True
    force_multi_gpu: bool = False
    gpus: str = Field("all", pattern=GPUS)
    tracking: str | list[str] | None = None
    tracking_uri: Literal[""] = ""
    tracking_experiment_name: str = Field("", max_length=200)
    tracking_run_name: str = Field("", max_length=200)
    run_id: Literal["", "run"] = ""
    dataset: str | list[str] = ""

    @field_validator("tracking")
    @classmethod
    def _no_tracking(cls, value: str | list[str] | None) -> None:
        name = value[0] if isinstance(value, list) and value else value
        if str(name or "none").lower() != "none":
            raise ValueError(f"tracking must be None, as this server keeps its own record; got {shown(value)}.")


class InferenceParameters:
    """Settings that a request may change.

    Args:
        defaults: their values by name.
        check: returns the checked value of a setting, from its name and a value; raises a ValueError.
    """

    def __init__(self, defaults: Mapping[str, Any], check: Callable[[str, Any], Any]) -> None:
        self.defaults = dict(defaults)
        self._check = check

    def check(self, values: Mapping[str, Any], kind: type[Model]) -> tuple[Model, dict[str, Any]]:
        """Check all parameters of a request.

        Args:
            values: values by name.
            kind: parameters that are no settings.

        Returns:
            The latter, and the settings.

        Raises:
            HTTPException: 422 with a sentence, if one is unknown, of a wrong type or out of its range.
        """
        others = {name: value for name, value in values.items() if name not in self.defaults}
        return check_parameters(others, kind, self.defaults), self.settings(values)

    def settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Take the settings out of parameters, with the defaults of those that are missing.

        Raises:
            HTTPException: 422 with a sentence, if one is of a wrong type or out of its range.
        """
        settings = {}
        for name, default in self.defaults.items():
            try:
                settings[name] = self._check(name, values.get(name, default))
            except (ValueError, TypeError, OverflowError) as error:
                raise HTTPException(422, _shortened(str(error))) from error
        return settings


def check_parameters(values: Mapping[str, Any], kind: type[Model], others: Mapping[str, Any] = {}) -> Model:
    """Check parameters.

    Args:
        values: values by name.
        kind: their description.
        others: further names, for the message.

    Raises:
        HTTPException: 422 with a sentence, if one is unknown, of a wrong type or out of its range.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        _refuse(error.errors()[0], [*others, *kind.model_fields])


def _refuse(error: Mapping[str, Any], known: list[str]) -> NoReturn:
    name = shown(str(error["loc"][0]))
    if error["type"] == "extra_forbidden":
        raise HTTPException(422, f"There is no parameter {name}; there are {', '.join(known)}.")
    if error["type"] == "value_error":
        raise HTTPException(422, _shortened(str(error["ctx"]["error"])))
    raise HTTPException(422, f"{name} is wrong: {_shortened(error['msg'])}; got {shown(error['input'])}.")


def shown(value: Any) -> str:
    """Show a value of a request in a sentence, shortened."""
    return _shortened(repr(value), MAX_SHOWN)


def _shortened(text: str, length: int = 300) -> str:
    printable = "".join(character if character.isprintable() else "_" for character in text)
    return printable if len(printable) <= length else f"{printable[:length]}..."
