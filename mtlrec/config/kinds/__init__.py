"""Parts of a job that come in kinds."""
