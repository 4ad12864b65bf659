"""timm's image classifiers as certframe models."""
