"""Attacks by NIfTI files: unusual headers, truncation, compression, arrays and affines."""

from __future__ import annotations

import gzip
from pathlib import Path
from random import Random

import nibabel as nib
import numpy as np

from ..tiny_cases import AFFINE, brain
from .attack import Attack
from .damage import damage
from .reading import SHAPE

FLOATS = [0, -1, 1, 0.5, np.nan, np.inf, -np.inf, 1e-30, 1e30, 3e38, -1e-3, 32768]
INTEGERS = [0, 1, -1, 2, 3, 4, 7, 8, 16, 32, 64, 128, 255, 256, 512, 1024, 1536, 1792, 2304, 32767, -32768]
VOXELS = "u1 i1 u2 u4 i8 u8 f4 f8 c8 c16 rgb rgba"  # the types that nibabel writes
HEADER = nib.Nifti1Header.template_dtype


def attack(random: Random, folder: Path) -> Attack:
    """Put a bad NIfTI file into a folder."""
    ways = [header_field, header_field, header_field, header_bytes, truncated, damaged, wrong_compression]
    return random.choice([*ways, odd_type, odd_shape, odd_affine, odd_affine, two_affines, odd_values])(random, folder)


def header_field(random: Random, folder: Path) -> Attack:
    """Set fields of the header to values at the edges of their types."""
    content, done = bytearray(_plain(random)), []
    for _ in range(random.choice([1, 1, 2, 4])):
        name = random.choice(HEADER.names)
        header = np.frombuffer(bytes(content[: HEADER.itemsize]), HEADER).copy()
        field = header[name].reshape(-1)
        place = random.randrange(field.size)
        if field.dtype.kind == "S":
            field[place] = random.randbytes(field.dtype.itemsize)
        elif field.dtype.kind == "f":
            field[place] = random.choice(FLOATS)
        else:
            information = np.iinfo(field.dtype)
            field[place] = np.clip(random.choice(INTEGERS), information.min, information.max)
        header[name] = field.reshape(header[name].shape)
        content[: HEADER.itemsize] = header.tobytes()
        done.append(f"{name}[{place}]={field[place]!r}")
    return Attack(f"{_write(random, folder, bytes(content))} with {', '.join(done)}")


def header_bytes(random: Random, folder: Path) -> Attack:
    """Damage the header or the extensions after it."""
    content = _plain(random)
    header, what = damage(random, content[: random.choice([348, 352])])
    return Attack(f"{_write(random, folder, header + content[len(header) :])}, header: {what}")


def truncated(random: Random, folder: Path) -> Attack:
    """Cut the end off."""
    content = _plain(random)
    n = random.randrange(len(content))
    return Attack(f"{_write(random, folder, content[:n])} of {n} of {len(content)} bytes", must_fail=True)


def damaged(random: Random, folder: Path) -> Attack:
    """Damage the compressed stream."""
    content, what = damage(random, gzip.compress(_plain(random), mtime=0))
    (folder / "case.nii.gz").write_bytes(content)
    return Attack(f"case.nii.gz, {what}")


def wrong_compression(random: Random, folder: Path) -> Attack:
    """Give a file the other suffix, compress it twice, or write something else under its name."""
    content = _plain(random)
    name, written = random.choice(
        [
            ("case.nii.gz", content),
            ("case.nii", gzip.compress(content, mtime=0)),
            ("case.nii.gz", gzip.compress(gzip.compress(content, mtime=0), mtime=0)),
            ("case.nii.gz", gzip.compress(b"", mtime=0)),
            ("case.nii", b"\x89PNG\r\n\x1a\n" + random.randbytes(400)),
            ("case.nii.gz", b"<html>404</html>"),
            ("case.nii", random.randbytes(4000)),
        ]
    )
    (folder / name).write_bytes(written)
    return Attack(f"{name} of other content: {written[:8]!r}")


def odd_type(random: Random, folder: Path) -> Attack:
    """Write voxels of an unusual type."""
    kind, values = random.choice(VOXELS.split()), brain(1, SHAPE)
    if kind in ("rgb", "rgba"):
        colours = np.dtype([(channel.upper(), "u1") for channel in kind])
        array = np.zeros(SHAPE, colours)
        for channel in colours.names or ():
            array[channel] = values // 8
    else:
        array = (values // 8).astype(kind)
        if array.dtype.kind == "c":
            array = array + 1j * array[::-1]
    image = nib.Nifti1Image(array, AFFINE, dtype=array.dtype)
    _save(random, folder, image)
    return Attack(f"voxels of type {kind}", must_fail=kind in ("c8", "c16"))


def odd_shape(random: Random, folder: Path) -> Attack:
    """Write an array that is no plain volume."""
    shapes = [(300,), (1,), (40, 30), (1, 40, 30), (40, 1, 30), (40, 30, 1), (40, 30, 3, 1), (40, 30, 1, 3)]
    shapes += [(20, 20, 3, 2), (20, 20, 3, 3), (20, 20, 3, 1, 1), (20, 20, 2, 1, 3), (1, 1, 1), (0, 20, 3), (2, 2, 2)]
    shape = random.choice([*shapes, (4000, 1, 1), (20, 20, 1, 1, 1, 1, 3)])
    values = np.random.default_rng(random.randrange(1000)).integers(0, 1000, shape).astype(np.int16)
    _save(random, folder, nib.Nifti1Image(values, AFFINE))
    return Attack(f"an array of shape {shape}")


def odd_affine(random: Random, folder: Path) -> Attack:
    """Write an unusual but valid affine, or none."""
    affine, must_fail = AFFINE.copy(), False
    way = random.choice(["zero", "singular", "nan", "sheared", "flipped", "permuted", "tiny", "huge", "far", "oblique"])
    if way == "zero":
        affine[:3, :3], must_fail = 0, True
    elif way == "singular":
        affine[:3, random.randrange(3)], must_fail = 0, True
    elif way == "nan":
        affine[random.randrange(3), random.randrange(4)], must_fail = random.choice([np.nan, np.inf]), True
    elif way == "sheared":
        affine[0, 1] += random.uniform(-0.8, 0.8)
    elif way == "flipped":
        affine[:3, random.randrange(3)] *= -1
    elif way == "permuted":
        order = [0, 1, 2]
        random.shuffle(order)
        affine[:3, :3] = affine[:3, order]
    elif way == "far":
        affine[:3, 3] = random.choice([1e6, -1e6, 12345.678])
    elif way == "oblique":
        rotation, _ = np.linalg.qr(np.random.default_rng(random.randrange(1000)).normal(size=(3, 3)))
        affine[:3, :3] = rotation @ affine[:3, :3]
    else:
        affine[:3, :3] *= 1e-4 if way == "tiny" else 1e4
    image = nib.Nifti1Image(brain(1, SHAPE), None)  # with an affine, nibabel would write that
    for name, row in zip(("srow_x", "srow_y", "srow_z"), affine[:3], strict=True):
        image.header[name] = row
    image.header["sform_code"] = random.choice([1, 2, 4])
    name = _write(random, folder, image.to_bytes())
    return Attack(f"{name} with an affine that is {way}", must_fail)


def two_affines(random: Random, folder: Path) -> Attack:
    """Write sform and qform that disagree, or voxel sizes that fit neither."""
    image = nib.Nifti1Image(brain(1, SHAPE), None)  # with an affine, nibabel would write that into both
    image.header.set_sform(AFFINE, code=random.choice([0, 1, 2]))
    other = np.diag([*(random.choice([1.0, -2.0, 0.5]) for _ in range(3)), 1.0])
    image.header.set_qform(other, code=random.choice([0, 1, 2]))
    header = image.header
    if random.random() < 0.5:
        header["pixdim"][1 : 1 + random.randint(1, 3)] = random.choice([0, 1, 5])
    name = _write(random, folder, image.to_bytes())
    return Attack(
        f"{name}, sform {int(header['sform_code'])}, qform {int(header['qform_code'])}, pixdim {header['pixdim'][1:4]}"
    )


def odd_values(random: Random, folder: Path) -> Attack:
    """Write voxels that are all one value, not finite, or at the ends of their type."""
    values = brain(1, SHAPE).astype(np.float32)
    way = random.choice(["nan", "inf", "one", "constant", "huge", "negative", "tiny", "two", "tilted"])
    if way in ("nan", "inf"):
        share = random.choice([0.001, 0.5, 1])
        bad = np.random.default_rng(random.randrange(1000)).random(SHAPE) <= share
        bad.flat[0] = True
        values[bad] = np.nan if way == "nan" else random.choice([np.inf, -np.inf])
    elif way == "one":
        values = np.zeros(SHAPE, np.float32)
        values[3, 3, 1] = 1
    elif way == "two":
        values = (values > 600).astype(np.float32)
    elif way == "tilted":
        values -= 600
    else:
        values = values * {"constant": 0, "huge": 1e35, "negative": -1, "tiny": 1e-42}[way]
    _save(random, folder, nib.Nifti1Image(values.astype(np.float32), AFFINE))
    return Attack(f"voxels: {way}", must_fail=way in ("nan", "inf", "constant"))


def _plain(random: Random) -> bytes:
    """Return an uncompressed single-file NIfTI-1 image of a common type."""
    image = nib.Nifti1Image(brain(1, SHAPE).astype(random.choice(["i2", "f4", "u1"])), AFFINE)
    return image.to_bytes()


def _write(random: Random, folder: Path, content: bytes) -> str:
    name = random.choice(["case.nii", "case.nii.gz"])
    (folder / name).write_bytes(gzip.compress(content, mtime=0) if name.endswith("gz") else content)
    return name


def _save(random: Random, folder: Path, image: nib.Nifti1Image) -> None:
    other = random.choice([nib.Nifti1Image, nib.Nifti2Image])
    nib.save(other(image.dataobj, image.affine, dtype=image.get_data_dtype()), folder / f"case.{_suffix(random)}")


def _suffix(random: Random) -> str:
    return random.choice(["nii", "nii.gz"])
