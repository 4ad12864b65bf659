"""The checks, one module for each plugin kind and `common` for all."""
