"""A character-level transformer on text that Python brings along: SIBP, AutoSIBP, ProxBP in Adam, and AdamW.

The text is the language reference in `pydoc_data.topics` (Python's documentation, PSF licence): nothing is downloaded.
Every method sees the same first weights and the same batches; AdamW, and Adam around ProxBP, have warm-up and a cosine.
The loss is a mean over tokens, of which a batch has B T: `loss_average`. Projections of attention are `nn.Linear`s of
one's own: `nn.MultiheadAttention` uses its weights without calling its layers, which would leave them to the fallback.

One run each, with settings that were not tuned, says that they train, not which is best.

Expected output:

    SIBP perplexity: 111.1 -> 18.5
    SIBP: 10240 characters in 12.0 s
    AutoSIBP perplexity: 111.1 -> 16.9
    AutoSIBP: 10240 characters in 7.2 s
    ProxBP in Adam perplexity: 111.1 -> 17.4
    ProxBP in Adam: 10240 characters in 5.7 s
    AdamW perplexity: 111.1 -> 18.8
    AdamW: 10240 characters in 2.5 s
"""

import math
import time
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from sibp import SIBP, AutoSIBP, ProxBP

TEXT = "".join(topics[key] for key in sorted(topics))[:200_000]
LETTERS = sorted(set(TEXT))
DATA = torch.tensor([LETTERS.index(letter) for letter in TEXT])
B, T, WIDTH, STEPS = 8, 32, 64, 40


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (4, -1)).transpose(1, 2) for part in self.qkv(self.norms[0](x)).chunk(3, 2))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(len(LETTERS), WIDTH), nn.Embedding(T, WIDTH)
        self.blocks, self.norm = nn.Sequential(Block(), Block()), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, len(LETTERS))

    def forward(self, rows: Tensor) -> Tensor:
        """The mean loss of all characters but the first of rows (B, T + 1)."""
        x = self.letters(rows[:, :-1]) + self.places.weight
        return F.cross_entropy(self.head(self.norm(self.blocks(x))).flatten(0, 1), rows[:, 1:].flatten())


def warm_up_and_cosine(step: int) -> float:
    return min((step + 1) / 10, 0.5 + 0.5 * math.cos(math.pi * step / STEPS))


def train(name: str) -> None:
    torch.manual_seed(0)
    model, scheduler = Transformer(), None
    if name == "SIBP":
        own = {"fallback": lambda p: torch.optim.AdamW(p, lr=1e-2)}
        optimizer = SIBP(model, lr=1.0, prox_weight=100.0, solver="cg:3", loss_average=B * T, **own)
    elif name == "AutoSIBP":
        optimizer = AutoSIBP(model, loss_average=B * T, fallback=lambda p: torch.optim.AdamW(p, lr=1e-2))
    else:
        if name == "ProxBP in Adam":
            ProxBP(model, lr=1.0, prox_weight=100.0, loss_average=B * T, direction_only=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        scheduler = LambdaLR(optimizer, warm_up_and_cosine)
    losses, began = [], time.perf_counter()
    for _ in range(STEPS):
        rows = torch.stack([DATA[i : i + T + 1] for i in torch.randint(len(DATA) - T, (B,)).tolist()])
        optimizer.zero_grad()
        loss = model(rows)
        loss.backward()
        optimizer.step(**({"evaluate": lambda rows=rows: model(rows), "loss": loss} if name == "AutoSIBP" else {}))
        if scheduler is not None:
            scheduler.step()
        losses.append(loss.item())
    first, last = (math.exp(sum(part) / len(part)) for part in (losses[:1], losses[-5:]))
    print(f"{name} perplexity: {first:.1f} -> {last:.1f}")
    print(f"{name}: {STEPS * B * T} characters in {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    for each in ("SIBP", "AutoSIBP", "ProxBP in Adam", "AdamW"):
        train(each)
