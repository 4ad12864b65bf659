"""The commands: one module for each. None imports torch before it is called."""
