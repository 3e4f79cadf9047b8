"""Attacks by DICOM files: headers of a small series, and pydicom's own test files."""

from __future__ import annotations

import functools
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import pydicom.data
from pydicom.datadict import tag_for_keyword

from demo.dicom_series import write_series

from ..tiny_cases import AFFINE, brain
from .attack import Attack
from .damage import damage
from .reading import SHAPE

LARGEST = 200_000  # bytes of pydicom's files that are taken
LONG = (b"OB", b"OD", b"OF", b"OL", b"OW", b"SQ", b"UC", b"UN", b"UR", b"UT")
TYPES = (*LONG, *b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US ZZ".split())
TEXTS = [b"", b"0", b"0\\0", b"0\\0\\0", b"abc", b"1\\2", b"1\\2\\3\\4\\5\\6\\7", b"nan", b"nan\\nan", b"1e400", b"inf"]
TEXTS += [b"-1", b"-1\\-1", b"1,5", b"\\\\\\", b"\0\0", b"\xff\xfe", b"9" * 70, b"1e-30\\1e-30", b"0\\0\\0\\0\\0\\0"]
TEXTS += [
    b"1\\0\\0\\1\\0\\0",
    b"1\\0\\0\\0\\1",
    b"2\\0\\0\\0\\3\\0",
    b"nan\\0\\0\\0\\1\\0",
    b"\x1b[2J",
    b"\n",
    b"+ 1",
    b"0x10",
]
NUMBERS = [0, 1, 2, 3, 7, 8, 12, 15, 16, 17, 32, 64, 255, 4096, 32767, 65535]
GEOMETRY = "ImagePositionPatient ImageOrientationPatient PixelSpacing SliceThickness SpacingBetweenSlices"
PIXELS = "Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation SamplesPerPixel PixelData NumberOfFrames"
PIXELS += " PlanarConfiguration PhotometricInterpretation SmallestImagePixelValue RescaleSlope RescaleIntercept"
DIFFERING = "RescaleSlope RescaleIntercept PixelSpacing BitsStored PhotometricInterpretation Rows"
OTHERS = "SeriesInstanceUID SOPInstanceUID SOPClassUID SpecificCharacterSet InstanceNumber PatientName ImageType"
OTHERS += " WindowCenter Modality StudyDate LossyImageCompression NumberOfTemporalPositions"
KEYWORDS = [*GEOMETRY.split() * 3, *PIXELS.split() * 2, *OTHERS.split()]
COLOURS = [
    b"MONOCHROME1",
    b"MONOCHROME2",
    b"RGB",
    b"PALETTE COLOR",
    b"YBR_FULL",
    b"YBR_FULL_422",
    b"HSV",
    b"CMYK",
    b"",
    b"x",
]
SYNTAXES = "1.2 1.2.1.99 1.2.2 1.2.4.50 1.2.4.51 1.2.4.57 1.2.4.70 1.2.4.80 1.2.4.90 1.2.4.100 1.2.4.202 1.2.5 9 "
TRANSFER_SYNTAX, UNDEFINED = 0x00020010, 0xFFFFFFFF


class Element(NamedTuple):
    """A data element as it stands in a file.

    Attributes:
        tag: group and element.
        vr: value representation, two bytes.
        value: the bytes of the value.
        length: length stated in the file; None for the length of the value.
    """

    tag: int
    vr: bytes
    value: bytes
    length: int | None = None


def attack(random: Random, folder: Path) -> Attack:
    """Put a bad DICOM series into a folder."""
    ways = [elements, elements, elements, elements, damaged, other_syntax, nested, odd_files, differing, pixel_data]
    return random.choice([*ways, known_files, known_files, known_folder])(random, folder / "series")


def elements(random: Random, folder: Path) -> Attack:
    """Change, retype, drop, double or add elements of one slice or of all."""
    slices, done = [list(each) for each in series()], []
    chosen = random.choice([slices, slices[:1], slices[-1:]])
    must_fail = False
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        keyword = random.choice(KEYWORDS)
        tag = tag_for_keyword(keyword) or 0
        way = random.choice(["value", "value", "value", "value", "type", "length", "drop", "double"])
        text, vr, length = _value(random, keyword), random.choice(TYPES), random.choice([0, 1, 3, 0xFFFE, UNDEFINED])
        for content in chosen:
            place = next((n for n, each in enumerate(content) if each.tag == tag), None)
            if place is None:
                content.append(Element(tag, b"US" if len(text) == 2 else b"DS", text))
                content.sort(key=lambda each: each.tag)
            elif way == "value":
                content[place] = content[place]._replace(value=text)
            elif way == "type":
                content[place] = content[place]._replace(vr=vr)
            elif way == "length":
                content[place] = content[place]._replace(length=length)
            elif way == "drop":
                del content[place]
            else:
                content.insert(place, content[place]._replace(value=text))
        must_fail |= keyword == "PixelSpacing" and way == "value" and text in (b"0\\0", b"nan\\nan", b"abc")
        done.append(f"{keyword}: {way} {text[:40]!r}" + {"type": f" {vr!r}", "length": f" {length}"}.get(way, ""))
    _write(folder, slices)
    return Attack(f"{len(chosen)} of {len(slices)} slices with {'; '.join(done)}", must_fail and len(done) == 1)


def damaged(random: Random, folder: Path) -> Attack:
    """Damage the bytes of one file, mostly of its header."""
    _write(folder, series())
    path = random.choice(sorted(folder.iterdir()))
    content = path.read_bytes()
    n = random.choice([len(content), 132, 1400, 1400])
    changed, what = damage(random, content[:n])
    path.write_bytes(changed + content[n:])
    return Attack(f"{path.name}, of the first {n} bytes: {what}")


def other_syntax(random: Random, folder: Path) -> Attack:
    """Declare a transfer syntax that is not the one of the file."""
    syntax = f"1.2.840.10008.{random.choice(SYNTAXES.split())}".encode()
    slices = [
        [each._replace(value=syntax) if each.tag == TRANSFER_SYNTAX else each for each in content]
        for content in series()
    ]
    _write(folder, slices)
    return Attack(f"claims transfer syntax {syntax.decode()}")


def nested(random: Random, folder: Path) -> Attack:
    """Nest sequences, perhaps deeper than a reader follows."""
    depth, defined = random.choice([1, 50, 300, 3000]), random.random() < 0.3
    value = b""
    if defined:
        for _ in range(min(depth, 300)):
            item = struct.pack("<HHI", 0xFFFE, 0xE000, len(value)) + value
            value = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, len(item)) + item
    else:
        start = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, UNDEFINED) + struct.pack(
            "<HHI", 0xFFFE, 0xE000, UNDEFINED
        )
        end = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
        value = start * depth + end * random.choice([depth, 0])
    slices = [encode(content) for content in series()]
    place = slices[0].index(struct.pack("<HH2s", 0x0018, 0x0015, b"CS"))
    folder.mkdir()
    for number, content in enumerate(slices):
        (folder / f"{number}.dcm").write_bytes(content[:place] + value + content[place:])
    return Attack(f"{depth} sequences in one another, {'defined' if defined else 'undefined'} length")


def odd_files(random: Random, folder: Path) -> Attack:
    """Put files that are no slices into the folder of the series."""
    _write(folder, series())
    content = encode(series()[0])
    name, written = random.choice(
        [
            ("empty.dcm", b""),
            ("text.dcm", b"not an image"),
            ("magic.dcm", bytes(128) + b"DICM"),
            ("meta.dcm", content[:200]),
            ("half.dcm", content[: len(content) // 2]),
            ("again.dcm", content),
            ("no_preamble.dcm", content[132:]),
            ("notes.txt", b"DICM" * 100),
            ("DICOMDIR", bytes(128) + b"DICM" + random.randbytes(300)),
            ("zeros.dcm", bytes(5000)),
        ]
    )
    (folder / name).write_bytes(written)
    return Attack(f"{name} beside the slices")


def differing(random: Random, folder: Path) -> Attack:
    """Let the slices differ in a property that they must share."""
    keyword = random.choice(DIFFERING.split())
    tag = tag_for_keyword(keyword) or 0
    values = {
        "BitsStored": [b"\x10\0", b"\x0c\0"],
        "PixelSpacing": [b"1\\1 ", b"2\\2 "],
        "Rows": [b"\x10\0", b"\x08\0"],
    }
    first, other = values.get(keyword, COLOURS[:2] if keyword.startswith("Photo") else [b"1 ", b"7 "])
    vr = {"BitsStored": b"US", "Rows": b"US", "PhotometricInterpretation": b"CS"}.get(keyword, b"DS")
    slices = []
    for number, content in enumerate(series()):
        element = Element(tag, vr, other if number == 1 else first)
        slices.append(sorted([*(each for each in content if each.tag != tag), element], key=lambda each: each.tag))
    _write(folder, slices)
    return Attack(f"slices that differ in {keyword}", must_fail=keyword in ("PixelSpacing", "Rows"))


def pixel_data(random: Random, folder: Path) -> Attack:
    """Give one slice less or more pixels than its header says."""
    tag, slices = tag_for_keyword("PixelData"), [list(each) for each in series()]
    place = next(n for n, each in enumerate(slices[0]) if each.tag == tag)
    value = slices[0][place].value
    n = random.choice([0, 2, len(value) // 2, len(value) - 2, len(value) + 2, 2 * len(value), 9])
    slices[0][place] = slices[0][place]._replace(value=(value * 2)[:n])
    _write(folder, slices)
    return Attack(f"{n} of {len(value)} bytes of pixels", must_fail=n < len(value))


def known_files(random: Random, folder: Path) -> Attack:
    """Copy one of pydicom's own test files, as it is or damaged."""
    path = random.choice(known())
    content, what = path.read_bytes(), "as it is"
    if content and random.random() < 0.6:
        n = min(len(content), random.choice([600, 2000, len(content)]))
        header, what = damage(random, content[:n])
        content = header + content[n:]
    folder.mkdir()
    (folder / (path.stem + random.choice(["", ".dcm"]))).write_bytes(content)
    return Attack(f"pydicom's {path.name}, {what}")


def known_folder(random: Random, folder: Path) -> Attack:
    """Copy a few of pydicom's own test files into one folder."""
    folder.mkdir()
    chosen = random.sample(known(), random.choice([2, 3, 8]))
    for path in chosen:
        (folder / path.name).write_bytes(path.read_bytes())
    return Attack(f"pydicom's {', '.join(path.name for path in chosen)}")


@functools.cache
def known() -> tuple[Path, ...]:
    """Return the test files that lie in pydicom's wheel; nothing is downloaded."""
    folder = Path(pydicom.data.__file__).parent / "test_files"
    found = (path for path in folder.rglob("*") if path.suffix in ("", ".dcm") and path.is_file())
    return tuple(sorted(path for path in found if path.stat().st_size <= LARGEST))


@functools.cache
def series() -> tuple[tuple[Element, ...], ...]:
    """Return the elements of a good series, with the same identifiers every time."""
    identifiers = {name: f"1.2.826.0.1.{n}" for n, name in enumerate(("StudyInstanceUID", "SeriesInstanceUID"), 1)}
    with tempfile.TemporaryDirectory() as folder:
        slices = write_series(
            Path(folder), brain(1, SHAPE), _right_angles(), FrameOfReferenceUID="1.2.826.0.2", **identifiers
        )
        written = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
    own = [str(each.SOPInstanceUID).encode() for each in slices]
    return tuple(
        tuple(
            each._replace(value=f"1.2.826.0.3.{number}".encode()) if each.value.rstrip(b"\0") == own[number] else each
            for each in decode(content)
        )
        for number, content in enumerate(written)
    )


def decode(content: bytes) -> list[Element]:
    """Split a file in explicit VR little endian, without sequences, into its elements."""
    found, place = [], 132
    while place < len(content):
        group, number, vr = struct.unpack_from("<HH2s", content, place)
        is_long = vr in LONG
        (length,) = struct.unpack_from("<I" if is_long else "<H", content, place + (8 if is_long else 6))
        place += 12 if is_long else 8
        found.append(Element(group << 16 | number, vr, content[place : place + length]))
        place += length
    return found


def encode(content: Sequence[Element]) -> bytes:
    """Join elements to a file, with a new length of the first group."""
    encoded = [(each.tag, _encode(each)) for each in content if each.tag != 0x00020000]
    n_meta = sum(len(written) for tag, written in encoded if tag >> 16 == 2)
    length = _encode(Element(0x00020000, b"UL", struct.pack("<I", n_meta)))
    return bytes(128) + b"DICM" + length + b"".join(written for _, written in encoded)


def _encode(element: Element) -> bytes:
    padding = b"\0" if element.vr in (b"UI", b"OB", b"UN") else b" "
    value = element.value + padding * (len(element.value) % 2)
    length = len(value) if element.length is None else element.length
    start = struct.pack("<HH2s", element.tag >> 16, element.tag & 0xFFFF, element.vr)
    long = element.vr in LONG
    return start + (struct.pack("<HI", 0, length) if long else struct.pack("<H", length & 0xFFFF)) + value


def _write(folder: Path, slices: Sequence[Sequence[Element]]) -> None:
    folder.mkdir()
    for number, content in enumerate(slices):
        (folder / f"{number}.dcm").write_bytes(encode(content))


def _value(random: Random, keyword: str) -> bytes:
    if keyword == "PhotometricInterpretation":
        return random.choice(COLOURS)
    if keyword in PIXELS.split() and random.random() < 0.7:
        return struct.pack("<H", random.choice(NUMBERS))
    return random.choice([*TEXTS, random.randbytes(random.choice([1, 2, 6, 40]))])


def _right_angles():
    """Return an affine that DICOM can express: AFFINE has a shear."""
    affine = AFFINE.copy()
    affine[:3, :3] = [[-0.9, 0, 0], [0, -1.1, 0], [0, 0, 4]]
    return affine
