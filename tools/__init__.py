"""Tools for working on xenspec; no part of the installed package."""
