"""Steps of trainings before they are run: what they need of a GPU's memory, and of its time."""
