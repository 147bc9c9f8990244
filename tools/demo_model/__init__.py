"""Parts of `tools/train_demo_model.py`: corpus, tokenizer, optimiser, training loop, export."""
