"""The masked-diffusion decoder: it fills all masked positions of a canvas in parallel, a few per step."""
