"""Quiet libraries, for programs that people run; importing it changes nothing."""

import os


def quiet_libraries() -> None:
    """Only warnings from absl, TensorFlow and transformers, unless the environment asks for more.

    Called by programs before those libraries are imported.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # else it announces itself; TensorFlow only moves data here
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # else it imports Keras, which nothing here uses, for 2.7 s
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from absl import logging

    logging.set_verbosity(logging.WARNING)
