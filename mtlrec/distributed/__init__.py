"""The process group, and how a model written for one device is sharded over many."""
