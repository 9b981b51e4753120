"""Which architecture wins on this data, and why."""
