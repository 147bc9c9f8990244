"""One file a drafting system; each is imported only by the worker process of its own environment."""
