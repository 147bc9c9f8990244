"""Readers of one file each, as a stream of documents in bounded memory; docs/corpora.md has the table."""
