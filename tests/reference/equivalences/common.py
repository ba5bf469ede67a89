"""A small random GPT-2 that both sides read, and what our program says of it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("WANDB_DISABLED", "true")

import torch  # noqa: E402
from transformers import GPT2Config, GPT2LMHeadModel  # noqa: E402

TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"]


def model_with(tokenizer, out, positions=64):
    """A GPT-2 of GPT-2's vocabulary whose losses differ a lot from token to token, saved with the tokenizer."""
    torch.manual_seed(5)
    config = GPT2Config(vocab_size=50257, n_positions=positions, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(out)
    for name in TOKENIZER_FILES:
        if (Path(tokenizer) / name).exists():
            shutil.copy(Path(tokenizer) / name, out)
    return model


def ours(program, model, text, *flags):
    command = [program, "eval", str(model), "--data", str(text), "--json", "-q", *flags]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare(what, found, expected, tolerance=1e-5):
    apart = abs(found - expected)
    print(f"{what}: {found:.8f} and {expected:.8f}, {apart:.1e} apart")
    if not apart <= tolerance:
        sys.exit(f"more than {tolerance}")
