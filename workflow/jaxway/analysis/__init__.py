"""Statistics of measurements, their references, history, and the comparison of nodes."""
