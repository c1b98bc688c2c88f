"""Other implementations of what skillserve does, measured beside it; each is imported only when it is asked for."""
