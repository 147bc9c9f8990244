#!/usr/bin/env python3
"""Train the demonstration model on the Python standard library and write its model folder.

Example:
    python tools/train_demo_model.py --out retrieval_spec/demo_model --compile

Stop it at any time; the same command goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from demo_model import corpus, export, tokens
from demo_model.settings import Settings
from demo_model.training import Trainer, TrainingError

REPOSITORY = Path(__file__).resolve().parent.parent
SETTING_HELP = {
    "steps": "optimiser steps of the whole run; may change until the rates begin to fall",
    "batch_windows": "windows per step",
    "window_tokens": "tokens per window",
    "vocabulary": "entries of the tokenizer",
    "hidden": "width of the model",
    "layers": "layers of the model",
    "heads": "attention heads",
    "key_value_heads": "key and value heads",
    "feed_forward": "width inside the feed-forward blocks",
    "matrix_rate": "learning rate of the matrices inside the layers (Muon)",
    "embedding_rate": "learning rate of embeddings and norms (AdamW)",
    "warmup_steps": "steps over which the rates rise",
    "decay_fraction": "part of the run over which the rates fall to zero; may change like steps",
    "seed": "decides the first weights and the order of the text",
    "threads": "torch threads; another count gives other roundings",
}


def parser() -> argparse.ArgumentParser:
    """Describe the command line; settings have the names and defaults of `Settings`."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--out", type=Path, required=True, help="model folder to write at the end")
    cli.add_argument(
        "--work",
        type=Path,
        default=REPOSITORY / ".cache" / "demo_model",
        help="folder of the checkpoint (default: .cache/demo_model in the repository)",
    )
    cli.add_argument(
        "--corpus",
        type=Path,
        default=corpus.standard_library(),
        help="folder of Python files (default: this interpreter's standard library)",
    )
    cli.add_argument("--save-every-steps", type=int, default=100, help="default: 100")
    cli.add_argument("--compile", action="store_true", help="use torch.compile: a third faster")
    defaults = Settings()
    for name, text in SETTING_HELP.items():
        value = getattr(defaults, name)
        option = "--" + name.replace("_", "-")
        cli.add_argument(option, type=type(value), default=value, help=f"{text} (default: {value})")
    return cli


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Check what was asked for before anything is read or written."""
    settings = Settings(**{f.name: getattr(arguments, f.name) for f in fields(Settings)})
    problem = settings.problem()
    if problem is None and arguments.save_every_steps < 1:
        problem = f"save_every_steps is {arguments.save_every_steps}; expected 1 or more"
    if problem is None and not arguments.corpus.is_dir():
        problem = f"--corpus {arguments.corpus} is not a folder; expected one of Python files"
    if problem is not None:
        raise TrainingError(problem)
    return settings


def train(arguments: argparse.Namespace) -> None:
    """Read the corpus, learn the tokenizer, train or resume, export."""
    settings = settings_of(arguments)
    texts = corpus.read_corpus(arguments.corpus)
    if not texts.training or not texts.held_out:
        raise TrainingError(
            f"--corpus {arguments.corpus} gives {len(texts.training)} training and "
            f"{len(texts.held_out)} held-out files; expected some of both: choose a larger folder"
        )
    tokenizer = tokens.train_tokenizer((text for _, text in texts.training), settings.vocabulary)
    if tokenizer.get_vocab_size() != settings.vocabulary:
        raise TrainingError(
            f"the corpus yields {tokenizer.get_vocab_size()} tokens, not {settings.vocabulary}: "
            "choose a smaller --vocabulary or a larger corpus"
        )
    stream = tokens.token_stream(tokenizer, texts.training)
    trainer = Trainer(settings, stream, corpus.text_sha256(texts.training), arguments.work)
    resumed = trainer.resume()
    print(
        f"{len(texts.training)} files, {len(stream)} tokens; "
        f"{len(texts.held_out)} files held out; "
        f"{'resuming at' if resumed else 'starting at'} step {trainer.progress.step}",
        flush=True,
    )
    trainer.run(arguments.save_every_steps)
    export.export(arguments.out, trainer, tokenizer, texts)
    print(f"wrote {arguments.out}")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; bad input ends with one line and exit code 2."""
    try:
        train(parser().parse_args(argv))
    except TrainingError as error:
        print(f"train_demo_model: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
