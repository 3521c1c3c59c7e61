"""Lowering: what an operation becomes on the engines. A module per family."""
