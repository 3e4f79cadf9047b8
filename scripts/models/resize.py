"""Resizing as products with matrices of weights.

The same numbers come out of eager mode, TorchScript and every runtime that reads ONNX, whatever the size of an image
and whether the runtime knows antialiasing. Nothing here branches on a size, for an export would keep one way only;
hence ``n + m + abs(n - m)`` for twice the larger of two sizes.
"""

import torch


def linear_weights(n_in: int, n_out: int, like: torch.Tensor) -> torch.Tensor:
    """Linear interpolation with antialiasing, of pixels that are areas.

    Args:
        n_in: samples along an axis.
        n_out: samples wanted along it.
        like: has the dtype and device.

    Returns:
        ``[n_out,n_in]``, rows that sum to 1.
    """
    weights = (1 - _distances(n_in, n_out, like)).clamp(min=0)
    return (weights / weights.sum(1, keepdim=True)).to(like)


def resize(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Images ``[B,C,H,W]`` -> ``[B,C,height,width]``, linearly with antialiasing."""
    rows, columns = linear_weights(images.shape[2], height, images), linear_weights(images.shape[3], width, images)
    return rows @ images @ columns.T


def repeat_last(weights: torch.Tensor, multiple: int) -> torch.Tensor:
    """Weights ``[n,m]`` -> the same with the last row repeated, up to a whole multiple of rows."""
    n = weights.shape[0]
    rows = torch.arange((n + multiple - 1) // multiple * multiple, device=weights.device)
    return weights[rows.clamp(max=n - 1)]


def cubic_weights(n_in: int, n_out: int, like: torch.Tensor) -> torch.Tensor:
    """As `linear_weights`, with the cubic kernel of -0.5."""
    weights = cubic_kernel(_distances(n_in, n_out, like), -0.5)
    return (weights / weights.sum(1, keepdim=True)).to(like)


def cubic_point_weights(n_in: int, n_out: int, scale: float, like: torch.Tensor) -> torch.Tensor:
    """Cubic interpolation without antialiasing, the cubic kernel of -0.75, the border repeated.

    Args:
        n_in: samples along an axis.
        n_out: samples wanted along it.
        scale: by how much the samples come to lie closer; ``n_out / n_in`` or about that.
        like: has the dtype and device.

    Returns:
        ``[n_out,n_in]``, rows that sum to 1.
    """
    centres = (torch.arange(n_out, device=like.device) + 0.5) / scale - 0.5
    before = centres.floor()
    samples = torch.arange(n_in, device=like.device)
    weights = torch.zeros_like(centres.unsqueeze(1) * samples)
    for tap in (-1, 0, 1, 2):
        place = (before + tap).clamp(0, n_in - 1)
        weights = weights + cubic_kernel((centres - before - tap).abs(), -0.75).unsqueeze(1) * (
            place.unsqueeze(1) == samples
        )
    return weights.to(like)


def cubic_kernel(distances: torch.Tensor, a: float) -> torch.Tensor:
    """Convolution kernel of Keys (1981), of distances in samples, not negative."""
    near = ((a + 2) * distances - (a + 3)) * distances.square() + 1
    far = (((distances - 5) * distances + 8) * distances - 4) * a
    return torch.where(distances <= 1, near, torch.where(distances < 2, far, torch.zeros_like(far)))


def _distances(n_in: int, n_out: int, like: torch.Tensor) -> torch.Tensor:
    """Distances ``[n_out,n_in]`` between the middles of new and old samples, in units of the larger of them."""
    new = torch.arange(n_out, device=like.device) * 2 + 1
    old = torch.arange(n_in, device=like.device) * 2 + 1
    return (new.unsqueeze(1) * n_in - old * n_out).abs() / (n_in + n_out + abs(n_in - n_out))
