"""A residual network with batch norm: convolutions are solved for, batch norm goes to the fallback.

`print(optimizer.summary())` says for every layer how it is updated. A convolution followed by batch norm has a linear
subproblem, since its activation comes after the norm. The fallback, Adam with learning rate 0.001 unless `fallback=`
makes another, as here, trains the norms. AutoSIBP's trials restore running statistics.

Expected output:

    AutoSIBP:
    layer        kind         parameters  followed by  solver  update
    -----------  -----------  ----------  -----------  ------  --------
    stem         Conv2d       8x1x3x3     -            exact   proximal
    norm         BatchNorm2d  8, 8        -            -       explicit
    first.conv   Conv2d       8x8x3x3     -            exact   proximal
    first.norm   BatchNorm2d  8, 8        -            -       explicit
    second.conv  Conv2d       8x8x3x3     -            exact   proximal
    second.norm  BatchNorm2d  8, 8        -            -       explicit
    out          Linear       10x128, 10  -            exact   proximal
    loss: 2.589 -> 0.035
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sibp import AutoSIBP


class Block(nn.Module):
    """x + relu(norm(conv(x)))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.norm(self.conv(x)))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.first, self.second = Block(8), Block(8)
        self.out = nn.Linear(8 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.out(self.second(self.first(x)).flatten(1))


def main() -> None:
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels)
    model = ResNet()
    optimizer = AutoSIBP(model, fallback=lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9))
    first = F.cross_entropy(model(x), y).item()
    for _ in range(2):
        for rows in torch.randperm(len(x)).split(100):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step(evaluate=lambda rows=rows: F.cross_entropy(model(x[rows]), y[rows]), loss=loss)
    model.eval()
    print(optimizer.summary())
    print(f"loss: {first:.3f} -> {F.cross_entropy(model(x), y).item():.3f}")


if __name__ == "__main__":
    main()
