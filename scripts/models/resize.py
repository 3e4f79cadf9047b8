"""Resizing as matrix products.

Eager mode, TorchScript and every ONNX runtime give the same numbers for every image size, even without support for
antialiasing. No code branches on a size, since an export would keep one branch only; hence ``n + m + abs(n - m)`` for
twice the larger of two sizes.
"""

import torch


def linear_weights(n_in: int, n_out: int, like: torch.Tensor) -> torch.Tensor:
    """Compute weights of linear interpolation with antialiasing; pixels are areas.

    Args:
        n_in: input samples along an axis.
        n_out: output samples along it.
        like: tensor with the dtype and device.

    Returns:
        ``[n_out,n_in]``, rows that sum to 1.
    """
    weights = (1 - _distances(n_in, n_out, like)).clamp(min=0)
    return (weights / weights.sum(1, keepdim=True)).to(like)


def gaussian_weights(n: int, sigma: float, like: torch.Tensor) -> torch.Tensor:
    """Compute weights of smoothing with a Gaussian that ends at the border.

    Args:
        n: samples along an axis.
        sigma: standard deviation in samples, above 0.
        like: tensor with the dtype and device.

    Returns:
        ``[n,n]``, rows that sum to 1.
    """
    positions = torch.arange(n, device=like.device)
    weights = ((positions.unsqueeze(1) - positions) / sigma).square().mul(-0.5).exp()
    return (weights / weights.sum(1, keepdim=True)).to(like)


def resize(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize images ``[B,C,H,W]`` to ``[B,C,height,width]``, linearly with antialiasing."""
    rows, columns = linear_weights(images.shape[2], height, images), linear_weights(images.shape[3], width, images)
    return rows @ images @ columns.T


def repeat_last(weights: torch.Tensor, multiple: int) -> torch.Tensor:
    """Repeat the last row of weights ``[n,m]`` up to a whole multiple of rows."""
    n = weights.shape[0]
    rows = torch.arange((n + multiple - 1) // multiple * multiple, device=weights.device)
    return weights[rows.clamp(max=n - 1)]


def cubic_weights(n_in: int, n_out: int, like: torch.Tensor) -> torch.Tensor:
    """Compute weights as `linear_weights` does, with the cubic kernel of ``a = -0.5``."""
    weights = cubic_kernel(_distances(n_in, n_out, like), -0.5)
    return (weights / weights.sum(1, keepdim=True)).to(like)


def cubic_point_weights(n_in: int, n_out: int, scale: float, like: torch.Tensor) -> torch.Tensor:
    """Compute weights of cubic interpolation without antialiasing, with ``a = -0.75`` and a repeated border.

    Args:
        n_in: input samples along an axis.
        n_out: output samples along it.
        scale: density of the output samples relative to the input; ``n_out / n_in`` or about that.
        like: tensor with the dtype and device.

    Returns:
        ``[n_out,n_in]``, rows that sum to 1.
    """
    centres = (torch.arange(n_out, device=like.device) + 0.5) / scale - 0.5
    before = centres.floor()
    samples = torch.arange(n_in, device=like.device)
    weights = torch.zeros_like(centres.unsqueeze(1) * samples)
    for tap in (-1, 0, 1, 2):
        index = (before + tap).clamp(0, n_in - 1)
        weights = weights + cubic_kernel((centres - before - tap).abs(), -0.75).unsqueeze(1) * (
            index.unsqueeze(1) == samples
        )
    return weights.to(like)


def cubic_kernel(distances: torch.Tensor, a: float) -> torch.Tensor:
    """Evaluate the cubic convolution kernel (Keys, 1981, eq. 4) at distances in samples, not negative."""
    near = ((a + 2) * distances - (a + 3)) * distances.square() + 1
    far = (((distances - 5) * distances + 8) * distances - 4) * a
    return torch.where(distances <= 1, near, torch.where(distances < 2, far, torch.zeros_like(far)))


def _distances(n_in: int, n_out: int, like: torch.Tensor) -> torch.Tensor:
    """Compute distances ``[n_out,n_in]`` between the centres of samples, in units of the larger sample."""
    new = torch.arange(n_out, device=like.device) * 2 + 1
    old = torch.arange(n_in, device=like.device) * 2 + 1
    return (new.unsqueeze(1) * n_in - old * n_out).abs() / (n_in + n_out + abs(n_in - n_out))
