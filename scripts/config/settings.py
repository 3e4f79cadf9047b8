"""Settings: the ids that a user may set, with their types, ranges and meaning."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from ..errors import InputError
from .ids import unknown_id
from .value_types import (
    EXPRESSION,
    Device,
    FilePath,
    Integer,
    ListOf,
    Number,
    OrOff,
    PathText,
    Pattern,
    Positive,
    Text,
)

FORMATS = {
    "path": "a path",
    "pattern": "a pattern of file names such as 'FLAIR*'",
    "device": "a device such as cpu or cuda:0",
    "timm": "timm:NAME with a vision transformer of timm",
    "share": "a share such as 2/16",
}


class Settings(BaseModel, validate_assignment=True):
    """Settings of all runs; the configs hold the defaults."""

    bundle_root: FilePath = Field(description="folder of the bundle, where the command is run from another one")
    dataset_dir: PathText = Field(description="normal images to fit on, or cases to segment")
    output_dir: FilePath = Field(description="where results go")
    ckpt_path: FilePath = Field(description="the fitted model; a fit writes it, inference reads it")
    file_pattern: Pattern = Field(
        description='which file names to take, such as `"FLAIR*"` or, with the folder above, `"img/*"`'
    )

    encoder_name: (
        Literal[
            "dinov2_vits14",
            "dinov2_vits14_reg",
            "dinov2_vitb14",
            "dinov2_vitb14_reg",
            "dinov2_vitl14",
            "dinov2_vitl14_reg",
            "dinov2_vitg14",
            "dinov2_vitg14_reg",
            "rad_dino",
        ]
        | Annotated[str, Field(pattern=r"^timm:[\w.]+$", json_schema_extra={"format": "timm"})]
    ) = Field(
        description="DINOv2 of this size, with or without register tokens; RAD-DINO for chest X-rays; or a vision "
        "transformer of timm, such as `timm:vit_small_patch16_dinov3` ([weights](../models/README.md))"
    )
    layers: ListOf[Integer | Annotated[Number, Field(gt=0, lt=1)]] = Field(
        description="blocks of the encoder whose tokens are used, from 0; -1 is the last, the paper's "
        "([why these](benchmarks/quality.md)); or shares of the depth, such as 0.75"
    )
    layer_reduction: Literal["mean", "concat"] = Field(
        description="how the tokens of several blocks become one embedding; of a single block it has no effect"
    )
    image_size: Positive = Field(
        description="length in pixels to which a slice's smaller edge is resized, a multiple of the encoder's patch "
        "size: 14 of DINOv2 and RAD-DINO, 16 of DINOv3"
    )
    scales: ListOf[Annotated[Number, Field(ge=0.01)]] = Field(
        description="sizes at which the encoder sees a slice, as shares of `image_size`; `[1.0,0.75]` finds a little "
        "more at 1.5 times the cost ([figures](benchmarks/quality.md))"
    )
    n_components: Annotated[Positive, Field(le=100_000)] = Field(
        description="upper bound of the mixture's components; the fit leaves most of them without weight"
    )
    covariance_type: Literal["full", "diag", "spherical", "low_rank"] = Field(
        description="form of the components' covariances; the paper's is `diag`, and `full` needs `--reg_covar 1e-3`"
    )
    rank: Positive = Field(description="dimensions of each component's subspace, where `covariance_type` is `low_rank`")
    reg_covar: Annotated[Number, Field(gt=0)] = Field(description="added to every variance")
    distribution: Literal["gaussian", "student_t"] = Field(
        description="likelihood of a component: the paper's is `gaussian`; `student_t` has degrees of freedom that are "
        "fitted to held-out normals ([why](benchmarks/quality.md#distribution))"
    )
    score: Literal["cosine", "euclidean", "mahalanobis", "negative_log_likelihood", "subspace"] = Field(
        description="what measures anomaly; the paper's is `cosine`, and `subspace` needs `low_rank`; can change "
        "without a new fit"
    )
    target_fpr: Annotated[Number, Field(ge=0.001, lt=0.5)] = Field(
        description="share of normal patches beyond the limit; can change without a new fit"
    )
    patch_smoothing: Annotated[Number, Field(ge=0, le=10)] = Field(
        description="standard deviation in patches of a Gaussian that smooths the scores of a slice"
    )
    spatial_dim: Annotated[int, Field(strict=True, ge=0, le=2)] = Field(
        description="axis across which slices are taken: 2 axial, 1 sagittal, 0 coronal"
    )
    views: OrOff[ListOf[Annotated[int, Field(strict=True, ge=0, le=2)]]] = Field(
        description="axes across each of which near isotropic volumes are sliced, such as `[0,1,2]`; the map is the "
        "mean of theirs; `off` takes `spatial_dim` alone ([cost and gain](how-it-works.md#three-views))"
    )
    field_of_view_mm: OrOff[Annotated[Number, Field(gt=0)] | Literal["auto"]] = Field(
        description="length in mm that the smaller edge of a volume's slices shows, so that other scanners and tighter "
        "crops change nothing; `auto` measures the normals, `off` takes slices as they are; inference has it in "
        "`ckpt_path` ([how](how-it-works.md#field-of-view))"
    )
    slice_batch_size: Positive = Field(
        description="slices the encoder sees at once, of several cases where one has fewer"
    )
    seed: Annotated[int, Field(strict=True, ge=0, le=2**32 - 1)] = Field(description="of all random choices")
    device: Device = Field(description="where the network runs")
    show_progress: bool = Field(description="whether progress bars are shown")

    validation_dir: OrOff[FilePath] = Field(
        description="held-out normal images for calibration; `off` takes `validation_fraction` of `dataset_dir`"
    )
    validation_fraction: Annotated[Number, Field(gt=0, lt=1)] = Field(
        description="share of the normal images that is held out where there is no `validation_dir`"
    )
    weights_path: OrOff[FilePath] = Field(
        description="file of the encoder's weights; `off` finds it in `models/`; inference has them in `ckpt_path`"
    )
    calibration_folds: OrOff[Annotated[int, Field(strict=True, ge=2)]] = Field(
        description="fits that hold out every normal image in turn for calibration, where fewer than 30 are held out; "
        "`off` calibrates on these ([cost](thresholds.md))"
    )
    max_epochs: Positive = Field(description="epochs after which a fit ends")
    patience: OrOff[Positive] = Field(
        description="epochs without a better validation log-likelihood after which a fit ends; `off` makes all"
    )
    settling_epochs: Annotated[int, Field(strict=True, ge=0)] = Field(
        description="epochs after the best one whose steps decay; the fit then depends less on the order of the slices"
    )
    batch_slices: Positive = Field(description="slices in a batch")
    step_size: OrOff[Annotated[Number, Field(gt=0, le=1)]] = Field(
        description="step size of online EM, or the rate of its decay under `schedule` `exp`; `off` is 1"
    )
    schedule: Literal["ema", "exp"] = Field(
        description="`ema`: a constant step size; `exp`: step number ** -`step_size`"
    )
    init_params: Literal["random_from_data", "k-means++"] = Field(description="which patches the components start from")
    resume: bool = Field(
        description="whether to go on from `last_epoch.pt` in `output_dir` after a fit was cut off; the model is the "
        "same"
    )
    embedding_store: OrOff[FilePath] = Field(
        description="where a fit keeps embeddings for later fits, about 1 MB a slice; `off` keeps nothing"
    )
    embedding_store_gb: OrOff[Annotated[Number, Field(gt=0)]] = Field(
        description="size that the store may reach; embeddings of other fits make room; `off` sets no limit"
    )
    log_dir: OrOff[FilePath] = Field(description="where TensorBoard's files go; `off` writes none")

    false_regions: Annotated[Number, Field(ge=0, le=16, json_schema_extra={"label_option": True})] = Field(
        description="false regions in a normal case, on average; lower it to ask for stronger evidence "
        "([how](thresholds.md))"
    )
    extent: Annotated[Number, Field(ge=0, le=1, json_schema_extra={"label_option": True})] = Field(
        description="share of its peak that the voxels of a region reach; never below the decision threshold"
    )
    min_region_mm3: Annotated[Number, Field(ge=0, json_schema_extra={"label_option": True})] = Field(
        description="volume of the smallest region; in pixels for pictures"
    )
    case_alpha: Annotated[Number, Field(gt=0, lt=1)] = Field(description="share of normal cases that may be flagged")
    threshold: Annotated[Number, Field(ge=0, json_schema_extra={"label_option": True})] = Field(
        description="what the map must reach to be in the mask, instead of the rules for regions; 0 takes these"
    )
    smoothing_mm: OrOff[Annotated[Number, Field(ge=0, le=50, json_schema_extra={"label_option": True})]] = Field(
        description="standard deviation in mm of a Gaussian over the map"
    )
    slice_step: Positive = Field(
        description="of a volume every n-th slice is scored, those between are interpolated; the overlay "
        "`configs/fast.json` takes 2"
    )
    runtime: Literal["auto", "torch", "openvino", "onnxruntime", "tensorrt"] = Field(
        description="what runs the encoder ([how, and what auto takes](runtimes.md))"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = Field(description="numbers that it computes with")
    torch_compile: bool = Field(description="whether torch compiles the encoder, for GPUs")
    overwrite: bool = Field(
        description="whether inference makes cases anew whose results are there, of the same input, model and "
        "settings; an evaluation always does"
    )
    share: OrOff[Annotated[Text, Field(pattern=r"^[1-9]\d*/[1-9]\d*$", json_schema_extra={"format": "share"})]] = Field(
        description="which cases inference takes, such as `2/16` for the second of 16 runs on one folder; `off` takes "
        "all ([how](many-cases.md))"
    )
    report: bool = Field(
        description="whether inference leaves `report.html`, which lists all cases and draws the 200 most "
        "suspicious ones"
    )

    label_dir: OrOff[FilePath] = Field(description="labels that maps are judged against ([how](evaluation.md))")
    label_pattern: Pattern = Field(description="which file names are labels")
    normal_pattern: OrOff[Pattern] = Field(description="names of cases that are normal and have no label")
    image_score: Literal["top_1_percent_mean", "maximum", "top_hundredth"] = Field(
        description="score of a case: the mean of the highest 1 % of its map (formerly `top_hundredth`), or the maximum"
    )
    fpr_limit: Annotated[Number, Field(gt=0, le=1)] = Field(
        description="highest false positive rate up to which AUPRO is taken"
    )
    n_resamplings: Annotated[int, Field(strict=True, ge=0)] = Field(
        description="resamplings of cases for the intervals; 0 leaves intervals out"
    )

    calibrated_path: FilePath = Field(description="where the model with new limits goes")


def check_setting(name: str, value: Any) -> Any:
    """Check the value of a setting.

    Args:
        name: a field of `Settings`.
        value: the value from the command line or a config.

    Returns:
        The value in the right type: None for ``off``, a list for one number, the typed text for a path.

    Raises:
        InputError: it has a wrong type or is out of its range.
    """
    checked: Any = Settings.model_construct()
    try:
        setattr(checked, name, value)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error":
            raise InputError(f"{first['ctx']['error']}.") from error
        raise InputError(f"{name} must be {expected_value(name)}; got {value!r}.") from error
    return getattr(checked, name)


def check_settings(values: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Check values for the ids of a config without evaluating it.

    Args:
        values: values by id, with ``#`` between the parts of an id.
        known: ids at the top of the config.

    Returns:
        The values for JSON: settings in their right types, expressions unchanged.

    Raises:
        InputError: an id does not exist; see also `check_setting`.
    """
    checked = {}
    for name, value in values.items():
        if name.split("#")[0] not in known:
            raise unknown_id(name, known)
        is_expression = isinstance(value, str) and value.startswith(EXPRESSION)
        if name in Settings.model_fields and not is_expression:
            value = check_setting(name, value)
        checked[name] = str(value) if name == "device" else value
    return checked


def expected_value(name: str) -> str:
    """Describe the type and range of a setting, e.g. ``a whole number of at least 1, or off``."""
    return _describe(_properties()[name])


def label_options() -> list[str]:
    """List the settings that MONAI Label offers as options of a model."""
    return [
        name
        for name, schema in _properties().items()
        if any(option.get("label_option") for option in _alternatives(schema))
    ]


@functools.cache
def _properties() -> dict[str, Any]:
    return Settings.model_json_schema()["properties"]


def _alternatives(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return schema.get("anyOf", [schema])


def _describe(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return ", or ".join(_describe(option) for option in schema["anyOf"])
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    if "const" in schema:
        return str(schema["const"])
    if "format" in schema:
        return FORMATS[schema["format"]]
    kind = schema["type"]
    if kind == "array":
        return f"a list such as [1], each {_describe(schema['items'])}"
    words = {"boolean": "yes or no", "null": "off", "integer": "a whole number", "number": "a number", "string": "text"}
    bounds = {
        "multipleOf": "that is a multiple of",
        "minimum": "of at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    ranges = [f"{word} {schema[bound]}" for bound, word in bounds.items() if bound in schema]
    return " ".join([words[kind], " and ".join(ranges)]).strip()
