"""What the paper claims, measured: one command each. Depends on models and evaluation; only apps depend on it."""
