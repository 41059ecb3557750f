"""Whether a machine, and several together, are fit for a run."""
