"""Picture preprocessing, equal to transformers' own."""
