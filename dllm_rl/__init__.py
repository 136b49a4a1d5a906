"""Reinforcement-learning post-training for diffusion language models."""
