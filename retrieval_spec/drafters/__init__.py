"""Sources of drafts: one file per source, one line each in `registry`."""
