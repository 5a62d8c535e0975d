"""What the paper claims, measured: one command each. Depends on models and evaluation; nothing depends on it."""
