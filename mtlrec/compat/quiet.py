"""Warnings and log lines of torch and TorchRec that a user can do nothing about.

Upstream: TorchRec 1.8 and torch 2.13 warn on every start of their own deprecated calls, and torch logs while it traces,
compiles and asks whether it is traced. Seen in torch 2.13 and TorchRec 1.8.
Delete when: a job of toy size trains, saves, exports and serves without a warning.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

NOISY_LOGGERS = ("torchrec", "torch.fx._symbolic_trace", "torch.distributed.checkpoint")


def quiet_libraries() -> None:
    """Hide these warnings for the rest of the process. For commands, not for libraries."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch(rec)?\.")
    warnings.filterwarnings("ignore", category=FutureWarning, message="Please use DTensor")  # TorchRec has none yet
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch(rec)?\.")
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger().addFilter(_is_not_about_sharding)


@contextmanager
def quiet_call() -> Iterator[None]:
    """Hide these warnings within this block; for one thread at a time."""
    root = logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in NOISY_LOGGERS}
    had_filter = _is_not_about_sharding in root.filters
    with warnings.catch_warnings():
        quiet_libraries()
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            if not had_filter:
                root.removeFilter(_is_not_about_sharding)


def _is_not_about_sharding(record: logging.LogRecord) -> bool:
    return "Sharding spec not found" not in record.getMessage()


def quiet_keyed_jagged_tensors() -> None:
    """Every KeyedJaggedTensor asks torch what its next release will answer otherwise, which torch logs each time."""
    logging.getLogger("torch.fx._symbolic_trace").addFilter(_is_not_about_tracing)


def _is_not_about_tracing(record: logging.LogRecord) -> bool:
    return "is_fx_tracing" not in record.getMessage()


@contextmanager
def quiet_export() -> Iterator[None]:
    """Hide what torch says while it traces and compiles; for one thread at a time."""
    names = ("torch", "torch.export", "torchrec", "")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
