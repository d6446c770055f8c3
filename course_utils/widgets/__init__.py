"""Widgets: figures that answer when one moves something. Each shows its figure without a kernel too."""
