"""What fusion layers are made of: MLPs, banks of experts and how they are mixed, gates, gated levels."""
