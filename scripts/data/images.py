"""Image files: one reader per format, which refuses files that it cannot read reliably.

NIfTI is read by nibabel; pictures, MetaImage, NRRD and DICOM by ITK, after a check of their headers. Other files that a
header names are never opened.
"""

from __future__ import annotations

import gzip
import mmap
import os
import re
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import itk
import nibabel as nib
import numpy as np
from monai.config import KeysCollection
from monai.data import ImageReader, ITKReader
from monai.transforms import LoadImaged
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from PIL import Image, UnidentifiedImageError

from ..errors import InputError
from .dicom import HeaderError, read_header, validate_series

NIFTI_SUFFIXES = (".nii.gz", ".nii")
PICTURE_IO = {"PNG": "PNGImageIO", "JPEG": "JPEGImageIO", "MPO": "JPEGImageIO"}
MAX_HEADER_BYTES = 1 << 20  # of MetaImage and NRRD
MAX_FIELD = 500  # characters, of NRRD: an error in a field of 1100 makes ITK end the process
MAX_PIXELS = 1 << 28  # of a picture
T = TypeVar("T")

DAMAGED = "the file is damaged; check that the file is whole and opens in a viewer"


class LoadImageFiled(LoadImaged):
    """Load image files with the affine of their headers, or refuse them.

    Args:
        keys: paths of files, or of folders of DICOM series.
        allow_missing_keys: whether a key may be missing.
    """

    cache_identity = "scripts.image_files.LoadImageFiled"

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys=allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any], reader: ImageReader | None = None) -> dict[Hashable, Any]:
        """Load the images of a case; see `ImageFileReader`."""
        return super().__call__(data, reader or ImageFileReader())


class ImageFileReader(ImageReader):
    """Read an image file, or a folder of a DICOM series, by the reader for its format."""

    def verify_suffix(self, filename: Sequence[str | os.PathLike] | str | os.PathLike) -> bool:
        """Accept every name: `read` explains the error of a file."""
        return True

    def read(self, data: Sequence[str | os.PathLike] | str | os.PathLike, **kwargs: Any) -> tuple[np.ndarray, dict]:
        """Read one image.

        Args:
            data: path of the image, or a sequence of one path.
            kwargs: ignored.

        Returns:
            Voxels ``[X,Y]`` or ``[X,Y,Z]``, with channels last if there are any, and their metadata: ``affine`` and
            ``original_affine`` in mm (RAS), ``spatial_shape``, ``original_channel_dim``.

        Raises:
            InputError: a file that is damaged, of another format, or without a definite geometry.
        """
        (path,) = (data,) if isinstance(data, str | os.PathLike) else data
        voxels, meta = _reader_of(Path(path))(Path(path))
        if 0 in voxels.shape:
            raise InputError(f"the image has {shape_text(voxels.shape)} voxels; expected at least one along each axis")
        _check_affine(np.asarray(meta["affine"]), len(meta["spatial_shape"]))
        return voxels, meta

    def get_data(self, img: tuple[np.ndarray, dict]) -> tuple[np.ndarray, dict]:
        """Pass on the result of `read`."""
        return img


def needs_itk(path: str | os.PathLike) -> bool:
    """Return whether ITK reads an image."""
    return not str(path).lower().endswith(NIFTI_SUFFIXES)


def load_itk() -> None:
    """Load the parts of ITK that read images, which takes seconds and changes the working directory meanwhile.

    It must therefore not run in a thread while other threads open files.
    """
    for name in (*PICTURE_IO.values(), "MetaImageIO", "NrrdImageIO", "GDCMImageIO", "GDCMSeriesFileNames", "PyBuffer"):
        getattr(itk, name)


def _reader_of(path: Path) -> Any:
    name = path.name.lower()
    if path.is_dir():
        return _read_dicom_series
    if name.endswith(NIFTI_SUFFIXES):
        return _read_nifti
    if name.endswith((".png", ".jpg", ".jpeg")):
        return _read_picture
    if name.endswith(".mha"):
        return _read_metaimage
    if name.endswith(".nrrd"):
        return _read_nrrd
    return _read_dicom_file


def _read_nifti(path: Path) -> tuple[np.ndarray, dict]:
    try:
        with path.open("rb") as plain:
            is_compressed = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path) if is_compressed else path.open("rb") as stream:
            size = stream.read(4)
            is_second = 540 in (int.from_bytes(size, "little"), int.from_bytes(size, "big"))
            kind = nib.Nifti2Image if is_second else nib.Nifti1Image
            stream.seek(0)
            image = kind.from_file_map(kind.make_file_map({"image": stream}), mmap=False)
            _check_nifti(image)
            stream.seek(0)
            raw_header = image.header.from_fileobj(stream, check=False)  # nibabel replaces lengths of 0 by 1
            voxels = np.asanyarray(image.dataobj)
            while is_compressed and stream.read(1 << 20):  # the checksum is at the end
                pass
    except InputError:
        raise
    except (WrapStructError, HeaderDataError) as error:
        raise InputError(f"its NIfTI header is not valid; {DAMAGED}") from error
    except MemoryError as error:
        raise InputError("there is not enough memory for the image; check its size or crop it") from error
    except FileNotFoundError as error:
        raise InputError("the file does not exist any more; give its new place") from error
    except PermissionError as error:
        raise InputError("the file must not be read; check its permissions") from error
    except Exception as error:
        raise InputError(DAMAGED) from error
    spatial = voxels.shape[:3]
    if not raw_header["sform_code"] > 0 and not (raw_header["pixdim"][1 : len(spatial) + 1] != 0).all():
        raise InputError("the size of a voxel in the NIfTI header is 0; expected a length in mm, so correct the header")
    affine = np.array(image.affine, dtype=float)
    return voxels.reshape(spatial), {
        "affine": affine,
        "original_affine": affine.copy(),
        "spatial_shape": np.array(spatial),
        "original_channel_dim": float("nan"),
        "space": "RAS",
    }


def _check_nifti(image: nib.Nifti1Image) -> None:
    shape = image.shape
    kind = image.header.get_data_dtype()
    if kind.kind not in "iuf":
        what = "complex numbers" if kind.kind == "c" else "colours"
        raise InputError(f"the NIfTI file holds {what}; expected one real number for each voxel, so convert it")
    if len(shape) < 2:
        raise InputError(f"the NIfTI file has {len(shape)} dimensions; expected 2 or 3")
    if any(length < 1 for length in shape):
        raise InputError(f"the image has {shape_text(shape)} voxels; expected at least one along each axis")
    n_volumes = int(np.prod(shape[3:], dtype=np.int64))
    if n_volumes != 1:
        raise InputError(
            f"the image has {n_volumes} volumes or channels per voxel; expected one 2-D or 3-D image, so split a 4-D "
            "series into its volumes"
        )


def _read_picture(path: Path) -> tuple[np.ndarray, dict]:
    """Read a picture by ITK, after PIL has checked that it is complete, which ITK does not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                format_, n_frames, size = str(image.format), getattr(image, "n_frames", 1), image.size
                if format_ == "PNG" and n_frames > 1:
                    raise InputError(
                        f"the picture is an animation of {n_frames} frames; expected one, so save it alone"
                    )
                if size[0] * size[1] > MAX_PIXELS:
                    raise InputError(
                        f"the picture has {shape_text(size)} pixels; expected {MAX_PIXELS} at most, so cut it up"
                    )
                image.verify()
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                image.load()
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError("the picture has too many pixels; cut it up or make it smaller") from error
    except UnidentifiedImageError as error:
        raise InputError("the file is neither PNG nor JPEG; check that its suffix is right") from error
    except Exception as error:
        raise InputError("the picture is damaged or not whole; check that it opens in a viewer") from error
    return _read_by_itk(path, PICTURE_IO[format_])


def _read_metaimage(path: Path) -> tuple[np.ndarray, dict]:
    """Read MetaImage, whose header may name other files as its data."""
    end = "ElementDataFile"
    lines = []
    for line in _header_lines(path, "MetaImage"):
        lines.append(line)
        if line.startswith(end):
            break
    fields = [re.fullmatch(r"([A-Za-z_]\w*) ?= ?(\S.*?)\s*", line, re.ASCII) for line in lines]
    _check_plain([field and field[1].lower() for field in fields], "MetaImage")
    header = {field[1]: field[2] for field in fields if field}
    if header.get(end, "").upper() != "LOCAL" or _count(path, end.encode()) > 1:
        raise InputError("the MetaImage header names other files as its data; expected the data in the same file")
    spacing = header.get("ElementSpacing", header.get("ElementSize", ""))
    _check_spacing(spacing.split(), _count_of(header.get("NDims", "")))
    return _read_by_itk(path, "MetaImageIO")


def _read_nrrd(path: Path) -> tuple[np.ndarray, dict]:
    """Read NRRD, whose header may name other files as its data."""
    magic, *lines = _header_lines(path, "NRRD")
    if not re.fullmatch(r"NRRD000\d\s*", magic):
        raise InputError(f"the file is not NRRD; {DAMAGED}")
    header: dict[str, str] = {}
    keys: list[str | None] = []
    for line in lines:
        if not line.strip():
            break
        if line.startswith("#") or re.match(r"[^:]*:=", line):  # a comment, or a key and value that readers ignore
            continue
        field = re.fullmatch(r"([A-Za-z][A-Za-z ]*): ?(\S.*?)\s*", line)
        key = re.sub(r"\s", "", field[1].lower()) if field else None
        keys.append(key)
        if len(line) > MAX_FIELD and key != "content":
            raise InputError(
                f"the NRRD header has a line of {len(line)} characters; expected {MAX_FIELD} at most, so save the "
                "image anew"
            )
        if field and key:
            header[key] = field[2]
    else:
        raise InputError(f"the NRRD header has no end; {DAMAGED}")
    _check_plain(keys, "NRRD")
    if "datafile" in header:
        raise InputError("the NRRD header names other files as its data; expected the data in the same file")
    n_axes = _count_of(header.get("dimension", ""))
    if "spacedirections" in header:
        n_axes = len([each for each in re.findall(r"\([^)]*\)|\S+", header["spacedirections"]) if each != "none"])
        vectors = re.findall(r"\(([^)]*)\)", header["spacedirections"])
        lengths = [str(np.linalg.norm(_floats(vector.split(",")))) for vector in vectors]
    else:
        lengths = header.get("spacings", "").split()
        if "nan" in (each.lower() for each in lengths) and n_axes > 2:  # spacing of the colour axis
            lengths.remove(next(each for each in lengths if each.lower() == "nan"))
            n_axes -= 1
    _check_spacing(lengths, n_axes)
    voxels, meta = _read_by_itk(path, "NrrdImageIO")
    if len(meta["spatial_shape"]) > n_axes:
        raise InputError("the NRRD header gives no size of its voxels along an axis; expected lengths in mm")
    return voxels, meta


def _read_dicom_series(path: Path) -> tuple[np.ndarray, dict]:
    names = itk.GDCMSeriesFileNames.New()
    names.SetUseSeriesDetails(False)  # a series may pass midnight, and the thickness of slices vary
    names.SetDirectory(str(path))
    series = names.GetSeriesUIDs()
    if not series:
        raise InputError("no file of the DICOM series could be read; check that it opens in a viewer")
    files = names.GetFileNames(series[0])
    if len(files) == 1:
        return _read_by_itk(Path(files[0]), "GDCMImageIO")
    # In floating point: each slice may have a scale of its own, whose values need not fit into the type of the first.
    reader = itk.ImageSeriesReader[itk.Image[itk.F, 3]].New(FileNames=files, ImageIO=itk.GDCMImageIO.New())
    voxels, meta = _from_itk(lambda: ITKReader().get_data(_updated(reader)))
    # ITK stacks slices at right angles, unlike a tilted gantry, and in a direction that a header may state.
    first, last = _from_itk(lambda: [_position(Path(file)) for file in (files[0], files[-1])])
    step = (last - first) / (len(files) - 1) * [-1, -1, 1]
    meta["affine"][:3, 2] = meta["original_affine"][:3, 2] = step
    return voxels, meta


def _position(path: Path) -> np.ndarray:
    """Read the position ``[3]`` of a slice in mm (LPS)."""
    header: Any = read_header(path)
    return np.array(header.ImagePositionPatient, dtype=float)


def _read_dicom_file(path: Path) -> tuple[np.ndarray, dict]:
    try:
        header = read_header(path)
    except HeaderError as error:
        raise InputError(str(error)) from error
    if header is None:
        raise InputError(
            "the file is of a kind that is not supported; expected NIfTI, DICOM, PNG, JPEG, MetaImage or NRRD"
        )
    if series_error := validate_series([header]):
        raise InputError(series_error)
    return _read_by_itk(path, "GDCMImageIO")


def _read_by_itk(path: Path, image_io: str) -> tuple[np.ndarray, dict]:
    """Read by one part of ITK only: others would take the same bytes for another format."""
    reader = ITKReader(imageio=getattr(itk, image_io).New())
    return _from_itk(lambda: reader.get_data(reader.read(str(path))))


def _from_itk(get: Callable[[], T]) -> T:
    try:
        return get()
    except MemoryError as error:
        raise InputError("there is not enough memory for the image; check its size or crop it") from error
    except Exception as error:
        raise InputError(DAMAGED) from error


def _updated(reader: Any) -> Any:
    reader.Update()
    return reader.GetOutput()


def _header_lines(path: Path, kind: str) -> list[str]:
    """Read the first lines of a file, up to one with characters that are not plain text."""
    try:
        with path.open("rb") as file:
            start = file.read(MAX_HEADER_BYTES)
    except OSError as error:
        raise InputError(f"the file cannot be opened ({error.strerror}); check that it is there") from error
    lines = []
    for line in start.split(b"\n"):
        text = line.removesuffix(b"\r")
        if not re.fullmatch(rb"[\x20-\x7e\t]*", text):
            break
        lines.append(text.decode("ascii"))
    if not lines:
        raise InputError(f"the {kind} header is not plain text; {DAMAGED}")
    return lines


def _count(path: Path, word: bytes) -> int:
    """Count a word in a whole file: a value of several lines may hide it from a reader of single lines."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return len(re.findall(re.escape(word), content))


def _check_plain(keys: Sequence[str | None], kind: str) -> None:
    if None in keys or len(set(keys)) < len(keys):
        raise InputError(f"the {kind} header has lines that are not plain or come twice; save the image anew")


def _check_spacing(lengths: Sequence[str], n_axes: int) -> None:
    values = _floats(lengths)
    if not n_axes or len(values) != n_axes or not (np.isfinite(values) & (values > 0)).all():
        raise InputError(
            "the header does not give the size of a voxel along each axis; expected positive lengths in mm, so "
            "correct the header"
        )


def _check_affine(affine: np.ndarray, n_dims: int) -> None:
    axes = affine[:n_dims, :n_dims]  # a picture spans the first two axes of space
    lengths = np.linalg.norm(axes, axis=0) if np.isfinite(affine).all() else np.zeros(1)
    if not (lengths > 0).all() or np.linalg.matrix_rank(axes / lengths, 1e-6) < axes.shape[1]:
        raise InputError(
            "the affine in the header is singular or not finite; expected axes in different directions and lengths in "
            "mm, so correct the header"
        )


def _count_of(text: str) -> int:
    return int(text) if re.fullmatch("[0-9]", text) else 0


def _floats(texts: Sequence[str]) -> np.ndarray:
    try:
        return np.array([float(text) for text in texts])
    except ValueError:
        return np.array([np.nan])


def shape_text(shape: Sequence[int]) -> str:
    """Write a shape for a message, for example ``4 x 5``."""
    return " x ".join(str(length) for length in shape)
