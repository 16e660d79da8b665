"""The Hugging Face Trainer: a small GPT-2, built from a config, learns to count; nothing is downloaded.

The loss of a language model is a mean over tokens, and `loss_average` is their number. The Trainer counts the tokens
of all accumulated batches and passes the number to `training_step`. AutoSIBP re-evaluates the loss of these batches:
`get_batch_samples` captures them, and a hook adds `evaluate` to the Trainer's calls of `step()`. GPT-2's `Conv1D` is
solved for like `nn.Linear`. Embeddings, norms and the tied output go to the fallback, whose `lr` follows the schedule
in proportion. There is no warm-up: where SIBP needs one, `lr` is too high. `max_grad_norm` clips displacements, to a
norm of 1.0 by default.

Expected output:

    SIBP loss: 3.05 -> 0.16
    AutoSIBP loss: 3.05 -> 0.07
    layers that are solved for: 8
    1 2 3 4 is followed by: 5 6 7 8
"""

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, Trainer, TrainingArguments

from sibp import SIBP, AutoSIBP

WORDS, LENGTH = 20, 12


class ProximalTrainer(Trainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        self.optimizer.optimizer.loss_average = int(num_items_in_batch)
        return super().training_step(model, inputs, num_items_in_batch)

    def get_batch_samples(self, *arguments):
        self.batches, self.tokens = super().get_batch_samples(*arguments)
        return self.batches, self.tokens

    def loss_again(self):
        inputs = map(self._prepare_inputs, self.batches)
        return sum(self.compute_loss(self.model, each, num_items_in_batch=self.tokens) for each in inputs)

    def add_evaluate(self, optimizer, args, kwargs):
        return args, {**kwargs, "evaluate": self.loss_again}


def count_from(starts: Tensor) -> dict[str, Tensor]:
    """Rows that count on from a start, modulo the number of words; the labels of the first three are ignored."""
    rows = (starts[:, None] + torch.arange(LENGTH)) % WORDS
    return {"input_ids": rows, "labels": rows.masked_fill(torch.arange(LENGTH) < 3, -100)}


def main() -> None:
    everything = count_from(torch.arange(320) % WORDS)
    rows = [dict(zip(everything, row, strict=True)) for row in zip(*everything.values(), strict=True)]
    size = {"vocab_size": WORDS, "n_positions": LENGTH, "n_embd": 32, "n_layer": 2, "n_head": 2}
    config = GPT2Config(**size, bos_token_id=0, eos_token_id=0, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    arguments = TrainingArguments(
        "trainer", per_device_train_batch_size=10, gradient_accumulation_steps=2, num_train_epochs=4, max_grad_norm=5.0,
        lr_scheduler_type="cosine", report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    for name in ("SIBP", "AutoSIBP"):
        torch.manual_seed(0)
        model, fallback = GPT2LMHeadModel(config), {"fallback": lambda params: torch.optim.Adam(params, lr=1e-2)}
        first = model(**everything).loss.item()
        if name == "SIBP":
            optimizer = SIBP(model, lr=0.1, prox_weight=10.0, solver="exact", **fallback)
        else:
            optimizer = AutoSIBP(model, **fallback)
        trainer = ProximalTrainer(model, arguments, train_dataset=rows, optimizers=(optimizer, None))
        if name == "AutoSIBP":
            optimizer.register_step_pre_hook(trainer.add_evaluate)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        print(f"{name} loss: {first:.2f} -> {model(**everything).loss.item():.2f}")
    counted = model.generate(torch.tensor([[1, 2, 3, 4]]), max_new_tokens=4, do_sample=False, pad_token_id=0)
    print("layers that are solved for:", optimizer.summary().count("proximal"))
    print("1 2 3 4 is followed by:", *counted[0, 4:].tolist())


if __name__ == "__main__":
    main()
