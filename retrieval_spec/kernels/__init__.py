"""numba functions on flat arrays, nothing else: no policy, no Python objects, no threads."""
