"""How good a model is: metrics as JSON, plots of them, and the baselines that they are read against."""
