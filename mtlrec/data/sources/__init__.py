"""Stores, files, footers and row groups."""
