"""What a trained model is worth on a split, and what it predicts for rows."""
