"""Published checkpoint formats: one file a format, from its keys to this project's components.

Every reader is strict (a missing, unexpected, misshapen or non-finite tensor is named) and safe (no code from a file runs).
"""
