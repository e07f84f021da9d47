"""Analyses of aligned encoders: competence, convergence with scale, training dynamics."""
