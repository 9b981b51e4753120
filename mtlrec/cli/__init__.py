"""The `mtlrec` command: options, console output, and one file for each group of verbs."""
