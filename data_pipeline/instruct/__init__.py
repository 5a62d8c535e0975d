"""Conversations about molecules, written by a teacher and checked: `python -m data_pipeline.instruct`."""
