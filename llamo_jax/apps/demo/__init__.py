"""A web page to talk with a model about molecules: see __main__ for how it is started, and docs/serving.md."""
