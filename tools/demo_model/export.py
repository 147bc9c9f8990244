"""Write the trained model as a Hugging Face folder, with a card filled from measured values."""

from __future__ import annotations

import json
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from demo_model import card
from demo_model.corpus import Corpus
from demo_model.measure import measure
from demo_model.settings import MAX_POSITIONS_TOKENS, Settings
from demo_model.tokens import END_OF_TEXT, token_stream
from demo_model.training import Trainer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

HELD_OUT_NAME = "held_out.txt"
MODE = 0o644  # the weights are written readable by their owner alone
STORED_DTYPE = torch.float16


def export(out: Path, trainer: Trainer, tokenizer: Tokenizer, corpus: Corpus) -> None:
    """Round the weights to the stored dtype, measure those, then put every file in place."""
    out.mkdir(parents=True, exist_ok=True)
    model = trainer.model.to(STORED_DTYPE).float().eval()
    measured = measure(model, tokenizer, token_stream(tokenizer, corpus.held_out))
    with tempfile.TemporaryDirectory(dir=out, prefix=".writing-") as name:
        folder = Path(name)
        write_model(folder, model)
        write_tokenizer(folder, tokenizer)
        names = [name for name, _ in corpus.held_out]
        (folder / HELD_OUT_NAME).write_text("".join(f"{name}\n" for name in names))
        text = card.render(trainer, corpus, measured, command(trainer.settings, out))
        (folder / card.CARD_NAME).write_text(text)
        for path in sorted(folder.iterdir()):
            path.chmod(MODE)
            path.replace(out / path.name)


def write_model(folder: Path, model: LlamaForCausalLM) -> None:
    """Store half the bytes; the config says float32, so that loading computes in float32."""
    model.to(STORED_DTYPE).save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    model.float()


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Store the tokenizer so that it adds no token of its own accord."""
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=MAX_POSITIONS_TOKENS,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def command(settings: Settings, out: Path) -> str:
    """Shortest command that gives these settings."""
    defaults = Settings()
    words = ["python tools/train_demo_model.py", f"--out {out.as_posix()}"]
    for field in fields(Settings):
        value = getattr(settings, field.name)
        option = "--" + field.name.replace("_", "-")
        if field.name == "compile" and value:
            words.append(option)
        elif value != getattr(defaults, field.name):
            words.append(f"{option} {value}")
    return " ".join(words)
