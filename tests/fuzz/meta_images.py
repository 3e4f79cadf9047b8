"""Attacks by MetaImage and NRRD files: headers in plain text, and data in other files."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

from ..tiny_cases import brain
from .attack import Attack
from .damage import damage
from .reading import SHAPE

MHA = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "0 0 0",
    "CenterOfRotation": "0 0 0",
    "AnatomicalOrientation": "RAI",
    "ElementSpacing": "1 1 4",
    "DimSize": " ".join(map(str, SHAPE)),
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}
NRRD = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": " ".join(map(str, SHAPE)),
    "space directions": "(1,0,0) (0,1,0) (0,0,4)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(0,0,0)",
}
VALUES = [
    "",
    "0",
    "-1",
    "1",
    "2",
    "4",
    "99999999",
    "99999999999999999999",
    "nan",
    "nan nan nan",
    "0 0 0",
    "abc",
    "1e400",
]
VALUES += [
    "-1 -1 -1",
    "0 0 0 0 0 0 0 0 0",
    "100000 100000 100000",
    "18 16",
    "18 16 3 1",
    "none",
    "(0,0,0) (0,0,0) (0,0,0)",
]
VALUES += [
    "(nan,0,0) (0,1,0) (0,0,1)",
    "none none none",
    "\x1b[31m",
    "ü",
    "True",
    "MET_DOUBLE",
    "MET_STRING",
    "double",
    "block",
]
VALUES += ["gzip", "bzip2", "hex", "ascii", "big", "scanner-xyz", "1 0 0 0 1 0 0 0 0", "1 2 3 4", "9" * 3000]
SECRET = "secret.raw"


def attack(random: Random, folder: Path) -> Attack:
    """Put a bad MetaImage or NRRD file into a folder."""
    return random.choice([field, field, field, detached, detached, damaged, truncated, compressed])(random, folder)


def field(random: Random, folder: Path) -> Attack:
    """Change, drop, double or move fields of the header."""
    fields, join, name = _format(random)
    done = []
    for _ in range(random.choice([1, 1, 2])):
        place = random.randrange(len(fields))
        key, value = fields[place]
        way = random.choice(["value", "value", "value", "drop", "double", "move", "case"])
        if way == "value":
            value = random.choice(VALUES)
            fields[place] = (key, value)
        elif way in ("drop", "move"):
            del fields[place]
        if way == "double":
            fields.insert(random.randrange(len(fields) + 1), (key, random.choice(VALUES)))
        elif way == "move":
            fields.insert(random.randrange(len(fields) + 1), (key, value))
        elif way == "case":
            fields[place] = (key.upper(), value)
        done.append(f"{key}: {way} {value[:40]!r}")
    (folder / name).write_bytes(join(fields) + _voxels())
    return Attack(f"{name} with {'; '.join(done)}")


def detached(random: Random, folder: Path) -> Attack:
    """Name another local file as the data; its content must not get into any result."""
    secret = folder.parent / SECRET
    secret.write_bytes(_voxels() * 2)
    (folder / SECRET).write_bytes(_voxels() * 2)
    place = random.choice([str(secret), f"../{SECRET}", SECRET, f"./{SECRET}", f"LIST\n{SECRET}", "secret%d.raw 1 3 1"])
    fields, join, name = _format(random)
    if name.endswith("mha"):
        key = random.choice(
            ["ElementDataFile", "elementdatafile", "ELEMENTDATAFILE", "ElementDataFile ", " ElementDataFile"]
        )
        fields = [*fields[:-1], (key, place), *random.choice([[], fields[-1:]])]
        if random.random() < 0.3:
            fields = [*fields[:-1], ("HeaderSize", "0"), fields[-1]]
    else:
        key = random.choice(["data file", "datafile", "DATA FILE", "Data File", "data file ", " data file"])
        fields.insert(random.randrange(1, len(fields) + 1), (key, place))
    voxels = random.choice([b"", _voxels()])
    (folder / name).write_bytes(join(fields) + voxels)
    return Attack(f"{name} with {key!r}: {place!r}", must_fail=True)


def damaged(random: Random, folder: Path) -> Attack:
    """Damage the bytes."""
    fields, join, name = _format(random)
    header = join(fields)
    changed, what = damage(random, header)
    (folder / name).write_bytes(changed + _voxels())
    return Attack(f"{name}, header: {what}")


def truncated(random: Random, folder: Path) -> Attack:
    """Cut the end off."""
    fields, join, name = _format(random)
    content = join(fields) + _voxels()
    n = random.randrange(len(content) - 1)
    (folder / name).write_bytes(content[:n])
    return Attack(f"{name} of {n} of {len(content)} bytes", must_fail=True)


def compressed(random: Random, folder: Path) -> Attack:
    """Compress the data and damage them, or claim that they are compressed."""
    fields, join, name = _format(random)
    claim = (
        {"CompressedData": "True"} if name.endswith("mha") else {"encoding": random.choice(["gzip", "bzip2", "raw"])}
    )
    voxels = (zlib.compress if name.endswith("mha") else gzip.compress)(_voxels())
    way = random.choice(["whole", "damaged", "not compressed", "empty", "too large"])
    if way == "damaged":
        voxels = damage(random, voxels)[0]
    elif way == "too large":
        voxels = zlib.compress(bytes(20_000_000))
    written = {"not compressed": _voxels(), "empty": b""}.get(way, voxels)
    (folder / name).write_bytes(join([(key, claim.get(key, value)) for key, value in fields]) + written)
    return Attack(f"{name}, {claim}, data: {way}")


Fields = list[tuple[str, str]]


def _format(random: Random) -> tuple[Fields, Callable[[Fields], bytes], str]:
    """Return the fields of a good header, a function that writes them, and the name of the file."""
    if random.random() < 0.5:
        return list(MHA.items()), _mha, "case.mha"
    return list(NRRD.items()), _nrrd, "case.nrrd"


def _mha(fields: Fields) -> bytes:
    return "".join(f"{key} = {value}\n" for key, value in fields).encode()


def _nrrd(fields: Fields) -> bytes:
    return ("NRRD0004\n" + "".join(f"{key}: {value}\n" for key, value in fields) + "\n").encode()


def _voxels() -> bytes:
    return brain(1, SHAPE).astype("<i2").tobytes(order="F")
