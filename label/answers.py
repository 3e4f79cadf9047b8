"""Answers to an inference: mask, map and measurements in the formats of viewers.

The module is installed in the folder of the app and imports no module of the bundle.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pydicom
from bundle_tasks import AnomalyInference, ScoredImage, mask_suffix, write_image
from dicom_objects import Algorithm, parametric_map, segmentation, structured_report
from fastapi import HTTPException, Response
from fastapi.responses import JSONResponse
from label_files import PICTURES
from parameters import AnswerParameters
from pydicom.uid import generate_uid
from requests_toolbelt import MultipartEncoder
from series_frames import encoded, frames_of, slices_of

IMAGES = ("image", "map")
DICOM_OBJECTS = ("dicom_seg", "dicom_map", "dicom_sr")
OUTPUTS = ("all", "json", *IMAGES, *DICOM_OBJECTS)
EMPTY = "Nothing reaches the threshold: the mask is empty, and there is no DICOM SEG without a segment."


def answer_to(
    output: str, scored: ScoredImage, image: str, parameters: AnswerParameters, task: AnomalyInference
) -> Response:
    """Make the answer to a request.

    Args:
        output: one of ``OUTPUTS``.
        scored: result of the inference.
        image: file of the image.
        parameters: format of the answer.
        task: the inference, for DICOM objects.

    Returns:
        The answer.

    Raises:
        HTTPException: a DICOM SEG of an empty mask is wanted.
    """
    if output == "json":
        return JSONResponse(scored.measurements)
    if output in DICOM_OBJECTS:
        return Response(
            dicom_object(output, scored, slices_of(image), algorithm_of(task)), media_type="application/dicom"
        )
    name, content = image_file("mask" if output == "all" else output, scored, image, parameters)
    if output in IMAGES:
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(content, media_type="application/octet-stream", headers=headers)
    fields = {
        "params": (None, json.dumps(scored.measurements), "application/json"),
        "image": (name, content, "application/octet-stream"),
    }
    encoder = MultipartEncoder(fields=fields)
    return Response(encoder.to_string(), media_type=encoder.content_type)


def image_file(kind: str, scored: ScoredImage, image: str, parameters: AnswerParameters) -> tuple[str, bytes]:
    """Write mask or map as an image.

    Args:
        kind: ``map``, or anything else for the mask.
        scored: result of the inference.
        image: file of the image.
        parameters: suffix, type of the values and compression.

    Returns:
        Name and content of the file.

    Raises:
        HTTPException: the format cannot hold the result.
    """
    is_map = kind == "map"
    suffix = parameters.result_extension or mask_suffix(image)
    if is_map and suffix in PICTURES and scored.mask.ndim == 3:
        suffix = ".tif"  # the only one with floating-point numbers
    dtype = "float32" if is_map else parameters.result_dtype or "uint8"
    if suffix in PICTURES and scored.mask.ndim == 4:
        raise HTTPException(422, f"A volume cannot be written as {suffix}; ask for .nii.gz or .nrrd.")
    if suffix == ".png" and dtype not in ("uint8", "uint16"):
        raise HTTPException(422, f"A file {suffix} cannot hold values of the type {dtype}; ask for uint8.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{kind}{suffix}")
        write_image(scored.anomaly_map if is_map else scored.mask, path, dtype, parameters.result_compress)
        return path.name, path.read_bytes()


def dicom_object(output: str, scored: ScoredImage, slices: Sequence[pydicom.Dataset], algorithm: Algorithm) -> bytes:
    """Make a DICOM object of a result.

    Args:
        output: one of ``DICOM_OBJECTS``.
        scored: result of the inference.
        slices: see `slices_of`.
        algorithm: description of the bundle.

    Returns:
        Content of the file.

    Raises:
        HTTPException: the mask of a DICOM SEG is empty.
    """
    if output == "dicom_sr":
        dataset = structured_report(scored.measurements, slices, algorithm)
    elif output == "dicom_map":
        dataset = parametric_map(frames_of(scored.anomaly_map, slices), slices, algorithm)
    elif scored.mask.any():
        dataset = segmentation(frames_of(scored.mask, slices), slices, algorithm)
    else:
        raise HTTPException(422, EMPTY)
    return encoded(dataset)


def algorithm_of(task: AnomalyInference) -> Algorithm:
    """Describe a bundle in DICOM objects, as the MONAI Deploy app does."""
    metadata = task.metadata
    uid = generate_uid(entropy_srcs=[task.model_digest()])
    return Algorithm(metadata["authors"], metadata["name"], metadata["version"], uid)
