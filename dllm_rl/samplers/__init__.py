"""Samplers for masked diffusion models: one loop over small interchangeable parts."""
