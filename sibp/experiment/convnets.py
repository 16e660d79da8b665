"""Built-in convolutional networks: plain torch modules."""

from torch import Tensor, nn

from sibp.runs.errors import UserError


def lenet(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """A network like LeNet-5 (LeCun et al. 1998), with ReLU and maximum pooling.

    Args:
        shape: one image's shape, (channels, height, width), both sides a multiple of 4.
        classes: number of outputs.

    Returns:
        conv 6 of 5x5, pool, conv 16 of 5x5, pool, then 120-84-classes.

    Raises:
        UserError: the image cannot be halved twice.
    """
    channels, height, width = _halves(shape, "lenet", times=2)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * (height // 4) * (width // 4), 120), nn.ReLU(),
        nn.Linear(120, 84), nn.ReLU(),
        nn.Linear(84, classes),
    )  # fmt: skip


def proxprop_convnet(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """The ConvNet of the ProxBP experiments (Frerix et al. 2018, as in its authors' published code).

    Args:
        shape: one image's shape, (channels, height, width), both sides a multiple of 4.
        classes: number of outputs.

    Returns:
        conv 16, pool, conv 20, pool, conv 20, all 5x5 with padding 2 and ReLU, then one linear layer.

    Raises:
        UserError: the image cannot be halved twice.
    """
    channels, height, width = _halves(shape, "proxprop_convnet", times=2)
    return nn.Sequential(
        nn.Conv2d(channels, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 20, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(20, 20, 5, padding=2), nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20 * (height // 4) * (width // 4), classes),
    )  # fmt: skip


def resnet8(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """The smallest of the residual networks for small images (He et al. 2016, section 4.2, n = 1).

    Args:
        shape: one image's shape, (channels, height, width).
        classes: number of outputs.

    Returns:
        A 3x3 convolution, one residual block each of 16, 32 and 64 channels, the mean over positions, a linear layer.
    """
    return nn.Sequential(
        nn.Conv2d(shape[0], 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
        ResidualBlock(16, 16), ResidualBlock(16, 32, stride=2), ResidualBlock(32, 64, stride=2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(64, classes),
    )  # fmt: skip


class ResidualBlock(nn.Module):
    """relu(f(x) + shortcut(x)), f two 3x3 convolutions with batch norm."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, channels_in, height, width) to (B, channels, height/stride, width/stride)."""
        h = self.relu(self.norm1(self.conv1(x)))
        return self.relu(self.norm2(self.conv2(h)) + self.shortcut(x))


def _halves(shape: tuple[int, ...], name: str, times: int) -> tuple[int, int, int]:
    channels, height, width = shape
    unit = 2**times
    if height % unit or width % unit:
        raise UserError(
            f"model={name} halves its images {times} times, which {height}x{width} does not allow: "
            f"use a dataset whose sides are multiples of {unit}."
        )
    return channels, height, width
