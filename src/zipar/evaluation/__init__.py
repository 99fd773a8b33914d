"""Measuring what models make: a judge of pictures, prompt accuracy, Fréchet distance."""
