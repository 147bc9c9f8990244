"""Datastores on disk: format, atomic writing, verified opening, corpus readers, tokenizer fingerprint."""
