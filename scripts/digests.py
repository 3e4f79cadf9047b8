"""Digests of tensors, the same whatever file they came in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

CONVERTED_DIGEST = "0edff7cf2452b33c9791c27b6d03eb610ff64870f34c0a61a3fa3663c97aafe0"  # of dinov2_vits14


def tensor_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Compute the SHA-256 over names, types, shapes and values of tensors, whatever their order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
