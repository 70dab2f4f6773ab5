"""A user's files, turned into what trainings read."""
