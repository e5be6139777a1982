"""One pull as a state machine, and the sources that bring its pieces."""
