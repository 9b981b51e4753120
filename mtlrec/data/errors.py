"""What is wrong with the user's files."""


class DataError(ValueError):
    """The message names the file, and where it is known the row group, row, column and value."""
