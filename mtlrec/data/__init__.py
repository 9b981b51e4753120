"""Data: synthetic and public data sets, Parquet reading, batches."""
