"""What tests share: jobs and data, ranks, layers, a browser."""
