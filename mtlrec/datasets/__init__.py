"""One file per public data set, each with `prepare(source, out, ...) -> schema`, and what they share to write one.

Nothing is imported here, so that `import mtlrec` stays light: import `mtlrec.datasets.census_income` and the like.
"""
