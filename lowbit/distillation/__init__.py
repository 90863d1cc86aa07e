"""Distillation: what a student is trained on."""
