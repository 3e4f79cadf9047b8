"""Truncated stick breaking: component weights from stick fractions with a Beta(1, alpha) prior."""

from __future__ import annotations

import torch


def log_stick_weights(fractions: torch.Tensor) -> torch.Tensor:
    """Compute log weights ``log(v_k prod_{j<k} (1 - v_j))``, not normalised: the weights may sum to less than 1.

    Args:
        fractions: stick fractions v ``[K]`` in [0,1].

    Returns:
        ``[K]``, minus infinity for a component without weight.
    """
    log_remaining = torch.log1p(-fractions).cumsum(0)
    return fractions.log() + torch.cat([torch.zeros_like(log_remaining[:1]), log_remaining[:-1]])


def update_fractions(resp: torch.Tensor, concentration: torch.Tensor, n_samples: int) -> torch.Tensor:
    """Compute most probable fractions ``v_k = R_k / (R_k + (alpha - 1) / n + T_k + eps)``, ``T_k = sum_{j>k} R_j``.

    Args:
        resp: running mean responsibilities R ``[K]``.
        concentration: alpha, a scalar tensor.
        n_samples: batch size n.

    Returns:
        Fractions ``[K]`` in [0,1].
    """
    eps = torch.finfo(torch.float32).eps
    resp = resp.double()
    denominator = resp + (concentration.double() - 1) / n_samples + _mass_after(resp) + eps
    return (resp / denominator).clamp(0, 1).float()


def update_concentration(resp: torch.Tensor, concentration: torch.Tensor, n_samples: int) -> torch.Tensor:
    """Compute the next alpha, ``(K-1) / sum_{k<K} [digamma(n (R_k + T_k) + alpha + 1) - digamma(n T_k + alpha)]``.

    Args:
        resp: running mean responsibilities R ``[K]``.
        concentration: the present alpha, a scalar tensor.
        n_samples: batch size n.

    Returns:
        A scalar tensor; the present alpha if there is a single component.
    """
    if len(resp) == 1:
        return concentration
    resp, alpha = resp.double(), concentration.double()
    after = _mass_after(resp)
    gain = torch.digamma(n_samples * (resp + after) + alpha + 1) - torch.digamma(n_samples * after + alpha)
    return ((len(resp) - 1) / gain[:-1].sum()).float()


def _mass_after(resp: torch.Tensor) -> torch.Tensor:
    return resp.flip(0).cumsum(0).flip(0) - resp
