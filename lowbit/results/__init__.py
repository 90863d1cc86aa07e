"""Results: what a run measured, kept in lm-eval's layout, compared with its parent, and shown as a table."""
