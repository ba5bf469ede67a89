#!/usr/bin/env python3
"""`eval` and transformers' Trainer on k blocks of L tokens.

    trainer.py PROGRAM TOKENIZER_DIR TEXT        (pip install accelerate)

Trainer predicts L - 1 tokens of a block of L: none is predicted from the block before. Ours predicts the first token of
the next block from the whole of this one, too. With m the mean loss of the k (L - 1) predictions that both make, and E that
of the k - 1 others:

    ours (kL - 1) = m k (L - 1) + E (k - 1)

Trainer 5.24 reports m for classes whose name holds "ForCausalLM", and m (L - 1) / L for GPT2LMHeadModel, in which it does
not know the shift of the labels and divides by all L of them.
"""

import sys
import tempfile
from pathlib import Path

from common import compare, model_with, ours

import torch
from transformers import AutoTokenizer, GPT2LMHeadModel, Trainer, TrainingArguments


class GPT2ForCausalLM(GPT2LMHeadModel):
    """The same under a name that Trainer knows."""


def settings(folder, **more):
    return TrainingArguments(folder + "/t", report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no", **more)


def evaluated(model, data, folder):
    # Batches of 4: one block is left over, and Trainer weighs by blocks, not by batches.
    return Trainer(model, settings(folder, per_device_eval_batch_size=4), eval_dataset=data).evaluate()["eval_loss"]


def trained(model, data, folder):
    """The loss that it logs of a step that changes nothing, of two batches of 4."""
    args = settings(folder, per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=1, learning_rate=0.0,
                    logging_steps=1)
    trainer = Trainer(model, args, train_dataset=data[:8])
    trainer.train()
    return trainer.state.log_history[0]["loss"]


def main():
    program, tokenizer_dir, text = sys.argv[1:4]
    L, k = 64, 33
    with tempfile.TemporaryDirectory() as folder:
        model_with(tokenizer_dir, folder, L)
        # Without dropout, also while training.
        off = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = tokenizer(Path(text).read_text()[:100_000])["input_ids"][:L * k]
        part = Path(folder) / "part.txt"
        part.write_text(tokenizer.decode(ids))
        assert tokenizer(part.read_text())["input_ids"] == ids, "choose another text"
        blocks = torch.tensor(ids).view(k, L)
        data = [{"input_ids": block, "labels": block} for block in blocks]
        model = GPT2LMHeadModel.from_pretrained(folder, **off).eval()
        with torch.no_grad():
            log_p = model(blocks).logits.double().log_softmax(-1)
        each = -log_p[:, :-1].gather(2, blocks[:, 1:, None])[:, :, 0]
        m, E = each.mean().item(), -log_p[:-1, -1].gather(1, blocks[1:, :1]).mean().item()
        found = ours(program, folder, part, "--context", str(L))
        assert found["tokens"] == k * L - 1
        compare(f"ours, m {m:.6f}, E {E:.6f}", found["nll"], (m * k * (L - 1) + E * (k - 1)) / (k * L - 1), 2e-5)
        for kind, share in [(GPT2LMHeadModel, (L - 1) / L), (GPT2ForCausalLM, 1.0)]:
            model = kind.from_pretrained(folder, **off).eval()
            compare(f"{kind.__name__}: eval_loss and m * {share:.6f}", evaluated(model, data, folder), m * share, 2e-5)
            step = each[:8].mean().item()
            compare(f"{kind.__name__}: training loss and the same of its step", trained(model, data, folder), step * share, 1e-4)


main()
