"""The Hugging Face Trainer: a small GPT-2, built from a config, learns to count; nothing is downloaded.

The loss of a language model is a mean over tokens, of which there are more than rows, so SIBP has to know their number:
`optimizer.loss_average`. The Trainer averages over all tokens of a step, accumulated batches together, and counts them
(`num_items_in_batch`). Its `compute_loss` is the place to hand that number on: four lines.

GPT-2's `Conv1D` is solved for like `nn.Linear`; embeddings, layer norms and the tied output go to the fallback. The
scheduler that the Trainer makes is given the optimizer, and `lr` follows it, as does the fallback's.

For AutoSIBP, whose `step` evaluates the loss again, write the loop yourself, as in accelerate_loop.py.

Expected output:

    layers that are solved for: 8
    loss: 3.04 -> 0.60
    1 2 3 4 is followed by: 5 6 7 8
"""

import logging

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, Trainer, TrainingArguments

from sibp import SIBP

WORDS, LENGTH = 20, 12


class TokenMeanTrainer(Trainer):
    """Tells the optimizer over how many tokens the loss averages."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        counted = (inputs["labels"][:, 1:] != -100).sum() if num_items_in_batch is None else num_items_in_batch
        if self.optimizer is not None:
            self.optimizer.optimizer.loss_average = int(counted)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def count_from(starts: Tensor) -> list[dict[str, Tensor]]:
    """Rows that count on from a start, modulo the number of words; the labels of the first three are ignored."""
    rows = (starts[:, None] + torch.arange(LENGTH)) % WORDS
    labels = rows.clone()
    labels[:, :3] = -100
    return [{"input_ids": row, "labels": label} for row, label in zip(rows, labels, strict=True)]


def main() -> None:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=WORDS, n_positions=LENGTH, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    optimizer = SIBP(model, lr=0.3, prox_weight=10.0, solver="cg:2", fallback=lambda p: torch.optim.Adam(p, lr=1e-2))
    print(f"layers that are solved for: {sum(line.endswith('proximal') for line in optimizer.summary().splitlines())}")
    rows = count_from(torch.randint(WORDS, (512,)))
    everything = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}

    def loss() -> float:
        with torch.no_grad():
            return model(**everything).loss.item()

    first = loss()
    arguments = TrainingArguments(
        "trainer", per_device_train_batch_size=16, gradient_accumulation_steps=2, num_train_epochs=4, max_grad_norm=5.0,
        lr_scheduler_type="cosine", warmup_steps=4, report_to=[], save_strategy="no", logging_strategy="no",
        disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = TokenMeanTrainer(model, arguments, train_dataset=rows, optimizers=(optimizer, None))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    print(f"loss: {first:.2f} -> {loss():.2f}")
    words = torch.tensor([[1, 2, 3, 4]])
    for _ in range(4):
        words = torch.cat([words, model(words).logits[:, -1:].argmax(2)], 1)
    print("1 2 3 4 is followed by: " + " ".join(map(str, words[0, 4:].tolist())))


if __name__ == "__main__":
    main()
