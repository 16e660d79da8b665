"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for a network's inner matrices, AdamW for the rest."""

import torch
from torch import nn

from sibp.optim.together import Together


def build(model: nn.Module, *, lr: float, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    """Torch's Muon on the weights of linear layers but the last; AdamW on biases, norms, kernels and the last layer.

    So Muon's authors use it, but for convolutions: torch's takes two-dimensional weights only. Its steps are scaled to
    the size of AdamW's (0.2 sqrt(max(rows, columns)), Liu et al. 2025, arXiv 2502.16982), so that one `lr` serves both.

    Args:
        model: as configs name them.
        lr: step size of both.
        momentum: Muon's, with Nesterov's look-ahead.
        weight_decay: decoupled, of both.

    Returns:
        Both, as one optimizer.

    Raises:
        ValueError: torch has no Muon, the model no linear layer but its last, or a setting is out of range.
    """
    matrices = [m.weight for m in model.modules() if isinstance(m, nn.Linear)][:-1]
    if not matrices:
        raise ValueError("the model has no linear layer but its last, and Muon is for those inside")
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(f"Muon came with torch 2.9, and this is {torch.__version__}: upgrade torch")
    inside = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in inside]
    muon = torch.optim.Muon(matrices, lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw")
    return Together([muon, torch.optim.AdamW(rest, lr, weight_decay=weight_decay)])
