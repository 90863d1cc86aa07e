"""Engines that run the cells of a bench elsewhere than in this process."""
