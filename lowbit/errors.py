"""The errors that lowbit shows to people."""


class LowbitError(Exception):
    """Something a user can mend: what was expected, what came, and what to do, in one message."""


class UnknownNameError(LowbitError):
    """A name that no plugin registered; the message lists the nearest known ones."""


class CheckpointError(LowbitError):
    """A checkpoint that is missing, damaged, newer than this version, or needs a plugin that is absent."""


class FailedTogetherError(LowbitError):
    """What one of several processes failed at; each of them raises it, so that only the main one need tell of it."""


class QuantizationWarning(UserWarning):
    """Something a quantizer met in one weight and worked around; the engine keeps it in that weight's report."""
