"""Columns of a row group become ids, numbers and labels."""
