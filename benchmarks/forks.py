"""Runs that share their first stages: a copy of a finished run, continued with other settings."""

from scbig.stages.forks import fork

__all__ = ["fork"]
