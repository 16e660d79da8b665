"""LoRA by peft: SIBP and AutoSIBP train the adapters alone.

`get_peft_model` freezes the model's own layers and adds two small `nn.Linear`s to each. These are solved for, and
frozen layers pass the ordinary error signal on. An adapter's second layer is zero at the start, so the first one gets
no error signal in the first step; after that, both move. With `backward_weights="old"` the error signal is that of
ordinary back propagation. Make the optimizer after `get_peft_model`.

Expected output:

    parameters that are trained: 1674 of 8970
    SIBP loss: 2.304 -> 0.320
    AutoSIBP loss: 2.304 -> 0.060
    the model's own weights moved: False
"""

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from sklearn.datasets import load_digits
from torch import nn

from sibp import SIBP, AutoSIBP


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


def main() -> None:
    x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
    x = x.float() / 16
    for name in ("SIBP", "AutoSIBP"):
        torch.manual_seed(0)
        base = Net()
        own = [p.clone() for p in base.parameters()]
        config = LoraConfig(r=4, lora_alpha=8, target_modules=["first", "second"], modules_to_save=["head"])
        model = get_peft_model(base, config)
        if name == "SIBP":
            optimizer = SIBP(model, lr=1.0, prox_weight=10.0, solver="exact", backward_weights="old")
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            print(f"parameters that are trained: {trained} of {sum(p.numel() for p in own)}")
        else:
            optimizer = AutoSIBP(model)
        first = F.cross_entropy(model(x), y).item()
        for _ in range(6):
            for rows in torch.randperm(len(x)).split(100):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x[rows]), y[rows])
                loss.backward()
                if name == "SIBP":
                    optimizer.step()
                else:
                    optimizer.step(evaluate=lambda m=model, r=rows: F.cross_entropy(m(x[r]), y[r]), loss=loss)
        print(f"{name} loss: {first:.3f} -> {F.cross_entropy(model(x), y).item():.3f}")
    base = model.unload()
    print(f"the model's own weights moved: {not all(map(torch.equal, own[:4], list(base.parameters())[:4]))}")


if __name__ == "__main__":
    main()
