"""Core's formulas, recorded."""
