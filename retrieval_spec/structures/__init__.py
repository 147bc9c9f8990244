"""Indexes over token ids: arrays and kernels, no policy."""
