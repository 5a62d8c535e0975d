"""An endpoint that speaks OpenAI's protocol: see __main__ for how it is started, and docs/serving.md."""
