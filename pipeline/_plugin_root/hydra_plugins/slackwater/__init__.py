"""Where Hydra looks for plugins: the thin class; the logic is in pipeline/sweep/."""
