"""Hub data sets, from the hub or from a local mirror of it."""

from lowbit.hub.mirror import Mirror, MirrorSplits, load_split

__all__ = ["Mirror", "MirrorSplits", "load_split"]
