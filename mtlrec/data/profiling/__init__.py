"""What is in a set of Parquet files: statistics, reports and a proposed job."""
