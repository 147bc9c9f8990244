"""Published systems as presets: their default parameters, and in what ours differs on purpose."""
