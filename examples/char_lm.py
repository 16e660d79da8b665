"""A character-level transformer on text that comes with Python: SIBP, AutoSIBP, ProxBP in Adam, and AdamW.

The text is Python's language reference in `pydoc_data.topics` (PSF licence); nothing is downloaded. The loss is a mean
over B T tokens, so `loss_average` is B T. Attention consists of `nn.Linear`s, because `nn.MultiheadAttention` uses its
weights without calling its layers, which leaves them to the fallback. docs/language-model.md has tuned runs.

Expected output:

    SIBP perplexity: 173.1 -> 26.5
    AutoSIBP perplexity: 173.1 -> 14.4
    ProxBP in Adam perplexity: 173.1 -> 17.4
    AdamW perplexity: 173.1 -> 20.5
"""

import math
from functools import partial
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from sibp import SIBP, AutoSIBP, ProxBP

DATA = torch.tensor(list("".join(topics[key] for key in sorted(topics)).encode("ascii", "ignore")[:200_000]))
LETTERS, B, T, WIDTH, STEPS = 128, 8, 32, 64, 40


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (4, -1)).transpose(1, 2) for part in self.qkv(self.norms[0](x)).chunk(3, 2))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(LETTERS, WIDTH), nn.Embedding(T, WIDTH)
        self.blocks, self.norm = nn.Sequential(Block(), Block()), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, LETTERS)

    def forward(self, rows: Tensor) -> Tensor:
        x = self.letters(rows[:, :-1]) + self.places.weight
        return F.cross_entropy(self.head(self.norm(self.blocks(x))).flatten(0, 1), rows[:, 1:].flatten())


def train(name: str) -> None:
    torch.manual_seed(0)
    model, adamw, losses = Transformer(), partial(torch.optim.AdamW, lr=1e-2), []
    if name == "SIBP":
        optimizer = SIBP(model, lr=1.0, prox_weight=100.0, solver="cg:3", loss_average=B * T, fallback=adamw)
    elif name == "AutoSIBP":
        optimizer = AutoSIBP(model, loss_average=B * T, fallback=adamw)
    else:
        optimizer = adamw(model.parameters())
        if name == "ProxBP in Adam":
            ProxBP(model, lr=1.0, prox_weight=100.0, loss_average=B * T, direction_only=True)
    scheduler = LambdaLR(optimizer, lambda step: min((step + 1) / 10, 0.5 + 0.5 * math.cos(math.pi * step / STEPS)))
    for _ in range(STEPS):
        rows = torch.stack([DATA[i : i + T + 1] for i in torch.randint(len(DATA) - T, (B,)).tolist()])
        optimizer.zero_grad()
        loss = model(rows)
        loss.backward()
        optimizer.step(**({"evaluate": lambda rows=rows: model(rows), "loss": loss} if name == "AutoSIBP" else {}))
        scheduler.step()
        losses.append(loss.item())
    print(f"{name} perplexity: {math.exp(losses[0]):.1f} -> {math.exp(sum(losses[-5:]) / 5):.1f}")


if __name__ == "__main__":
    for each in ("SIBP", "AutoSIBP", "ProxBP in Adam", "AdamW"):
        train(each)
