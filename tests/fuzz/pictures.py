"""Attacks by PNG and JPEG files: truncation, chunks, markers, modes, animation and wrong sizes in headers."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from .attack import Attack
from .damage import damage

SIZE = (30, 24)  # columns, rows
PNG_START = b"\x89PNG\r\n\x1a\n"
CHUNK_KINDS = [
    b"IHDR",
    b"PLTE",
    b"IDAT",
    b"IEND",
    b"tRNS",
    b"gAMA",
    b"iCCP",
    b"tEXt",
    b"zTXt",
    b"acTL",
    b"fcTL",
    b"eXIf",
]


def attack_png(random: Random, folder: Path) -> Attack:
    """Put a bad PNG file into a folder."""
    ways = [
        png_damaged,
        png_truncated,
        png_header,
        png_chunks,
        png_chunks,
        png_pixels,
        png_mode,
        animated,
        other_content,
    ]
    return random.choice([*ways, large])(random, folder)


def attack_jpeg(random: Random, folder: Path) -> Attack:
    """Put a bad JPEG file into a folder."""
    ways = [jpeg_damaged, jpeg_truncated, jpeg_truncated, jpeg_segments, jpeg_segments, jpeg_mode, jpeg_size]
    return random.choice([*ways, other_content])(random, folder)


def png_damaged(random: Random, folder: Path) -> Attack:
    """Damage the bytes."""
    return _damaged(random, folder / "case.png", _png(random))


def png_truncated(random: Random, folder: Path) -> Attack:
    """Cut off the end, and with it pixels."""
    content = _png(random)
    n = random.randrange(len(content) * 9 // 10)
    (folder / "case.png").write_bytes(content[:n])
    return Attack(f"PNG of {n} of {len(content)} bytes", must_fail=True)


def png_header(random: Random, folder: Path) -> Attack:
    """Set a field of IHDR, with the right checksum."""
    chunks = _chunks(_png(random))
    fields = list(struct.unpack(">IIBBBBB", chunks[0][1]))
    place = random.randrange(7)
    fields[place] = random.choice([0, 1, 2, 3, 4, 6, 8, 16, 23, 25, 31, 255] + [1000, 2**31 - 1] * (place < 2))
    chunks[0] = (b"IHDR", struct.pack(">IIBBBBB", *fields))
    (folder / "case.png").write_bytes(_join(chunks))
    return Attack(f"PNG with IHDR {fields}")


def png_chunks(random: Random, folder: Path) -> Attack:
    """Drop, double, move, rename, damage or add a chunk, with the right checksum."""
    chunks = _chunks(_png(random))
    place = random.randrange(len(chunks))
    kind, value = chunks[place]
    way = random.choice(["drop", "double", "move", "rename", "damage", "add", "checksum"])
    if way in ("drop", "move"):
        del chunks[place]
    if way in ("double", "move"):
        chunks.insert(random.randrange(len(chunks) + 1), (kind, value))
    elif way == "rename":
        chunks[place] = (random.choice(CHUNK_KINDS), value)
    elif way == "damage" and value:
        chunks[place] = (kind, damage(random, value)[0])
    elif way == "add":
        added = random.choice([random.randbytes(random.choice([0, 3, 100])), zlib.compress(bytes(100_000))])
        chunks.insert(random.randrange(len(chunks) + 1), (random.choice(CHUNK_KINDS), added))
    content = _join(chunks)
    if way == "checksum":
        content = content.replace(zlib.crc32(kind + value).to_bytes(4, "big"), b"\0\0\0\0")
    (folder / "case.png").write_bytes(content)
    return Attack(f"PNG with chunk {place} ({kind!r}): {way}")


def png_pixels(random: Random, folder: Path) -> Attack:
    """Write fewer or more pixels than the header says, or others after them, in a good stream."""
    chunks = _chunks(_png(random, mode="L"))
    pixels = zlib.decompress(b"".join(value for kind, value in chunks if kind == b"IDAT"))
    n = random.choice([0, 1, len(pixels) // 2, len(pixels) - 31, len(pixels) + 31, 3_000_000])
    data = zlib.compress((pixels * (n // len(pixels) + 1))[:n])
    (folder / "case.png").write_bytes(_join([chunks[0], (b"IDAT", data), (b"IEND", b"")]))
    return Attack(f"PNG with {n} of {len(pixels)} bytes of pixels", must_fail=n < len(pixels))


def png_mode(random: Random, folder: Path) -> Attack:
    """Write an unusual kind of PNG, or an unusual size."""
    mode = random.choice(["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "Pa"])
    size = random.choice([SIZE, SIZE, (1, 1), (2000, 1), (1, 40), (14, 14), (13, 200)])
    (folder / "case.png").write_bytes(_png(random, mode, size))
    return Attack(f"PNG of mode {mode}, {size[0]} x {size[1]}")


def animated(random: Random, folder: Path) -> Attack:
    """Write several pictures into one file."""
    frames = [_picture("L", SIZE, seed) for seed in range(3)]
    kind, suffix = random.choice([("PNG", "png"), ("GIF", "png"), ("TIFF", "png"), ("GIF", "jpg")])
    frames[0].save(folder / f"case.{suffix}", kind, save_all=True, append_images=frames[1:])
    return Attack(f"{kind} of 3 pictures as .{suffix}", must_fail=True)


def large(random: Random, folder: Path) -> Attack:
    """Declare far more pixels than the file holds."""
    edge = random.choice([20_000, 65_535, 1_000_000])
    header = (b"IHDR", struct.pack(">IIBBBBB", edge, edge, 8, 0, 0, 0, 0))
    data = (b"IDAT", zlib.compress(bytes(1_000_000), 9))
    (folder / "case.png").write_bytes(_join([header, data, (b"IEND", b"")]))
    return Attack(f"PNG that promises {edge} x {edge} pixels", must_fail=True)


def jpeg_damaged(random: Random, folder: Path) -> Attack:
    """Damage the bytes."""
    return _damaged(random, folder / random.choice(["case.jpg", "case.jpeg", "case.JPG"]), _jpeg(random))


def jpeg_truncated(random: Random, folder: Path) -> Attack:
    """Cut off the end, and with it pixels; some close the file again."""
    content = _jpeg(random)
    n = random.randrange(len(content) * 9 // 10)
    end = random.choice([b"", b"", b"\xff\xd9"])
    (folder / "case.jpg").write_bytes(content[:n] + end)
    return Attack(f"JPEG of {n} of {len(content)} bytes, then {end!r}", must_fail=not end)


def jpeg_segments(random: Random, folder: Path) -> Attack:
    """Drop, double, move or damage a segment of the header, or its claimed length."""
    segments, scan = _segments(_jpeg(random))
    place = random.randrange(len(segments))
    segment = segments[place]
    way = random.choice(["drop", "double", "move", "damage", "length"])
    if way in ("drop", "move"):
        del segments[place]
    if way in ("double", "move"):
        segments.insert(random.randrange(len(segments) + 1), segment)
    elif way == "damage":
        segments[place] = segment[:4] + damage(random, segment[4:] or b"\0")[0]
    elif way == "length":
        segments[place] = segment[:2] + random.choice([b"\0\0", b"\0\1", b"\0\2", b"\xff\xff"]) + segment[4:]
    (folder / "case.jpg").write_bytes(b"\xff\xd8" + b"".join(segments) + scan)
    return Attack(f"JPEG with segment {segment[:2].hex()}: {way}")


def jpeg_mode(random: Random, folder: Path) -> Attack:
    """Write an unusual kind of JPEG."""
    mode = random.choice(["L", "RGB", "CMYK", "YCbCr"])
    options: dict[str, Any] = {"progressive": random.random() < 0.5, "quality": random.choice([1, 50, 95])}
    exif = Image.Exif()
    exif[274] = random.choice([0, 1, 3, 6, 8, 9])  # orientation
    size = random.choice([SIZE, (1, 1), (300, 3)])
    _picture(mode, size, 1).save(folder / "case.jpg", "JPEG", exif=exif, **options)
    return Attack(f"JPEG of mode {mode}, {size[0]} x {size[1]}, orientation {exif[274]}, {options}")


def jpeg_size(random: Random, folder: Path) -> Attack:
    """Declare a wrong number of rows or columns."""
    segments, scan = _segments(_jpeg(random))
    place = next(n for n, each in enumerate(segments) if each[1] in (0xC0, 0xC2))
    rows, columns = random.choice([(0, 30), (24, 0), (65535, 65535), (240, 30), (24, 300), (1, 1), (25, 31)])
    segments[place] = segments[place][:5] + struct.pack(">HH", rows, columns) + segments[place][9:]
    (folder / "case.jpg").write_bytes(b"\xff\xd8" + b"".join(segments) + scan)
    return Attack(f"JPEG that promises {columns} x {rows} pixels")


def other_content(random: Random, folder: Path) -> Attack:
    """Write something else under the name of a picture."""
    suffix = random.choice(["png", "jpg"])
    kind = random.choice(["GIF", "TIFF", "BMP", "PPM", "WEBP", "swapped", "text", "empty", "random", "svg", "eps"])
    path, picture = folder / f"case.{suffix}", _picture("L", SIZE, 1)
    contents = {
        "text": b"no picture\n" * 20,
        "empty": b"",
        "random": random.randbytes(500),
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 24\n(/etc/passwd) (r) file\n",
    }
    if kind in contents:
        path.write_bytes(contents[kind])
    else:
        picture.save(path, {"swapped": "PNG" if suffix == "jpg" else "JPEG"}.get(kind, kind))
    return Attack(f"{kind} as .{suffix}", must_fail=kind in contents)


def _damaged(random: Random, path: Path, content: bytes) -> Attack:
    changed, what = damage(random, content)
    path.write_bytes(changed)
    return Attack(f"{path.name}, {what}")


def _picture(mode: str, size: tuple[int, int], seed: int) -> Image.Image:
    columns, rows = size
    generator = np.random.default_rng(seed)
    values = generator.integers(1, 255, (rows, columns, 4), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 200)
    colours = Image.fromarray(values[..., :3].copy())
    if mode == "Pa":
        palette = colours.quantize(16)
        palette.info["transparency"] = 3
        return palette
    return Image.fromarray(values).convert(mode) if mode in ("RGBA", "LA") else colours.convert(mode)


def _png(random: Random, mode: str = "", size: tuple[int, int] = SIZE) -> bytes:
    mode = mode or random.choice(["L", "RGB", "RGBA", "P", "I;16", "LA"])
    stream = io.BytesIO()
    picture = _picture(mode, size, 1)
    picture.save(stream, "PNG", **({"transparency": 3} if mode == "Pa" else {}))
    return stream.getvalue()


def _jpeg(random: Random) -> bytes:
    stream = io.BytesIO()
    picture = _picture(random.choice(["L", "RGB"]), SIZE, 1)
    picture.save(
        stream, "JPEG", quality=90, progressive=random.random() < 0.3, restart_marker_rows=random.choice([0, 1])
    )
    return stream.getvalue()


def _chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    found, place = [], len(PNG_START)
    while place < len(content):
        (n,) = struct.unpack_from(">I", content, place)
        found.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + n]))
        place += 12 + n
    return found


def _join(chunks: list[tuple[bytes, bytes]]) -> bytes:
    written = [
        struct.pack(">I", len(value)) + kind + value + struct.pack(">I", zlib.crc32(kind + value))
        for kind, value in chunks
    ]
    return PNG_START + b"".join(written)


def _segments(content: bytes) -> tuple[list[bytes], bytes]:
    """Return the segments between the start of a JPEG file and its first scan, and the rest."""
    found, place = [], 2
    while content[place + 1] != 0xDA:
        (n,) = struct.unpack_from(">H", content, place + 2)
        found.append(content[place : place + 2 + n])
        place += 2 + n
    return found, content[place:]
