"""Build models, and extract their activations. All but `weights` imports torch."""
