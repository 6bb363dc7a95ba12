"""Twenty minutes of mixed load and random faults, outside of the suite: ``make soak``."""
