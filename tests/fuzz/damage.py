"""Damage to the bytes of any format."""

from __future__ import annotations

from random import Random


def damage(random: Random, content: bytes) -> tuple[bytes, str]:
    """Damage bytes in one of several ways.

    Returns:
        The damaged bytes, and a description of the damage.
    """
    way = random.choice([flip, flip, truncate, zero, insert, repeat, append, remove])
    damaged, where = way(random, content)
    return damaged, f"{way.__name__} {where}"


def flip(random: Random, content: bytes) -> tuple[bytes, str]:
    """Replace single bytes by others."""
    damaged = bytearray(content)
    places = [random.randrange(len(content)) for _ in range(random.choice([1, 1, 2, 8, 64]))]
    for place in places:
        damaged[place] ^= random.randrange(1, 256)
    return bytes(damaged), f"{len(places)} bytes from {min(places)} to {max(places)}"


def truncate(random: Random, content: bytes) -> tuple[bytes, str]:
    """Cut the end off."""
    n = random.choice([0, 1, len(content) // 2, len(content) - 1, random.randrange(len(content))])
    return content[:n], f"after {n} of {len(content)} bytes"


def zero(random: Random, content: bytes) -> tuple[bytes, str]:
    """Overwrite a block with zeros, as a damaged disk does."""
    start, n = _block(random, content)
    return content[:start] + bytes(n) + content[start + n :], f"{n} bytes from {start}"


def insert(random: Random, content: bytes) -> tuple[bytes, str]:
    """Insert random bytes."""
    start, n = random.randrange(len(content)), random.choice([1, 2, 100])
    return content[:start] + random.randbytes(n) + content[start:], f"{n} bytes at {start}"


def repeat(random: Random, content: bytes) -> tuple[bytes, str]:
    """Write a block twice."""
    start, n = _block(random, content)
    return content[: start + n] + content[start:], f"{n} bytes from {start}"


def append(random: Random, content: bytes) -> tuple[bytes, str]:
    """Add random bytes, or the content once more."""
    more = random.choice([content, random.randbytes(100), b"\0", b"\r\n"])
    return content + more, f"{len(more)} bytes"


def remove(random: Random, content: bytes) -> tuple[bytes, str]:
    """Leave a block out."""
    start, n = _block(random, content)
    return content[:start] + content[start + n :], f"{n} bytes from {start}"


def _block(random: Random, content: bytes) -> tuple[int, int]:
    start = random.randrange(len(content))
    return start, random.randint(1, min(512, len(content) - start))
