"""Grids of cells: the variables that are held fixed, or chosen, together."""

from __future__ import annotations

import torch
from torch import Tensor


def grid_size(grid: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of cells: a cell has at least one pixel."""
    return min(grid, height), min(grid, width)


def cell_numbers(grid: int, height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """(H,W) int64: the number of the cell that each pixel is in, row by row.

    Pixel y is in row ⌊y·g/H⌋: the sides of cells differ by a pixel at most.
    """
    rows, columns = grid_size(grid, height, width)
    down = torch.arange(height, device=device) * rows // height
    across = torch.arange(width, device=device) * columns // width
    return down[:, None] * columns + across


def cells(grid: int, height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """(1 + cells, H, W) bool: first nothing, then the pixels of each cell, row by row."""
    numbers, (rows, columns) = cell_numbers(grid, height, width, device), grid_size(grid, height, width)
    return numbers == torch.arange(-1, rows * columns, device=device)[:, None, None]
