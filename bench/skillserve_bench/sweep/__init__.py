"""What `bench sweep` is made of: the grid, its trials, the fronts, the choice, and all of it in words and tables."""
